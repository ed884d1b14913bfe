"""Laws of a training run: it learns, it goes on bit for bit, several processes are one, what breaks is told."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vocalremover.audio import write
from vocalremover.checkpoint import load, save
from vocalremover.cli.train import sentence
from vocalremover.dataset import Catalogue, Sources, prepare
from vocalremover.dataset.cache import RATE
from vocalremover.errors import TrainingError, UsageError
from vocalremover.evaluate.scores import find_songs, plain
from vocalremover.models import MODELS
from vocalremover.separate import Separator
from vocalremover.training import losses, validation
from vocalremover.training.distributed import World
from vocalremover.training.journal import DIGITS, Journal, read_journal
from vocalremover.training.muon import Muon
from vocalremover.training.recipe import Recipe, read_recipe
from vocalremover.training.shelf import Clock
from vocalremover.training.train import Run, begin, train

CPU = World(0, 1, torch.device("cpu"))
SHORT = ["stft={n_fft: 512, hop: 256}", "stages=[{frames: 32, batch: 2}]", "log_steps=1", "schedule.warm_up=2"]
COMPACT = [
    *SHORT, "network={n_fft: 512, bands: [[64, 2], [192, 6]], channels: [4, 4, 4, 4, 4], maps: 2, num_layers: 1, "
    "num_heads: 1}", "chunking={size: 64, context: 8}", "reuse={times: 2, places: 4, frames: 40, candidates: 3}",
]  # fmt: skip
THIN = [*SHORT, "network={n_fft: 512, channels: 2, num_heads: 2, expansion: 2, dropout: 0.1}"]
PRIMER = [
    *SHORT, "network={n_fft: 512, channels: 2, depth: 3, num_transformer_decoders: 1, cropsize: 64, num_bands: 4, "
    "feedforward_dim: 16}", "chunking={size: 32, context: 0}",
]  # fmt: skip
TINY_GAN = (
    "{n_fft: 512, channels: 2, num_heads: 1, expansion: 8, num_bridge_layers: 1, num_attention_maps: 1, dropout: 0.0}"
)
GAN = [*SHORT, "stages=[{frames: 8, batch: 1}]", f"network={TINY_GAN}", f"adversary.network={TINY_GAN}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vibrating tones for voices, noise for instruments, and one song of both to validate on."""
    root = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    seconds = np.arange(2 * RATE) / RATE

    def tone(hertz: float) -> np.ndarray:
        return np.tile(0.3 * np.sin(2 * np.pi * hertz * seconds + 3 * np.sin(2 * np.pi * 5 * seconds)), (2, 1))

    def noise() -> np.ndarray:
        return 0.1 * rng.standard_normal((2, seconds.size))

    files = {f"vocals/v{number}.wav": tone(220 * (number + 1)) for number in range(3)}
    files |= {f"instrumentals/i{number}.wav": noise() for number in range(2)}
    files["songs/one/vocals.wav"], files["songs/one/instrumental.wav"] = tone(330), noise()
    for name, audio in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / name, torch.tensor(audio, dtype=torch.float32), RATE)
    prepare(Sources((root / "instrumentals",), (root / "vocals",)), root / "cache", workers=0)
    return root


@pytest.fixture(scope="module")
def catalogue(folder: Path) -> Catalogue:
    return prepare(Sources(), folder / "cache")


@pytest.fixture
def make_run(catalogue: Catalogue, tmp_path: Path) -> Callable[..., Run]:
    def make(recipe: Recipe, name: str = "run", **others: Any) -> Run:  # noqa: ANN401
        return Run(recipe, tmp_path / name, **{"catalogue": catalogue, "workers": 0, **others})

    return make


def words(folder: Path, out: Path, recipe: str, changes: list[str], *more: str) -> list[str]:
    """The command line of a run on the prepared audio."""
    sets = [word for change in changes for word in ("--set", change)]
    return ["train", "--recipe", recipe, "--cache", str(folder / "cache"), "--out", str(out), "-d", "cpu",
            "--workers", "0", *sets, *more]  # fmt: skip


