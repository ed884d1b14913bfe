"""Scores against what their definitions give by hand, against museval, and along the way that a user's song goes."""

import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from vocalremover.audio import write
from vocalremover.cli import main
from vocalremover.cli.chart import draw
from vocalremover.errors import InputError, UsageError
from vocalremover.evaluate import Meter, ideal_ratio_mask, ideal_vocals, sdr, si_sdr
from vocalremover.evaluate.scores import as_record, find_songs, found, medians, score, separated

RATE = 8000


def noise(seed: int, seconds: float = 3.3, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(channels, int(seconds * RATE), generator=generator)


def test_sdr_of_a_scaled_estimate_is_known() -> None:
    reference = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    assert sdr(0.9 * reference, reference) == pytest.approx(20, abs=1e-4)  # error 0.1 of the reference: 20 dB
    assert sdr(torch.zeros_like(reference), reference) == pytest.approx(0, abs=1e-9)


def test_sdr_at_its_ends() -> None:
    reference = torch.ones(1, 10)
    assert sdr(reference, reference) == math.inf
    assert sdr(reference, torch.zeros(1, 10)) == -math.inf


def test_sdr_refuses_stems_of_different_length() -> None:
    with pytest.raises(UsageError, match="cannot be held against"):
        sdr(torch.ones(2, 10), torch.ones(2, 11))


def test_si_sdr_is_blind_to_level_and_else_the_sdr_of_the_best_level() -> None:
    reference, error = noise(1), noise(2)
    estimate = reference + 0.3 * error
    assert si_sdr(5 * estimate, reference) == pytest.approx(si_sdr(estimate, reference), abs=1e-4)
    best = max(sdr(level / 1000 * estimate, reference) for level in range(800, 1200))
    assert si_sdr(0 * estimate, reference) == -float("inf"), "silence has nothing of it"
    # Scaling the estimate keeps a part of the error, scaling the reference none: ratios a and 1 + a.
    assert 10 ** (best / 10) == pytest.approx(1 + 10 ** (si_sdr(estimate, reference) / 10), rel=1e-3)


def test_ideal_ratio_masks_of_two_stems_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(2)
    vocals, instrumental = torch.randn(2, 2, 5, 7, dtype=torch.complex64, generator=generator)
    assert_close(ideal_ratio_mask(vocals, instrumental) + ideal_ratio_mask(instrumental, vocals), torch.ones(2, 5, 7))
    assert_close(ideal_ratio_mask(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)), torch.zeros(1, 1, 1))


def test_ideal_vocals_do_not_depend_on_blocks() -> None:
    vocals, instrumental = stems = torch.stack([noise(1), noise(2)])
    whole = torch.cat(list(ideal_vocals([stems])), dim=-1)
    pieces = torch.cat(list(ideal_vocals(stems.split(777, -1))), dim=-1)
    assert_close(pieces, whole, atol=1e-6, rtol=0)
    samples = vocals.shape[-1]
    assert whole.shape[-1] >= samples
    assert sdr(whole[:, :samples], vocals) > sdr(vocals + instrumental, vocals) + 3
    silent = torch.cat(list(ideal_vocals([torch.stack([vocals, torch.zeros_like(vocals)])])), dim=-1)
    assert_close(silent[:, :samples], vocals, atol=1e-6, rtol=0)


def metered(estimates: dict[str, Tensor], references: dict[str, Tensor], size: int) -> dict:
    meter = Meter(RATE)
    samples = next(iter(references.values())).shape[-1]
    for start in range(0, samples, size):
        block = slice(start, start + size)
        meter.add(*({stem: audio[:, block] for stem, audio in stems.items()} for stems in (estimates, references)))
    return meter.scores()


@pytest.mark.parametrize("size", [1000, RATE, 100_000])
def test_a_meter_takes_blocks_of_any_size(size: int) -> None:
    references = {"vocals": noise(1), "instrumental": noise(2)}
    estimates = {"vocals": noise(1) + 0.1 * noise(3), "instrumental": 0.8 * noise(2) + 0.1 * noise(4)}
    for stem, scores in metered(estimates, references, size).items():
        assert scores.sdr == pytest.approx(sdr(estimates[stem], references[stem]), abs=1e-6)
        assert scores.si_sdr == pytest.approx(si_sdr(estimates[stem], references[stem]), abs=1e-4)
        windows = [slice(start, start + RATE) for start in (0, RATE, 2 * RATE)]
        by_hand = [sdr(estimates[stem][:, window], references[stem][:, window]) for window in windows]
        assert scores.seconds == pytest.approx(sorted(by_hand)[1], abs=1e-6)


