"""`vocalremover models` and `convert`: what is known, what a file is, whether it is whole, and a file that tells it."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from conftest import Outcome
from safetensors import safe_open
from torch import Tensor, nn

from vocalremover import checkpoint, recognition
from vocalremover.errors import ModelError
from vocalremover.models import ARGUMENTS, MODELS, NETWORKS
from vocalremover.spectrogram import STFT

Command = Callable[..., Outcome]
SMALL = sorted((Path(__file__).parent / "fixtures").glob("*_small.json"))
THIN = {
    "in_channels": 2,
    "out_channels": 2,
    "channels": 2,
    "dropout": 0.1,
    "n_fft": 128,
    "num_heads": 2,
    "expansion": 2,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models of a user who has none yet, and a package that brings none along."""
    monkeypatch.setenv("VOCALREMOVER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(checkpoint, "files", lambda package: tmp_path / "package")
    folder = tmp_path / "home" / "models"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Weights of a small thin frame transformer, which is the network of two models."""
    torch.manual_seed(0)
    return NETWORKS["thin"](**THIN).state_dict()


@pytest.fixture
def original(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    """Those weights as their author would store them, under a name that says nothing."""
    torch.save({"model": state, "epoch": 6}, tmp_path / "any name.bin")
    return tmp_path / "any name.bin"


def description(path: Path) -> dict[str, object]:
    with safe_open(path, framework="pt") as opened:
        return json.loads(opened.metadata()["vocalremover"])


# list, path


def test_list_tells_of_every_model_what_it_is_and_where_it_is(command: Command, home: Path) -> None:
    head, *rest = command("models", "list").out.splitlines()
    assert head.split() == ["NAME", "FAMILY", "PARAMETERS", "WEIGHTS", "LICENCE"]
    rows = {row.split()[0]: (row.split()[1:], place.strip()) for row, place in zip(rest[::2], rest[1::2], strict=True)}
    assert list(rows) == list(MODELS)
    assert all(len(line) <= 80 for line in (head, *rest))
    # the numbers of parameters that the original networks have
    assert rows["v10"] == (["v10", "405.9", "M", "absent", "not", "stated", "for", "the", "weights"], MODELS["v10"].url)
    assert rows["primer"][0][1] == "150.6" and "no link" in rows["primer"][1]
    (home / "model.v10.pth").write_bytes(b"weights")
    again = command("models", "list").out.splitlines()
    assert again[0] == head
    assert again[-2].split()[4] == "here" and again[-1].strip() == str(home / "model.v10.pth")


def test_list_for_scripts(command: Command, home: Path) -> None:
    (home / "thin.safetensors").touch()
    lines = command("models", "list", "--json").out.splitlines()
    records = {record["name"]: record for record in map(json.loads, lines)}
    assert list(records) == list(MODELS)
    assert records["thin"]["file"] == str(home / "thin.safetensors") and records["v1"]["file"] is None
    assert records["primer"]["parameters"] == 150_617_664
    assert records["v7"]["recommended"] == ["--cropsize", "4096", "--padding", "0"]
    assert records["v1"]["url"] == MODELS["v1"].url and records["v1"]["license"] == MODELS["v1"].license


def test_path_tells_the_folders_or_the_file(command: Command, home: Path) -> None:
    folders = command("models", "path").out.splitlines()
    assert folders == [str(folder) for folder in checkpoint.folders()] and folders[-1] == str(home)
    absent = command("models", "path", "v10")
    assert (absent.code, absent.out) == (4, "") and MODELS["v10"].url in absent.err
    (home / "v10.safetensors").touch()
    assert command("models", "path", "v10").out == f"{home / 'v10.safetensors'}\n"


# info


def test_info_on_a_model(command: Command, home: Path) -> None:
    told = command("models", "info", "v2b").out
    words = " ".join(told.split())
    recipe = MODELS["v2b"]
    for part in ("v2b", "sinusoid=input", "255,797,690", "n_fft 2048", "instrumental", recipe.license, recipe.url):
        assert part in words
    assert "--cropsize 1024 --padding 512" in words and "put model.v2b.pth into" in words and str(home) in words
    (home / "model.v2b.pth").write_bytes(b"abc")
    record = json.loads(command("models", "info", "v2b", "--json").out)
    assert record["file"] == str(home / "model.v2b.pth")
    assert record["sha256"].startswith("ba7816bf")  # the digest of "abc", the first example of FIPS 180-2
    assert record["arguments"] == recipe.args and record["stft"]["hop"] == 1024


def test_info_on_a_renamed_file_says_what_it_was_recognised_as(command: Command, original: Path) -> None:
    outcome = command("models", "info", original)
    words = " ".join(outcome.out.split())
    assert outcome.code == 0 and "recognised as thin" in words and str(original) in outcome.out
    record = json.loads(command("models", "info", original, "--json").out)
    assert record["arguments"] == THIN and record["stft"]["n_fft"] == 128
    assert record["sha256"] == checkpoint.sha256(original) and record["origin_sha256"] is None


def test_a_file_does_not_tell_which_of_two_models_it_is() -> None:
    """The thin frame transformer and V1 are one network: no link, and no checksum, of one of them may be claimed."""
    shapes = {key: tuple(tensor.shape) for key, tensor in MODELS["v1"].build("meta").state_dict().items()}
    spec = recognition.recognise(shapes)
    assert (spec.network, spec.url, spec.filename, spec.sha256) == ("thin", None, None, None)
    assert "thin, v1" in spec.note and "do not tell" in spec.note


def test_two_networks_that_fit_alike_are_reported(
    command: Command, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "twin", NETWORKS["thin"])
    monkeypatch.setitem(ARGUMENTS, "twin", ARGUMENTS["thin"])
    outcome = command("models", "info", original)
    assert (outcome.code, outcome.out) == (4, "")
    assert str(original) in outcome.err and "fits thin and twin alike" in outcome.err


# verify


def test_verify_without_weights_and_with_whole_ones(command: Command, home: Path, state: dict[str, Tensor]) -> None:
    outcome = command("models", "verify")
    rows = [line.split() for line in outcome.out.splitlines()]
    assert outcome.code == 0 and [row[:2] for row in rows] == [["absent", name] for name in MODELS]
    assert command("models", "verify", "thin").code == 4
    torch.save(state, home / "model.thin.pth")
    outcome = command("models", "verify", "thin")
    assert (outcome.code, outcome.out.split()) == (0, ["ok", "thin", str(home / "model.thin.pth")])


def test_verify_names_what_is_wrong(
    command: Command, home: Path, tmp_path: Path, original: Path, state: dict[str, Tensor]
) -> None:
    """One line for each: cut short, another program's, infinite, of another network than its name, and not there."""
    (tmp_path / "cut.pth").write_bytes(original.read_bytes()[:-1000])
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "foreign.pth")
    torch.save(state | {"out": torch.full_like(state["out"], torch.inf)}, tmp_path / "infinite.pth")
    torch.save(state, home / "model.v10.pth")
    bad = [tmp_path / "cut.pth", tmp_path / "foreign.pth", tmp_path / "infinite.pth", "v10"]
    outcome = command("models", "verify", original, *bad, tmp_path / "absent.pth")
    assert outcome.code == 4
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "FAIL", "FAIL", "FAIL", "FAIL", "absent"]
    reasons = ("damaged", "no network", "out has numbers", "holds a thin", "neither")
    for line, reason in zip(lines[1:], reasons, strict=True):
        assert reason in line