def start(*command: str) -> subprocess.Popen:
    """A program that leads a group of processes."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for_step(run: subprocess.Popen, out: Path, step: int) -> None:
    """Until the log tells of the step."""
    while not any(line["step"] >= step for line in read_journal(out / "log.jsonl")):
        if run.poll() is not None:
            raise AssertionError(f"the run ended too soon: {run.stderr.read().decode()}")
        time.sleep(0.02)


def signal_all(run: subprocess.Popen, number: int) -> None:
    """Signal the program and its workers, as torchrun and terminals do."""
    if hasattr(os, "killpg"):
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)


class Once:
    """Lets a run take one step."""

    def __init__(self) -> None:
        self._answers = iter([False])

    def __call__(self) -> bool:
        return next(self._answers, True)


def losses_of(out: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_journal(out / "log.jsonl") if "loss" in line}


def state_of(out: Path) -> dict[str, Any]:
    return torch.load(out / "last.pt", weights_only=True)


def assert_same(found: Any, wanted: Any, where: str = "") -> None:  # noqa: ANN401
    """Bit for bit, through dicts and lists."""
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), where
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_same(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), where
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_same(one, other, f"{where}.{number}")
    else:
        assert found == wanted, where


def test_a_run_learns_and_leaves_what_separates(make_run: Callable[..., Run], folder: Path) -> None:
    recipe = read_recipe(
        "compact", changes=[*COMPACT, "optimiser.learning_rate=0.005", "average=0.9", "keep_steps=20"],
        steps=40, validate_steps=20,
    )  # fmt: skip
    run = make_run(recipe, songs=tuple(find_songs(folder / "songs")))
    lines = list(train(run, CPU))
    told = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(told[-5:]) < 0.8 * np.mean(told[:5])
    scores = [line for line in lines if "score" in line]
    assert [line["step"] for line in scores] == [20, 40]
    assert plain(lines, DIGITS) == read_journal(run.out / "log.jsonl")
    names = {path.name for path in run.out.iterdir()}
    assert names >= {"best.safetensors", "last.safetensors", "step_00000020.safetensors", "loss.png", "recipe.yaml",
                     "spectrograms.png", "CREDITS.md", "last.pt"}  # fmt: skip
    separator = Separator.load(run.out / "best.safetensors", device="cpu")
    assert separator.spec.stft.n_fft == 512
    stems = separator.separate(torch.zeros(2, 4000), RATE)
    assert set(stems) == {"vocals", "instrumental"}
    assert read_recipe(run.out / "recipe.yaml") == recipe


def test_a_run_that_was_stopped_and_killed_ends_as_one_that_was_not(
    make_run: Callable[..., Run], folder: Path, tmp_path: Path
) -> None:
    """Dropout, averaged weights and a change of stage included; the audio comes from one worker process."""
    changes = [*THIN, "stages=[{until: 9, frames: 32, batch: 2}, {frames: 16, batch: 1, accumulation: 2}]",
               "average=0.99", "steps=18", "save_steps=3"]  # fmt: skip
    whole = make_run(read_recipe("thin", changes=changes), "whole")
    list(train(whole, CPU))
    out = tmp_path / "pieces"
    command = ["-m", "vocalremover", *words(folder, out, "thin", changes, "--workers", "1")]
    stopped = start(*command)
    wait_for_step(stopped, out, 2)
    signal_all(stopped, signal.SIGTERM)
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 143, said
    assert b"goes on" in said
    reached = state_of(out)["step"]
    assert 2 <= reached < 18 and reached == max(losses_of(out))
    killed = start(*command)
    wait_for_step(killed, out, min(reached + 4, 17))
    killed.kill()
    killed.wait(timeout=60)
    list(train(make_run(whole.recipe, "pieces"), CPU))
    found, wanted = ({**state_of(folder), "minutes": 0, "validated": 0} for folder in (out, whole.out))
    assert_same(found, wanted)
    assert losses_of(out) == losses_of(whole.out)
    assert state_of(out)["examples"] == 18 * 2


def test_two_processes_learn_as_one_with_twice_the_batch(
    make_run: Callable[..., Run], folder: Path, tmp_path: Path
) -> None:
    """Sums of gradients are rounded in another order, and Adam makes of the last bits of a gradient near zero a step
    of full size; hence a thousandth after a few steps."""
    changes = [*THIN, "network.dropout=0", "steps=4", "optimiser.learning_rate=1e-3", "stages.0.accumulation=2"]
    one = make_run(read_recipe("thin", changes=[*changes, "stages.0.batch=4"]), "one")
    list(train(one, CPU))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vocalremover"]
    two = start(*launch, *words(folder, tmp_path / "two", "thin", changes))
    _, said = two.communicate(timeout=120)
    assert two.returncode == 0, said.decode()
    found, wanted = losses_of(tmp_path / "two"), losses_of(one.out)
    assert found.keys() == wanted.keys() == set(range(1, 5))
    for step in wanted:
        assert found[step] == pytest.approx(wanted[step], rel=1e-5 if step == 1 else 1e-3)
    assert state_of(tmp_path / "two")["examples"] == state_of(one.out)["examples"] == 32
    assert not any(name.startswith("module.") for name in state_of(tmp_path / "two")["averaged"])


def test_broken_batches_are_skipped_counted_and_told(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    whole = losses.magnitude_error
    monkeypatch.setitem(losses.LOSSES, "magnitude", lambda e: whole(e) * (float("nan") if next(calls) in (1, 2) else 1))
    run = make_run(read_recipe("thin", changes=THIN, steps=5))
    lines = list(train(run, CPU))
    broken = [line for line in lines if "mixes" in line]
    assert [(line["step"], line["skipped"], line["examples"]) for line in broken] == [(2, 1, [2, 3]), (3, 2, [4, 5])]
    assert all("Mix(" in mix for line in broken for mix in line["mixes"])
    assert [line["step"] for line in lines if "loss" in line] == [1, 4, 5]
    assert json.loads((run.out / "log.jsonl").read_text().splitlines()[-1])["skipped"] == 2
    assert all(value.isfinite().all() for value in state_of(run.out)["averaged"].values())


def test_a_run_that_only_breaks_ends_with_the_batch_described(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.LOSSES, "magnitude", lambda e: e.magnitudes[0].mean() * float("nan"))
    with pytest.raises(TrainingError, match=r"3 steps in a row .*Mix\("):
        list(train(make_run(read_recipe("thin", changes=[*THIN, "patience=3"], steps=9)), CPU))


def test_a_batch_that_memory_has_no_room_for_is_told(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.LOSSES, "magnitude", lambda e: torch.empty(1 << 60))
    with pytest.raises(TrainingError, match="out of memory with batches of 2, 32 frames each"):
        list(train(make_run(read_recipe("thin", changes=THIN, steps=1)), CPU))


def test_a_level_that_lets_nothing_through_is_told_once(make_run: Callable[..., Run], tmp_path: Path) -> None:
    recipe = read_recipe("compact", changes=COMPACT, steps=3)
    network = recipe.spec().build("cpu")
    with torch.no_grad():
        network.decoders[2][0].shortcut[1].bias.fill_(-1000.0)
        network.decoders[2][0].mixer.norm1.running_var.zero_()
    save(tmp_path / "half_dead.safetensors", recipe.spec(), network)
    run = replace(make_run(recipe), start=str(tmp_path / "half_dead.safetensors"))
    told = [line for line in train(run, CPU) if "silent" in line]
    assert told == [{"step": 1, "silent": ["decoders.2.0.mixer.norm1"]}]
    assert "step 1: nothing reaches decoders.2.0.mixer.norm1 any more" in sentence(told[0], recipe)


def test_stages_change_what_is_drawn_and_lose_no_example(make_run: Callable[..., Run]) -> None:
    stages = "stages=[{until: 2, frames: 16, batch: 3}, {until: 3, frames: 32, batch: 2, accumulation: 2}, {batch: 1}]"
    run = make_run(read_recipe("thin", changes=[*THIN, stages, "stages.2.frames=40"], steps=5))
    heard: list[tuple[int, ...]] = []
    whole = losses.magnitude_error

    def listening(estimate: losses.Estimate) -> torch.Tensor:
        heard.append((estimate.spectrogram.shape[0], estimate.spectrogram.shape[-1]))
        return whole(estimate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses.LOSSES, "magnitude", listening)
        list(train(run, CPU))
    assert heard == [(3, 16), (3, 16), (2, 32), (2, 32), (1, 40), (1, 40)]
    assert state_of(run.out)["examples"] == 12


def test_examples_mixed_in_batches_by_the_device_are_those_of_the_workers(make_run: Callable[..., Run]) -> None:
    """A batch is transformed as a whole, which rounds otherwise than one example after the other."""
    recipe = read_recipe("thin", changes=THIN, steps=1)
    runs = [make_run(recipe, f"device_{on_device}", on_device=on_device) for on_device in (False, True)]
    told = [next(train(run, CPU))["loss"] for run in runs]
    assert told[0] == pytest.approx(told[1], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_learns_in_every_precision_and_goes_on(make_run: Callable[..., Run], precision: str) -> None:
    world = World(0, 1, torch.device("cuda"))
    changes = [*COMPACT, "optimiser.learning_rate=0.005", "average=0.9"]
    for steps in (20, 40):
        recipe = read_recipe("compact", changes=changes, steps=steps, precision=precision)
        told = [line["loss"] for line in train(make_run(recipe, on_device=True), world) if "loss" in line]
        assert len(told) == 20 and all(np.isfinite(told))
    assert np.mean(told[-5:]) < 0.8 * losses_of(make_run(recipe).out)[1]


def test_fine_tuning_begins_with_a_checkpoint_and_keeps_what_is_frozen(make_run: Callable[..., Run]) -> None:
    pretrained = make_run(read_recipe("primer_pretrain", changes=PRIMER, steps=2), "pretrained")
    list(train(pretrained, CPU))
    best = pretrained.out / "best.safetensors"
    own = [change for change in PRIMER if not change.startswith("network")]
    recipe = read_recipe("primer_finetune", changes=[*own, "optimiser.layer_decay=0.9"], steps=3)
    tuned = make_run(recipe, "tuned", start=str(best))
    list(train(tuned, CPU))
    before, after = (load(run.out / "best.safetensors")[1].state_dict() for run in (pretrained, tuned))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and not any(name.startswith("encoder.") for name in changed)
    with pytest.raises(UsageError, match="holds a primer network"):
        list(train(make_run(read_recipe("thin", changes=THIN, steps=1), "other", start=str(best)), CPU))


def test_processes_that_find_different_states_do_not_go_on(make_run: Callable[..., Run]) -> None:
    """As where the machines of a run do not share its folder, so that the other one would begin anew."""

    class Apart(World):
        def gather(self, items: Sequence[int]) -> list[int]:
            return [*items, 0]

    list(train(make_run(read_recipe("thin", changes=THIN, steps=1)), CPU))
    with pytest.raises(TrainingError, match="a folder they share"):
        list(train(make_run(read_recipe("thin", changes=THIN, steps=2)), Apart(0, 1, CPU.device)))


def test_processes_learn_at_the_rate_of_a_common_clock(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process whose clock says two minutes, beside one whose clock says six."""

    class Beside(World):
        def mean(self, values: Sequence[float]) -> list[float]:
            return [4.0 if value == 2.0 else value for value in values]

    monkeypatch.setattr(Clock, "minutes", lambda clock: 2.0)
    changes = [*THIN, "schedule={kind: cosine}", "optimiser.learning_rate=0.1"]
    run = make_run(replace(read_recipe("thin", changes=changes, minutes=8), steps=None))
    lines = list(train(run, Beside(0, 1, CPU.device), Once()))
    assert lines[0]["rate"] == pytest.approx(0.05) and state_of(run.out)["minutes"] == 4.0