def test_a_song_shorter_than_a_second_has_no_median_of_seconds() -> None:
    scores = metered({"vocals": noise(1, 0.5)}, {"vocals": noise(2, 0.5)}, 1000)["vocals"]
    assert math.isnan(scores.seconds) and math.isfinite(scores.sdr)


@pytest.fixture(scope="module")
def museval_metrics() -> ModuleType:
    """museval's metrics alone: the package itself wants an ffmpeg program when it is imported."""
    package = importlib.util.find_spec("museval")
    if package is None:
        pytest.skip("museval is not installed")
    path = Path(package.submodule_search_locations[0]) / "metrics.py"
    spec = importlib.util.spec_from_file_location("museval_metrics", path)
    module = sys.modules["museval_metrics"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_median_of_seconds_is_that_of_museval(museval_metrics: ModuleType) -> None:
    references = {"vocals": noise(1, 6.7), "instrumental": noise(2, 6.7)}
    references["vocals"][:, RATE : int(2.5 * RATE)] = 0  # the second second is silent in one stem: it counts in none
    estimates = {
        "vocals": references["vocals"] + torch.linspace(0, 0.5, int(6.7 * RATE)) * noise(3, 6.7),
        "instrumental": 0.9 * references["instrumental"] + 0.1 * references["vocals"],
    }
    ours = metered(estimates, references, 5000)
    stacked = [torch.stack([stems[s].T for s in ours]).double().numpy() for stems in (references, estimates)]
    theirs, *_ = museval_metrics.bss_eval(*stacked, window=RATE, hop=RATE, filters_len=8)
    assert theirs.shape == (2, 6)
    for stem, seconds in zip(ours, theirs, strict=True):
        known = sorted(seconds[seconds == seconds])
        assert len(known) == 5
        assert ours[stem].seconds == pytest.approx(known[2], abs=1e-6)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two songs, one of them of musdb's kind."""
    root = tmp_path / "data"
    for song, seed in (("test/one", 1), ("two", 11)):
        (root / song).mkdir(parents=True)
        stems = {"vocals": noise(seed), "drums": noise(seed + 1), "bass": noise(seed + 2)}
        for stem, audio in {**stems, "mixture": sum(stems.values())}.items():
            write(root / song / f"{stem}.wav", audio, RATE)
    (root / "two/mixture.wav").unlink()
    return root


class Halver:
    """A separator that takes half of the song for the vocals, in blocks of its own, and tells what it was given."""

    def peak(self, blocks: Iterable[Tensor], rate: int) -> float:
        return max(float(block.abs().amax()) for block in blocks)

    def stream(self, blocks: Iterable[Tensor], rate: int, peak: float) -> Iterator[dict[str, Tensor]]:
        song = torch.cat(list(blocks), dim=-1)
        assert float(song.abs().amax()) == peak
        for block in song.split(1234, dim=-1):
            yield {"vocals": block / 2, "instrumental": block - block / 2}


def test_a_song_is_scored_between_floor_and_ceiling(data: Path) -> None:
    songs = find_songs(data)
    assert [song.name for song in songs] == ["test/one", "two"]
    for song, seed in zip(songs, (1, 11), strict=True):
        scores = score(song, separated(Halver()))
        vocals, instrumental = noise(seed), noise(seed + 1) + noise(seed + 2)
        mixture = vocals + instrumental
        # Every file is rounded to 16 bits.
        assert scores.estimate["vocals"].sdr == pytest.approx(sdr(mixture / 2, vocals), abs=0.01)
        assert scores.estimate["instrumental"].sdr == pytest.approx(sdr(mixture / 2, instrumental), abs=0.01)
        assert scores.floor["vocals"].sdr == pytest.approx(sdr(mixture, vocals), abs=0.01)
        assert scores.ceiling["vocals"].sdr > scores.estimate["vocals"].sdr
        assert scores.ceiling["instrumental"].sdr > scores.floor["instrumental"].sdr + 2
        assert scores.seconds == pytest.approx(3.3, abs=0.01)
    table = medians([score(song, separated(Halver())) for song in songs])
    assert table["floor"]["vocals"]["sdr"] == pytest.approx(-3, abs=0.1)


def test_files_that_are_cut_into_other_blocks_are_held_together(tmp_path: Path) -> None:
    vocals, instrumental = noise(1, 20.0, 1), noise(2, 20.5)
    (tmp_path / "song").mkdir()
    write(tmp_path / "song/vocals.flac", vocals, RATE)  # mono, and of another format and length than the rest
    write(tmp_path / "song/instrumental.ogg", instrumental, RATE)
    scores = score(find_songs(tmp_path)[0], separated(Halver()))
    assert scores.seconds == pytest.approx(20, abs=0.01)
    floor = sdr(vocals + instrumental[:, : 20 * RATE], vocals.expand(2, -1))
    assert scores.floor["vocals"].sdr == pytest.approx(floor, abs=0.5), "ogg is not exact"
    assert scores.ceiling["vocals"].sdr > scores.floor["vocals"].sdr + 2


def test_stems_of_another_tool_are_found_and_scored(data: Path, tmp_path: Path) -> None:
    songs = find_songs(data)
    stems = tmp_path / "stems"
    (stems / "One").mkdir(parents=True)
    write(stems / "One/vocals.wav", noise(1)[:, : 3 * RATE], RATE)  # the tool lost the last 0.3 s
    write(stems / "two_(Instrumental).wav", noise(12) + noise(13), RATE)
    first, second = (score(song, found(stems, songs)) for song in songs)
    expected = torch.nn.functional.pad(noise(1)[:, : 3 * RATE], (0, int(3.3 * RATE) - 3 * RATE))
    assert first.estimate["vocals"].sdr == pytest.approx(sdr(expected, noise(1)), abs=0.05)
    assert first.estimate["vocals"].seconds > 40
    assert second.estimate["vocals"].sdr > 40, "the vocals are the mixture minus the instrumental"
    shutil.rmtree(stems / "One")
    with pytest.raises(InputError, match="test/one"):
        found(stems, songs)


def test_a_manifest_tells_what_is_for_validation(data: Path) -> None:
    lines = ["path,kind", "two/vocals.wav,validation", "two/drums.wav,validation", "test/one/vocals.wav,singing"]
    (data / "manifest.csv").write_text("\n".join(lines))
    assert [song.name for song in find_songs(data)] == ["two"]


def test_a_manifest_of_a_spreadsheet_is_read(data: Path) -> None:
    lines = "path,kind\ntwo/vocals.wav,validation\ntwo/drums.wav,validation\n"
    (data / "manifest.csv").write_text(lines, encoding="utf-8-sig")
    assert [song.name for song in find_songs(data)] == ["two"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"file,kind\ntwo/vocals.wav,validation\n", "no column path"),
        (b"path,kind\nd\xe9j\xe0/vocals.wav,validation\n", "UTF-8"),
        (b"path,kind\n/elsewhere/two/vocals.wav,validation\n", "/elsewhere/two/vocals.wav"),
        (b"", "no column kind and no column path"),
    ],
)
def test_a_manifest_that_is_wrong_is_told(data: Path, content: bytes, reason: str) -> None:
    (data / "manifest.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"manifest\.csv.*{reason}"):
        find_songs(data)


def test_folders_without_songs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no song"):
        find_songs(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_songs(tmp_path / "nowhere")


def test_records_are_plain_json(data: Path) -> None:
    record = as_record([score(find_songs(data)[0], separated(Halver()))])
    again = json.loads(json.dumps(record, allow_nan=False))
    assert again["songs"][0]["song"] == "test/one"
    assert again["median"]["estimate"]["vocals"]["sdr"] == again["songs"][0]["estimate"]["vocals"]["sdr"]


@pytest.fixture
def stems(tmp_path: Path) -> Path:
    """What a tool made of the vocals of both songs."""
    folder = tmp_path / "stems"
    for song in ("one", "two"):
        (folder / song).mkdir(parents=True)
        write(folder / song / "vocals.wav", noise(5), RATE)
    return folder


def test_the_command_prints_a_table_json_and_a_plot(
    data: Path, stems: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plot = tmp_path / "scores.svg"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--data", str(data), "--stems", str(stems), "--plot", str(plot)])
    assert ended.value.code == 0
    table = capsys.readouterr().out
    assert "test/one" in table and "two" in table and "median" in table
    assert "test/one" in "".join(ElementTree.parse(plot).getroot().itertext())
    before = plot.stat().st_mtime_ns
    with pytest.raises(SystemExit):
        main(["evaluate", "--data", str(data), "--stems", str(stems), "--json", "--plot", str(plot)])
    assert plot.stat().st_mtime_ns > before and list(tmp_path.glob("scores*")) == [plot], "its own is replaced"
    record = json.loads(capsys.readouterr().out)
    (result,) = record["results"]
    assert result["median"]["floor"]["vocals"]["sdr"] == pytest.approx(-3, abs=0.1)


def test_what_is_missing_is_told_before_anything_is_scored(
    command: Callable, data: Path, stems: Path, tiny_model: Path, tmp_path: Path
) -> None:
    words = ("evaluate", "--data", data, "-d", "cpu", "-m", tiny_model, "--stems", stems)
    (tmp_path / "half").mkdir()
    (tmp_path / "logo.svg").write_text("<svg/>")
    write(tmp_path / "half" / "one_Vocals.wav", noise(5), RATE)
    for code, more in (
        (4, ("-m", "typo")), (5, ("--stems", tmp_path / "half")), (2, ("--plot", tmp_path / "nowhere" / "x.svg")),
        (2, ("--plot", tmp_path / "logo.svg")),
    ):  # fmt: skip
        outcome = command(*words, *more)
        assert (outcome.code, outcome.out) == (code, "")
        assert "[1/2]" not in outcome.err


def test_stems_of_another_length_are_told(command: Callable, tmp_path: Path) -> None:
    for name, seconds in (("mixture", 4), ("vocals", 2)):
        (tmp_path / "data/song").mkdir(parents=True, exist_ok=True)
        write(tmp_path / "data/song" / f"{name}.wav", noise(0, seconds), RATE)
    shutil.copytree(tmp_path / "data", tmp_path / "stems")
    outcome = command("evaluate", "--data", tmp_path / "data", "--stems", tmp_path / "stems")
    assert outcome.code == 0 and "vocals.wav lasts 2.00 s and mixture.wav 4.00 s" in outcome.err
    outcome = command("evaluate", "--data", tmp_path / "data", "--stems", tmp_path / "nowhere")
    assert outcome.code == 5 and "no such folder" in outcome.err


def test_songs_are_scored_on_one_device(command: Callable, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vocalremover.devices.choose_devices", lambda chosen: ["cuda:0", "cuda:1"])
    outcome = command("evaluate", "--data", data, "-d", "all")
    assert outcome.code == 2 and "scored on one" in outcome.err


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_what_was_scored_is_told_if_the_rest_fails(
    command: Callable, data: Path, stems: Path, words: tuple[str, ...]
) -> None:
    (stems / "two/vocals.wav").write_text("no sound")
    outcome = command("evaluate", "--data", data, "--stems", stems, *words)
    assert outcome.code == 1
    assert "two/vocals.wav" in outcome.err
    assert "test/one" in outcome.out
    if words:
        (result,) = json.loads(outcome.out)["results"]
        assert [song["song"] for song in result["songs"]] == ["test/one"]


def test_a_plot_takes_names_of_any_letters(data: Path) -> None:
    scores = [replace(score(find_songs(data)[0], separated(Halver())), song="b\udce4d\x07 <1>")]
    drawn = ElementTree.fromstring(draw({"a\x00b": scores}).encode())
    assert r"b\udce4d\x07 <1>" in "".join(drawn.itertext())
    assert r"a\x00b" in "".join(drawn.itertext())


def test_the_command_needs_something_to_score(data: Path, capsys: pytest.CaptureFixture) -> None:
    for words in (["--plot", "scores.jpg", "--stems", str(data)], ["--data", str(data / "nowhere")]):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", "--data", str(data), *words])
        assert ended.value.code in (2, 5)