def test_verify_compares_the_known_checksum(
    command: Command, home: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(state, home / "model.thin.pth")
    digest = checkpoint.sha256(home / "model.thin.pth")
    monkeypatch.setitem(MODELS, "thin", replace(MODELS["thin"], sha256=digest))
    assert command("models", "verify", "thin").code == 0
    torch.save(state | {"out": -state["out"]}, home / "model.thin.pth")
    outcome = command("models", "verify")
    assert outcome.code == 4 and [line.split()[1] for line in outcome.out.splitlines() if "FAIL" in line] == ["thin"]
    assert "sha256" in outcome.out


# convert


def forbid(*arguments: object) -> None:
    raise ModelError("had to be recognised")


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_converted_files_give_the_same_logits_without_recognition(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """They hold the same numbers to the bit, in the same network, which gives the same but for rounding.

    Rounding may differ because a product is added up in an order that depends on where in memory its factors begin.
    """
    fixture = json.loads(path.read_text())
    family = parity.find_family(fixture | {"name": path.stem})
    network = parity.build(family, fixture["ctor"], fixture["seed"], fixture["gain"])
    source, target = tmp_path / "x.dat", tmp_path / "converted.safetensors"
    torch.save(network.state_dict(), source)
    outcome = command("convert", source, target)
    assert (outcome.code, outcome.out) == (0, f"{target}\n")
    spec, theirs = checkpoint.load(source)
    assert spec.network in outcome.err
    monkeypatch.setattr(recognition, "match", forbid)
    with pytest.raises(ModelError, match="had to be recognised"):
        checkpoint.load(source)
    told, ours = checkpoint.load(target)
    assert told == replace(spec, sha256=checkpoint.sha256(source))
    with np.load(path.with_suffix(".npz")) as stored:
        magnitude = parity.network_input(fixture, dict(stored))[:1, ..., :8]
    expected = theirs.state_dict()
    assert expected.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in ours.state_dict().items())
    with torch.inference_mode():
        results = [theirs.logits(magnitude), ours.logits(magnitude)]
    for one, other in zip(*((x,) if isinstance(x, Tensor) else x for x in results), strict=True):
        assert torch.allclose(other, one, rtol=0, atol=1e-5 * one.abs().max().item())


def test_the_description_is_whole(command: Command, home: Path, tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Asked for by its name, a file keeps the link and the licence of the model."""
    torch.save(state, home / "model.v1.pth")
    assert command("convert", "v1", tmp_path / "new" / "v1.safetensors").code == 0
    told = description(tmp_path / "new" / "v1.safetensors")
    recipe = MODELS["v1"]
    assert (told["name"], told["network"], told["args"], told["target"]) == ("v1", "thin", THIN, "instrumental")
    assert (told["license"], told["url"]) == (recipe.license, recipe.url)
    assert told["chunking"]["size"] == 1024 and STFT(**told["stft"]) == STFT(128, 64)
    assert told["sha256"] == checkpoint.sha256(home / "model.v1.pth")
    record = json.loads(command("models", "info", tmp_path / "new" / "v1.safetensors", "--json").out)
    assert (record["name"], record["origin_sha256"]) == ("v1", told["sha256"])
    assert command("models", "verify", tmp_path / "new" / "v1.safetensors").code == 0


def test_numbers_are_stored_as_asked(command: Command, tmp_path: Path, state: dict[str, Tensor]) -> None:
    half = {key: tensor.half() for key, tensor in state.items()}
    torch.save(half, tmp_path / "half.pth")
    for asked, dtype in (("keep", torch.float16), ("float16", torch.float16), ("float32", torch.float32)):
        target = tmp_path / f"{asked}.safetensors"
        assert command("convert", "--dtype", asked, tmp_path / "half.pth", target).code == 0
        with safe_open(target, framework="pt") as opened:
            assert opened.get_tensor("out").dtype is dtype
        assert torch.equal(checkpoint.load(target)[1].out, half["out"].float())
    torch.save(state | {"out": state["out"] * 0 + 1e6}, tmp_path / "large.pth")
    outcome = command("convert", "--dtype", "float16", tmp_path / "large.pth", tmp_path / "large.safetensors")
    assert outcome.code == 4 and "out has values that do not fit" in outcome.err
    assert not (tmp_path / "large.safetensors").exists()


def test_nothing_is_overwritten_unasked(command: Command, tmp_path: Path, original: Path) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")
    outcome = command("convert", original, target)
    assert outcome.code == 2 and "--overwrite" in outcome.err and target.read_bytes() == b"precious"
    assert command("convert", "--overwrite", original, target).code == 0
    whole = target.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(target)
    for same in (target, tmp_path / "link.safetensors", tmp_path / "home" / ".." / "out.safetensors"):
        outcome = command("convert", "--overwrite", target, same)
        assert outcome.code == 2 and "the file to convert" in outcome.err
    assert target.read_bytes() == whole
    assert command("convert", original, tmp_path / "out.pth").code == 2


def test_what_cannot_be_converted_leaves_nothing(command: Command, tmp_path: Path, original: Path) -> None:
    (tmp_path / "cut.pth").write_bytes(original.read_bytes()[:-1000])
    (tmp_path / "file").touch()
    before = sorted(os.listdir(tmp_path))
    for source, target, reason in (
        (tmp_path / "cut.pth", tmp_path / "out.safetensors", "damaged"),
        (tmp_path / "absent.pth", tmp_path / "out.safetensors", "neither"),
        ("v10", tmp_path / "out.safetensors", MODELS["v10"].url),
        (original, tmp_path / "file" / "out.safetensors", "cannot be written"),
    ):
        outcome = command("convert", source, target)
        assert (outcome.code, outcome.out) == (4, "") and reason in outcome.err
    assert sorted(os.listdir(tmp_path)) == before