def test_a_run_that_is_stopped_saves_and_does_not_validate(make_run: Callable[..., Run], folder: Path) -> None:
    recipe = read_recipe("thin", changes=THIN, steps=9, validate_steps=1)
    run = make_run(recipe, songs=tuple(find_songs(folder / "songs")))
    lines = list(train(run, CPU, Once()))
    assert state_of(run.out)["step"] == 1 and not any("score" in line for line in lines)


def test_a_stop_puts_validations_off_and_loses_none(make_run: Callable[..., Run], folder: Path) -> None:
    """A run that is stopped when one is due, and again after its last step, leaves what one that was not leaves."""
    recipe = read_recipe("thin", changes=[*THIN, "chunking={size: 64, context: 8}"], steps=3, validate_steps=2)
    whole, pieces = (make_run(recipe, name, songs=tuple(find_songs(folder / "songs"))) for name in ("whole", "pieces"))
    wanted = [line for line in train(whole, CPU) if "score" in line]
    assert [line["step"] for line in wanted] == [2, 3]
    told = []
    for steps in (2, 1, 9, 9):
        left = iter([False] * steps)
        told.append([line for line in train(pieces, CPU, lambda left=left: next(left, True)) if "score" in line])
    assert [[line["step"] for line in lines] for lines in told] == [[], [2], [3], []]
    assert [line["songs"] for lines in told for line in lines] == [line["songs"] for line in wanted]
    assert_same(*(load(run.out / "best.safetensors")[1].state_dict() for run in (pieces, whole)))


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("scores", "told", "best"),
    [
        ([[1, 3, 2], [-INF] * 3, [-INF] * 3, [INF] * 3], [1, 3, 2], [1, 3, 3]),
        ([[NAN, 1, NAN]], [NAN, 1, NAN], [NAN, 1, 1]),
        ([[-INF] * 3, [INF] * 3], [NAN] * 3, [NAN] * 3),
        ([[-INF] * 3], [-INF] * 3, [-INF] * 3),
    ],
)
def test_songs_without_a_score_do_not_choose_the_best(
    make_run: Callable[..., Run], folder: Path, monkeypatch: pytest.MonkeyPatch, scores: list, told: list, best: list
) -> None:
    """Where there are only such, the last weights are the best there are."""
    (song,) = find_songs(folder / "songs")
    judged = {str(number): iter(each) for number, each in enumerate(scores)}
    monkeypatch.setattr(validation, "score_song", lambda recipe, spec, network, song, *more: next(judged[song.name]))
    run = make_run(
        read_recipe("thin", changes=THIN, steps=3, validate_steps=1), songs=tuple(replace(song, name=n) for n in judged)
    )
    lines = [line for line in train(run, CPU) if "score" in line]
    assert [line["score"] for line in lines] == pytest.approx(told, nan_ok=True)
    assert [line["best"] for line in lines] == pytest.approx(best, nan_ok=True)
    if not np.isfinite(best[-1]):
        assert_same(*(load(run.out / f"{name}.safetensors")[1].state_dict() for name in ("best", "last")))


