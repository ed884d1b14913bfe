"""A checkpoint gives back what went into it, whatever its name and wrapping, and nothing else ever gets in."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vocalremover import checkpoint, recognition
from vocalremover.chunks import Chunking
from vocalremover.errors import ModelError
from vocalremover.models import MODELS, ModelSpec
from vocalremover.spectrogram import STFT


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small spend 20 times as long where threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


ARGS = {
    "in_channels": 2,
    "out_channels": 2,
    "embedding": 1,
    "expansion": 2,
    "n_fft": 64,
    "dropout": 0,
    "num_heads": 4,
    "num_attention_maps": 1,
}


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return ModelSpec("mine", "v10", ARGS, stft=STFT(64, 32), chunking=Chunking(96, 7), rate=22050, note="a test")


@pytest.fixture(scope="module")
def network(spec: ModelSpec) -> nn.Module:
    torch.manual_seed(0)
    return spec.build("cpu")


@pytest.fixture(scope="module")
def state(network: nn.Module) -> dict[str, Tensor]:
    return network.state_dict()


def answer(network: nn.Module) -> Tensor:
    with torch.inference_mode():
        return network(torch.linspace(0, 1, 2 * 33 * 11).reshape(1, 2, 33, 11))


def refused(path: Path) -> str:
    """What `load` says; it must be one line that names the file."""
    with pytest.raises(ModelError) as caught:
        checkpoint.load(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence
    assert caught.value.exit_code == 4
    return sentence


def test_round_trip_is_bit_equal(tmp_path: Path, spec: ModelSpec, network: nn.Module) -> None:
    path = tmp_path / "any.name"
    checkpoint.save(path, spec, network)
    told, loaded = checkpoint.load(path)
    assert told == spec
    assert not loaded.training
    assert torch.equal(answer(loaded), answer(network))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_half_the_file_and_float32_in_memory(
    tmp_path: Path, spec: ModelSpec, network: nn.Module, dtype: torch.dtype
) -> None:
    checkpoint.save(tmp_path / "whole", spec, network)
    checkpoint.save(tmp_path / "half", spec, network, dtype)
    header = 60_000  # names and shapes of 300 tensors
    assert (tmp_path / "half").stat().st_size < (tmp_path / "whole").stat().st_size / 2 + header
    _, loaded = checkpoint.load(tmp_path / "half")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    for (name, ours), theirs in zip(loaded.named_parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(dtype).float()), name
    for ours, theirs in zip(loaded.buffers(), network.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_save_refuses_what_does_not_fit(tmp_path: Path, spec: ModelSpec, network: nn.Module) -> None:
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state["out.weight"][0] = 1e6
    with pytest.raises(ModelError, match=r"out\.weight has values"):
        checkpoint.save(tmp_path / "file", spec, state, torch.float16)
    del state["out.weight"]
    with pytest.raises(ModelError, match="not those of the network v10"):
        checkpoint.save(tmp_path / "file", spec, state)
    assert not list(tmp_path.iterdir())


WRAPPINGS = {
    "plain": lambda state: state,
    "state": lambda state: {"state": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.5, "history": [1, 2]},
    "model": lambda state: {"model": state},
    "twice": lambda state: {"state": {"model": state}},
    "parallel": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "compiled": lambda state: {"state": {f"_orig_mod.{key}": tensor for key, tensor in state.items()}},
    "both": lambda state: {f"module._orig_mod.{key}": tensor for key, tensor in state.items()},
    "lightning": lambda state: {"state_dict": {f"model.{key}": tensor for key, tensor in state.items()}},
    "average": lambda state: {
        "ema": {f"ema_model.{key}": tensor for key, tensor in state.items()} | {"step": torch.ones(1)},
        "model": {key: torch.zeros_like(tensor) for key, tensor in state.items()},
    },
    "parameters": lambda state: {key: nn.Parameter(tensor) for key, tensor in state.items()},
    "float16": lambda state: {key: tensor.half() for key, tensor in state.items()},
    "bfloat16": lambda state: {key: tensor.bfloat16() for key, tensor in state.items()},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("name", WRAPPINGS)
def test_wrapped_files_are_recognised(
    tmp_path: Path, state: dict[str, Tensor], network: nn.Module, name: str, zipped: bool
) -> None:
    """By content alone: the name says nothing, nothing but names and shapes is known."""
    path = tmp_path / "song.mp3"
    torch.save(WRAPPINGS[name](state), path, _use_new_zipfile_serialization=zipped)
    told, loaded = checkpoint.load(path)
    assert (told.network, told.args, told.stft) == ("v10", ARGS, STFT(64, 32))
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(name, torch.float32)
    for (key, ours), theirs in zip(loaded.named_parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(dtype).float()), key
    for ours, theirs in zip(loaded.buffers(), network.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_plain_safetensors_are_recognised(tmp_path: Path, state: dict[str, Tensor], network: nn.Module) -> None:
    save_file({f"module.{key}": tensor for key, tensor in state.items()}, tmp_path / "renamed.pth")
    told, loaded = checkpoint.load(tmp_path / "renamed.pth")
    assert (told.network, told.args) == ("v10", ARGS)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(loaded.parameters(), network.parameters(), strict=True)
    )


def test_a_header_may_begin_like_another_format(tmp_path: Path) -> None:
    """The length stands in front of a safetensors header; with 128 in its lowest byte it looks like a pickle."""
    path = tmp_path / "file"
    for length in range(0, 256, 8):
        save_file({"weight": torch.ones(2)}, path, metadata={"padding": "x" * length})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert "1 tensors of no network" in refused(path)


@pytest.mark.parametrize("recipe", MODELS.values(), ids=lambda recipe: recipe.name)
def test_every_recipe_is_recognised_by_its_shapes(recipe: ModelSpec) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in recipe.build("meta").state_dict().items()}
    told = recognition.recognise(shapes)
    assert told.network == recipe.network
    assert recipe.args.items() <= told.args.items()


@pytest.mark.parametrize("recipe", MODELS.values(), ids=lambda recipe: recipe.name)
def test_every_network_is_whole_once_its_state_dict_is_there(recipe: ModelSpec) -> None:
    """No tensor of a network may be missing from its state dict, or it would stay on the meta device."""
    network = recipe.build("meta")
    held = {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}
    assert all(id(tensor) in held for tensor in (*network.parameters(), *network.buffers()))


def test_near_miss_names_the_network_and_the_first_differences(tmp_path: Path, state: dict[str, Tensor]) -> None:
    near = dict(state) | {"extra": torch.ones(3), "out.weight": torch.ones(2, 9, 1, 1)}
    del near["enc2.idt.weight"]
    torch.save(near, tmp_path / "near.pth")
    sentence = refused(tmp_path / "near.pth")
    for part in (
        "not quite v10",
        "lacks enc2.idt.weight",
        "out.weight is [2, 9, 1, 1] instead of",
        "has extra besides",
    ):
        assert part in sentence


def test_foreign_tensors(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "linear.pth")
    assert "no network known" in refused(tmp_path / "linear.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    assert "no tensors" in refused(tmp_path / "none.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    assert "no tensors" in refused(tmp_path / "list.pth")


class Payload:
    """Pickles into a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_code_in_a_checkpoint_never_runs(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    proof, path = tmp_path / "ran", tmp_path / "model.pth"
    torch.save({"state": state, "hook": Payload(f"touch {proof}")}, path, _use_new_zipfile_serialization=zipped)
    assert "refused" in refused(path)
    assert not proof.exists()
    # the payload is real: an unsafe load would have run it
    torch.load(path, weights_only=False)
    assert proof.exists()


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_truncated_files(tmp_path: Path, spec: ModelSpec, state: dict[str, Tensor], kind: str) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    if kind == "safetensors":
        checkpoint.save(whole, spec, state)
    else:
        torch.save(state, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    for kept in (0, 1, 4, 8, 9, 100, 5000, len(content) // 2, len(content) * 9 // 10, len(content) - 1):
        part.write_bytes(content[:kept])
        refused(part)


@pytest.mark.parametrize("content", [b"text, and no more", b"<html>404</html>", b"\x80", b"PK\x03\x04", bytes(100)])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    refused(tmp_path / "model.pth")


def test_few_bytes_cannot_claim_much_memory(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """A stride of zero repeats one number 10^12 times; one storage may stand behind many names; zip can compress."""
    torch.save({"out.weight": torch.ones(1).expand(10**12)}, tmp_path / "stride.pth")
    assert "ordinary" in refused(tmp_path / "stride.pth")
    shared = torch.zeros(10_000)
    torch.save({f"tensor{number}": shared for number in range(100)}, tmp_path / "shared.pth")
    assert "larger than the file" in refused(tmp_path / "shared.pth")
    torch.save({"out.weight": torch.ones(3).to_sparse()}, tmp_path / "sparse.pth")
    assert "ordinary" in refused(tmp_path / "sparse.pth")


def test_integers_are_no_weights(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state | {"out.weight": state["out.weight"].long()}, tmp_path / "model.pth")
    assert "out.weight holds torch.int64" in refused(tmp_path / "model.pth")


HOSTILE = {
    "json": "{",
    "list": "[1]",
    "deep": "[" * 100_000,
    "network": {"network": "compact"},
    "unknown": {"network": "no such"},
    "huge": {"args": {**ARGS, "n_fft": 2**40}},
    "many": {"args": {**ARGS, "num_attention_maps": 10**9}},
    "heads": {"args": {**ARGS, "num_heads": 8}},
    "type": {"rate": "fast"},
    "boolean": {"rate": True},
    "target": {"target": "drums"},
    "path": {"target": "../vocals"},
    "stems": {"instruments": ["vocals", "a/b"]},
    "twins": {"instruments": ["vocals", "vocals"]},
    "names": {"instruments": "vocals"},
    "domain": {"domain": "waveform"},
    "reads": {"reads": "complex"},
    "stft": {"stft": {"n_fft": 63, "hop": 32, "window": "hann", "pad_mode": "constant"}},
    "window": {"stft": {"n_fft": 64, "hop": 32, "window": "__import__", "pad_mode": "constant"}},
    "frames": {"stft": {"n_fft": 2**30, "hop": 32}},
    "crop": {"chunking": {"size": 10**15}},
    "nothing": {"chunking": {"size": 0}},
    "field": {"more": 1},
    "escape": {"name": "\x1b[2J"},
    "long": {"note": "x" * 2000},
}


@pytest.mark.parametrize("lie", HOSTILE.values(), ids=HOSTILE)
def test_a_description_is_not_believed(tmp_path: Path, spec: ModelSpec, state: dict[str, Tensor], lie: object) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, spec, state)
    if isinstance(lie, dict):
        lie = json.dumps({"network": "v10", "args": ARGS} | lie)
    save_file(load_file(path), path, metadata={"vocalremover": lie})
    refused(path)


def test_a_description_may_be_partial(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Files of older versions lack the fields that came later."""
    told = {"name": "old", "target": "vocals", "chunking": {"size": 32}}
    save_file(state, tmp_path / "old.safetensors", metadata={"vocalremover": json.dumps(told)})
    spec, _ = checkpoint.load(tmp_path / "old.safetensors")
    context = MODELS["v10"].chunking.context
    assert (spec.name, spec.target, spec.args, spec.chunking) == ("old", "vocals", ARGS, Chunking(32, context))


def test_models_are_found_in_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: ModelSpec, state: dict[str, Tensor]
) -> None:
    monkeypatch.setenv("VOCALREMOVER_HOME", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        checkpoint.load("v10")
    for part in ("model.v10.pth", str(tmp_path / "models"), MODELS["v10"].url):
        assert part in str(caught.value)
    (tmp_path / "models").mkdir()
    torch.save(state, tmp_path / "models" / "model.v10.pth")
    told, _ = checkpoint.load("v10")
    assert told == replace(MODELS["v10"], args=ARGS, stft=STFT(64, 32))
    checkpoint.save(tmp_path / "models" / "model.v10.pth", spec, state)
    told, _ = checkpoint.load("v10")
    assert (told.name, told.chunking) == ("v10", spec.chunking)


def test_a_name_does_not_stand_for_another_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]
) -> None:
    monkeypatch.setenv("VOCALREMOVER_HOME", str(tmp_path))
    monkeypatch.setitem(MODELS, "other", ModelSpec("other", "compact", {}))
    (tmp_path / "models").mkdir()
    torch.save(state, tmp_path / "models" / "other.safetensors")
    with pytest.raises(ModelError, match="holds a v10 network, not the compact of other"):
        checkpoint.load("other")


def test_no_such_file(tmp_path: Path) -> None:
    assert "v10" in refused(tmp_path / "absent.pth")
    assert "folder" in refused(tmp_path)


def test_sha256(tmp_path: Path) -> None:
    """The digest of "abc" is the first example of FIPS 180-2."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert checkpoint.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
