"""Laws of the training recipe: what is drawn, what is rendered, what it costs, and that a run learns and goes on."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vocalremover.audio import write
from vocalremover.checkpoint import load
from vocalremover.cli import main
from vocalremover.errors import InputError
from vocalremover.models import MODELS
from vocalremover.training import train as training
from vocalremover.training.credits import credit
from vocalremover.training.data import RATE, Catalogue, Track, prepare
from vocalremover.training.losses import masked_error
from vocalremover.training.schedules import warm_cosine
from vocalremover.training.voxaug import draw, loudness, render

SECONDS = 3
KINDS = {"vocals/anna/a.flac": "singing", "vocals/ben/b.flac": "speech", "instrumentals/drums.flac": "instrumental"}
SONG = {"multitracks/song/vocals.flac": "multitrack", "multitracks/song/instrumental.flac": "multitrack"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: tones for voices, noise for instruments, one whole song and one validation file."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    seconds = np.arange(SECONDS * RATE) / RATE
    files = KINDS | SONG | {"validation/song/vocals.flac": "validation"}
    with (root / "manifest.csv").open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["path", "kind"])
        for number, (path, kind) in enumerate(files.items()):
            rows.writerow([path, kind])
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            tone = 0.3 * np.sin(2 * np.pi * 220 * (number + 1) * seconds)
            noise = 0.1 * rng.standard_normal((2, seconds.size))
            audio = tone[None] if "vocals" in path else noise
            write(root / path, torch.tensor(audio, dtype=torch.float32), RATE)
    return root


@pytest.fixture(scope="module")
def catalogue(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return prepare(folder, tmp_path_factory.mktemp("cache"))


def track(name: str) -> Track:
    return Track(Path(name), name, "singing")


def test_a_catalogue_lists_what_the_manifest_says(catalogue: Catalogue) -> None:
    assert {voice.source for voice in catalogue.voices} == {*list(KINDS)[:2], "multitracks/song/vocals.flac"}
    assert {backing.source for backing in catalogue.backings} == {
        "instrumentals/drums.flac",
        "multitracks/song/instrumental.flac",
    }
    assert [(voice.source, backing.source) for voice, backing in catalogue.songs] == [tuple(SONG)]


def test_held_out_files_are_not_drawn(folder: Path, tmp_path: Path) -> None:
    catalogue = prepare(folder, tmp_path, held_out=("vocals/ben", "multitracks"))
    assert {voice.source for voice in catalogue.voices} == {"vocals/anna/a.flac"}


def test_decoded_audio_is_kept(folder: Path, tmp_path: Path) -> None:
    prepare(folder, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    prepare(folder, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest\.csv"):
        prepare(tmp_path, tmp_path / "cache")


def test_credits_name_every_title_once() -> None:
    rows = [
        {"path": "a/1.opus", "kind": "singing", "artist": "Ann | Ben", "title": "One", "licence": "CC0", "source": "x"},
        {"path": "a/2.opus", "kind": "singing", "artist": "Ann | Ben", "title": "Two", "licence": "CC0", "source": "x"},
        {"path": "b/3.opus", "kind": "speech"},
    ]
    lines = credit(rows).splitlines()[2:]
    assert lines == ["|  | unknown | not stated | 3 |", "| x | Ann / Ben | CC0 | One, Two |"]


def test_no_pair_repeats_until_every_voice_met_every_backing() -> None:
    catalogue = Catalogue(tuple(track(f"v{i}") for i in range(7)), tuple(track(f"b{i}") for i in range(5)), ())
    met = []
    for epoch in range(7):
        for index in range(5):
            mix = draw(catalogue, 3, epoch, index)
            if mix.voices and mix.backings:
                met.append((mix.voices[0].track.path, mix.backings[0].track.path))
    assert len(met) == len(set(met)) > 20


def test_drawing_is_pure(catalogue: Catalogue) -> None:
    assert draw(catalogue, 1, 2, 1) == draw(catalogue, 1, 2, 1)
    assert draw(catalogue, 1, 2, 1) != draw(catalogue, 2, 2, 1)


def test_a_mix_is_its_voices_plus_its_backings(catalogue: Catalogue) -> None:
    for index in range(12):
        mix = draw(catalogue, 5, index, 0)
        mixture, vocals = render(mix, RATE)
        _, backing = render(replace(mix, voices=()), RATE)
        alone, _ = render(replace(mix, voices=()), RATE)
        assert mixture.shape == vocals.shape == (2, RATE) and mixture.dtype == np.float32
        assert not backing.any()
        np.testing.assert_allclose(mixture - vocals, alone, atol=1e-5)


def test_voices_stand_as_loud_as_drawn(catalogue: Catalogue) -> None:
    """Effects change how a voice sounds, not the balance that was drawn."""
    levels = []
    for index in range(40):
        mix = draw(catalogue, 7, index, 1)
        if len(mix.voices) == 1 and mix.backings:
            _, vocals = render(mix, RATE)
            levels.append(20 * np.log10(loudness(vocals) / 0.1) - mix.gain_db - mix.voices[0].gain_db)
    assert len(levels) > 10
    assert np.abs(np.median(levels)) < 1  # the song's own stems keep their level, which a median overlooks


def test_loss_is_zero_for_the_perfect_mask_and_blind_to_level() -> None:
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randn(2, 2, 16, 8, dtype=torch.complex64, generator=generator)
    ideal = torch.rand(2, 2, 16, 8, generator=generator)
    vocals = ideal * mixture
    assert masked_error(ideal, mixture, vocals) < 1e-3
    wrong = masked_error(1 - ideal, 10 * mixture, 10 * vocals)
    louder = masked_error(1 - ideal, 1000 * mixture, 1000 * vocals)
    assert wrong > 0.1
    torch.testing.assert_close(wrong, louder, rtol=1e-2, atol=0)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates = [warm_cosine(step / 100, step, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == max(rates[9:12])
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert warm_cosine(1.5, 150, 10) == pytest.approx(0, abs=1e-12)


def test_the_command_tells_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", str(tmp_path), str(tmp_path / "run"), "-d", "cpu"])
    assert ended.value.code == InputError.exit_code
    assert "manifest.csv" in capsys.readouterr().err


def test_a_run_learns_saves_and_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"channels": (8, 8, 8, 8, 8), "maps": 1, "num_layers": 1, "num_heads": 2, "bottleneck": 16}
    monkeypatch.setitem(training.MODELS, "default", replace(MODELS["default"], args=small))
    clock = iter(range(10_000))
    monkeypatch.setattr(training.time, "monotonic", lambda: 60.0 * next(clock))
    run = training.Training(
        folder, tmp_path / "cache", tmp_path / "run", minutes=40, batch=2, frames=16, warm_steps=5, workers=0
    )
    noted = list(training.train(run))
    log = [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]
    assert noted == log
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    spec, network = load(run.out / "best.safetensors")
    assert spec.target == "vocals"
    assert network(torch.rand(1, 2, 1025, 9)).shape == (1, 2, 1025, 9)
    list(training.train(replace(run, minutes=60)))
    went_on = [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]
    assert went_on[: len(log)] == log
    assert went_on[len(log)]["step"] > log[-1]["step"]