def test_a_network_that_cannot_be_is_refused(make_run: Callable[..., Run]) -> None:
    for recipe, changes, reason in (
        ("thin", [*THIN, "network.foo=1"], "network describes no network: .*'foo'"),
        ("thin", [*THIN, "network.num_heads=0"], "recipe's network describes no network"),
        ("gan", [*GAN, "adversary.network.foo=1"], "adversary.network describes no network: .*'foo'"),
    ):
        with pytest.raises(UsageError, match=reason):
            begin(make_run(read_recipe(recipe, changes=changes, steps=1)), CPU)


def test_credits_may_name_files_that_are_not_unicode(make_run: Callable[..., Run], catalogue: Catalogue) -> None:
    recipe = read_recipe("thin", changes=THIN, steps=1)
    run = make_run(recipe, catalogue=replace(catalogue, credits="by caf\udce9"))
    list(train(run, CPU))
    assert (run.out / "CREDITS.md").read_text(encoding="utf-8") == "by caf\\udce9"


def test_masked_pretraining_learns_and_is_judged_by_what_it_restores(
    make_run: Callable[..., Run], folder: Path
) -> None:
    changes = [*PRIMER, "optimiser.learning_rate=0.01", "masking.token=8", "schedule.kind=constant"]
    run = make_run(read_recipe("primer_pretrain", changes=changes, steps=30), songs=tuple(find_songs(folder / "songs")))
    lines = list(train(run, CPU))
    told = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(told[-5:]) < 0.8 * np.mean(told[:5])
    assert lines[-1]["score"] < 0


def test_adversaries_train_together_and_go_on(make_run: Callable[..., Run]) -> None:
    run = make_run(read_recipe("gan", changes=GAN, steps=1))
    lines = list(train(run, CPU))
    assert {"loss", "magnitude", "activity", "fooled", "judge"} <= lines[-1].keys()
    before = state_of(run.out)["players"]
    list(train(make_run(read_recipe("gan", changes=GAN, steps=2)), CPU))
    after = state_of(run.out)["players"]
    for name in ("network", "judge"):
        earlier = before[name]["network"]
        assert sum(not torch.equal(value, earlier[key]) for key, value in after[name]["network"].items()) > 10


def test_the_judge_moves_by_adamw_beside_a_generator_under_muon(make_run: Callable[..., Run]) -> None:
    recipe = read_recipe("gan", changes=[*GAN, "optimiser.matrix_rate=0.01", "optimiser.plain=[vout_conv.*]"], steps=1)
    _, state = begin(make_run(recipe), CPU)
    kinds = {name: type(player.optimizer) for name, player in state.players.items()}
    assert kinds == {"network": Muon, "judge": torch.optim.AdamW}


@pytest.mark.parametrize("name", [name for name in ("bs_roformer", "mel_roformer") if name in MODELS])
def test_roformers_learn_through_their_masks(make_run: Callable[..., Run], name: str) -> None:
    bands = {"bs_roformer": "freqs_per_bands: [57, 100, 100]", "mel_roformer": "num_bands: 8"}[name]
    network = f"network={{dim: 16, depth: 1, dim_head: 8, heads: 2, stft_n_fft: 512, stft_hop_length: 256, {bands}}}"
    network = network[:-1] + ", stft_win_length: 512}"
    changes = [
        *SHORT, network, "chunking={size: 4096, context: 2048, fade: 2048, flat: 0, multiple: 1}",
        "optimiser.learning_rate=0.01", "schedule={kind: constant}",
    ]  # fmt: skip
    run = make_run(read_recipe(name, changes=changes, steps=12))
    told = [line["loss"] for line in train(run, CPU) if "loss" in line]
    assert np.mean(told[-3:]) < 0.9 * np.mean(told[:3])
    stems = Separator.load(run.out / "best.safetensors", device="cpu").separate(torch.zeros(2, 9000), RATE)
    assert {"vocals", "instrumental"} <= set(stems)


def test_minutes_end_a_run_and_count_over_its_pieces(make_run: Callable[..., Run]) -> None:
    recipe = read_recipe("compact", changes=COMPACT, minutes=0.01)
    run = make_run(recipe)
    list(train(run, CPU))
    first = state_of(run.out)
    assert 0.01 <= first["minutes"] < 0.2
    list(train(run, CPU))
    assert state_of(run.out)["step"] == first["step"]
    with pytest.raises(UsageError, match="how long"):
        list(train(make_run(read_recipe("compact", changes=[*COMPACT, "minutes=null"]), "endless"), CPU))


def test_a_compiled_network_is_saved_under_its_own_names(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Compiled(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self._orig_mod = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return self._orig_mod(x)

    calls: list[int] = []
    monkeypatch.setattr(torch, "compile", Compiled)
    run = make_run(read_recipe("thin", changes=THIN, steps=1, compile=True))
    list(train(run, CPU))
    assert calls
    load(run.out / "best.safetensors")


@pytest.mark.parametrize(
    "change",
    ["optimiser.clip=-1", "optimiser.layer_decay=0", "masking.token=0", "masking.rate=2", "augmentation={no_voice: 7}",
     "augmentation={voice: {speed: [2, -4, 4]}}", "stages=[{frames: 32}, {frames: 64, until: 10}]",
     "stages=[{frames: 32, until: 9}, {frames: 64, until: 9}, {frames: 64}]"],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(make_run: Callable[..., Run], change: str) -> None:
    with pytest.raises(UsageError):
        list(train(make_run(read_recipe("thin", changes=[*THIN, change], steps=1)), CPU))


def test_what_json_cannot_hold_is_logged_as_nothing(tmp_path: Path) -> None:
    Journal(tmp_path, 0).note({"step": 1, "score": -math.inf, "songs": {"one": math.nan, "two": 1 / 3}})
    line = {"step": 1, "score": None, "songs": {"one": None, "two": 0.33333333}}
    assert [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()] == [line]


def test_the_songs_to_validate_on_are_those_of_the_manifest(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(folder / "songs/one", tmp_path / name)
    stem = next((tmp_path / "one").glob("vocals.*")).suffix
    rows = [f"{song}/{part}{stem},{kind}" for song, kind in (("one", "multitrack"), ("two", "validation"))
            for part in ("instrumental", "vocals")]  # fmt: skip
    (tmp_path / "manifest.csv").write_text("\n".join(["path,kind", *rows]) + "\n")
    assert [song.name for song in find_songs(tmp_path)] == ["two"]


def test_tensorboard_gets_the_numbers_of_the_log(make_run: Callable[..., Run]) -> None:
    pytest.importorskip("tensorboard")
    run = make_run(read_recipe("thin", changes=THIN, steps=2), tensorboard=True)
    list(train(run, CPU))
    assert list((run.out / "tensorboard").glob("events.out.*"))


def sections(told: str) -> int:
    """Of voices, as `train prepare` tells them."""
    return int(told.rpartition(" voices, ")[0].split()[-1])


def test_the_command_prepares_trains_and_tells_what_is_missing(
    command: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    prepared = command(
        "train", "prepare", "--vocals", folder / "vocals", "--instrumentals", folder / "instrumentals", "--cache",
        tmp_path / "cache", "--workers", 0,
    )  # fmt: skip
    assert prepared.code == 0 and "decoded 5 of 5" in prepared.err
    songs = str(folder / "songs")
    trained = command(*words(tmp_path, tmp_path / "run", "thin", THIN, "--steps", "2", "--validation", songs))
    assert trained.code == 0, trained.err
    assert trained.out.strip() == str(tmp_path / "run" / "best.safetensors")
    assert "validation" in trained.err
    often = command(
        *words(tmp_path, tmp_path / "often", "thin", THIN, "--steps", "1"), "--often", "vocals/=100", "--often", "x=y=2"
    )
    assert often.code == 0 and "warning: x=y: no recording begins so" in often.err
    assert sections(often.err) == 100 * sections(prepared.err)
    validated = command(
        *words(tmp_path, tmp_path / "again", "thin", THIN, "--steps", "1", "--validation", songs), "--pairs", songs,
        "--vocals", folder / "vocals", "--instrumentals", folder / "instrumentals",
    )  # fmt: skip
    assert validated.code == 0, validated.err
    assert "songs/one/vocals: left out, because it is validated on" in validated.err
    assert "and 0 whole songs" in validated.err
    for more, code, reason in (
        (["--cache", str(tmp_path / "none")], 5, "never prepared"),
        (["--set", "optimizer.clip=1"], 2, "did you mean optimiser"),
        (["--recipe", "nothing"], 2, "shipped recipes"),
        (["--validation", str(tmp_path)], 5, "no song"),
    ):
        failed = command(*words(tmp_path, tmp_path / "other", "thin", [*THIN, "steps=1"]), *more)
        assert failed.code == code and reason in failed.err, (more, failed)
    assert command("train").code == 2
    for size in ("inf", "nan", "1e300"):
        failed = command("train", "prepare", "--cache", tmp_path / "cache", "--cache-gb", size)
        assert failed.code == 2 and "is no size" in failed.err
    for times in ("vocals/anna", "=3", "vocals=0", "vocals=nan", "vocals=1e9"):
        failed = command(*words(tmp_path, tmp_path / "odd", "thin", THIN, "--often", times))
        assert failed.code == 2 and "PREFIX=TIMES" in failed.err
