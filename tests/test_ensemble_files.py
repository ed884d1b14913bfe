"""Stems made elsewhere are combined where they belong together and refused, in a sentence, where they do not."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from voices import noise

from vocalremover.audio import Encoding, Reader, Tags, Writer, read, write
from vocalremover.ensemble import Rule, combine_files
from vocalremover.errors import AudioError, UsageError
from vocalremover.streams import placed

FLOAT = Encoding("wav", "32f")
RATE = 44100


def music(samples: int, seed: int = 0, rate: int = RATE) -> Tensor:
    """`[2, samples]` that sounds below 8 kHz, so that neither a codec nor a resampler takes much of it."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal((2, samples)))
    spectrum[:, int(8000 / rate * samples) :] = 0
    audio = np.fft.irfft(spectrum, samples)
    return torch.from_numpy((0.1 * audio / audio.std()).astype(np.float32))


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    def write_float(name: str, audio: Tensor, rate: int = RATE) -> Path:
        write(tmp_path / name, audio, rate, FLOAT)
        return tmp_path / name

    return write_float


def combined(paths: list[Path], rule: str | Rule, **how: object) -> Tensor:
    out = paths[0].parent / "out" / "combined.wav"
    combine_files(paths, out, rule, FLOAT, overwrite=True, **how)
    return read(out)[0]


@pytest.mark.parametrize(
    "rule", ["min_wave", "max_wave", "avg_wave", "median_wave", "min_fft", "max_fft", "median_fft"]
)
def test_equal_files_are_their_own_combination(rule: str, put: Callable[..., Path]) -> None:
    song = noise(2, 30011)
    assert_close(combined([put(f"{n}.wav", song) for n in range(3)], rule), song, rtol=0, atol=2e-6)


def test_the_rule_is_one_of_what_the_files_hold(put: Callable[..., Path]) -> None:
    """Of multiples of one sound the multiples: the quietest, the loudest, the mean, the one in the middle."""
    song = noise(2, 30011)
    paths = [put(f"{share}.wav", share * song) for share in (0.2, 1.0, 0.4)]
    for rule, share in {"min": 0.2, "max_fft": 1.0, "median": 0.4, "min_wave": 0.2, "avg_fft": 1.6 / 3}.items():
        assert_close(combined(paths, rule), share * song, rtol=0, atol=2e-6)
    weighted = combined(paths, Rule("avg", "wave", (1, 0, 3)))
    assert_close(weighted, 0.35 * song, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lag", [1, -1, 1105, -1105, 4400, -4400])
@pytest.mark.parametrize("similar", [True, False])
def test_a_lag_is_undone(lag: int, similar: bool, put: Callable[..., Path]) -> None:
    """Of another estimate of the same stem too; what lies before its beginning is silent."""
    song = music(200_000)
    other = song + 0.3 * music(200_000, seed=1) if similar else song
    moved = torch.cat(list(placed([other], -lag, 200_000)), dim=-1)
    paths = [put("a.wav", song), put("b.wav", moved)]
    out = paths[0].with_name("c.wav")
    warnings = combine_files(paths, out, "avg_wave", FLOAT)
    inner = slice(abs(lag), -abs(lag))
    assert_close(read(out)[0][:, inner], ((song + other) / 2)[:, inner], rtol=0, atol=1e-6)
    side = "behind" if lag > 0 else "ahead"
    assert any(f"{abs(lag)} samples" in warning and side in warning for warning in warnings)
    untouched = combined(paths, "avg_wave", align=False)
    assert_close(untouched, (song + moved) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("other", ["silence", "another song", "a note"])
def test_no_lag_is_made_up(other: str, put: Callable[..., Path]) -> None:
    song = music(150_000)
    note = 0.3 * torch.sin(2 * torch.pi * 441 / RATE * torch.arange(150_000)).expand(2, -1)
    audio = {"silence": torch.zeros_like(song), "another song": music(150_000, seed=5), "a note": note}[other]
    first = note if other == "a note" else song
    paths = [put("a.wav", first), put("b.wav", audio)]
    assert combine_files(paths, paths[0].with_name("c.wav"), "avg_wave", FLOAT) == []
    assert_close(read(paths[0].with_name("c.wav"))[0], (first + audio) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("extra", [-4000, -700, 700, 4000])
def test_ends_that_differ_a_little(extra: int, put: Callable[..., Path]) -> None:
    """The first file tells the length: others are cut, or end in silence."""
    song = music(100_000)
    longer = torch.cat((song, music(5000, seed=2)), dim=-1)[:, : 100_000 + extra]
    paths = [put("a.wav", song), put("b.wav", longer)]
    out = paths[0].with_name("c.wav")
    warnings = combine_files(paths, out, "avg_wave", FLOAT)
    assert len(warnings) == 1 and str(abs(extra)) in warnings[0]
    kept = torch.nn.functional.pad(longer[:, :100_000], (0, max(-extra, 0)))
    assert_close(read(out)[0], (song + kept) / 2, rtol=0, atol=1e-6)


def test_another_rate_is_converted(put: Callable[..., Path]) -> None:
    """Two seconds of the same notes at two rates lie on each other."""
    sounds = {}
    for rate in (44100, 48000):
        seconds = torch.arange(2 * rate) / rate
        notes = [torch.sin(2 * torch.pi * hertz * seconds) for hertz in (220, 331, 1000.5, 2500)]
        swell = torch.linspace(0, 1, len(seconds)) * (1 - torch.linspace(0, 1, len(seconds)))
        sounds[rate] = (0.2 * sum(notes) * swell).expand(2, -1)
    paths = [put("a.wav", sounds[44100]), put("b.wav", sounds[48000], 48000)]
    out = paths[0].with_name("c.wav")
    assert any("48000 to 44100" in warning for warning in combine_files(paths, out, "avg_wave", FLOAT))
    audio, rate = read(out)
    assert rate == 44100
    assert_close(audio, sounds[44100], rtol=0, atol=1e-3)


def test_what_a_lossy_file_delays_is_undone(tmp_path: Path, put: Callable[..., Path]) -> None:
    """An mp3 without a header that tells its delay comes 1105 samples late, and longer."""
    song = music(120_000)
    write(tmp_path / "b.mp3", song, RATE, Encoding("mp3", bitrate=320_000))
    data = (tmp_path / "b.mp3").read_bytes()
    start = 10 + int("".join(f"{byte:07b}" for byte in data[6:10]), 2) if data[:3] == b"ID3" else 0
    second = data.index(data[start : start + 2], start + 4)  # the first frame holds the header alone
    (tmp_path / "b.mp3").write_bytes(data[second:])
    first = put("a.wav", song)
    warnings = combine_files([first, tmp_path / "b.mp3"], tmp_path / "c.wav", "avg_wave", FLOAT)
    assert any("behind" in warning for warning in warnings)
    assert_close(read(tmp_path / "c.wav")[0][:, 5000:-5000], song[:, 5000:-5000], rtol=0, atol=0.01)


def test_tags_and_format_of_the_result(tmp_path: Path, put: Callable[..., Path]) -> None:
    song = noise(2, 20000)
    with Writer(tmp_path / "a.flac", RATE, 2, Encoding("flac"), Tags(title="A title")) as writer:
        writer.write(song)
    combine_files([tmp_path / "a.flac", put("b.wav", song)], tmp_path / "deep" / "er" / "c.flac", "avg")
    with Reader(tmp_path / "deep" / "er" / "c.flac") as reader:
        assert reader.tags.title == "A title" and reader.samples == 20000


def test_too_loud_for_integers(put: Callable[..., Path]) -> None:
    loud = 2 * torch.ones(2, 5000)
    paths = [put("a.wav", loud), put("b.wav", loud)]
    out = paths[0].with_name("c.wav")
    assert any("6.02 dB" in warning for warning in combine_files(paths, out, "max_wave"))
    assert combine_files(paths, out, "max_wave", FLOAT, overwrite=True) == []


def test_what_is_refused(put: Callable[..., Path], tmp_path: Path) -> None:
    """Everything in a sentence that names the file; and nothing is left behind."""
    song = noise(2, 50_000)
    first, second, out = put("a.wav", song), put("b.wav", song), tmp_path / "new" / "c.wav"
    short, mono = put("short.wav", song[:, :40_000]), put("mono.wav", song[:1])
    with pytest.raises(AudioError, match=r"short\.wav lasts 0\.91 s and .*a\.wav 1\.13 s"):
        combine_files([first, short], out)
    with pytest.raises(AudioError, match=r"mono\.wav has 1 channels"):
        combine_files([first, mono], out)
    with pytest.raises(AudioError, match=r"absent\.wav"):
        combine_files([first, tmp_path / "absent.wav"], out)
    for paths, rule in [([first], "avg"), ([first, second], "original"), ([first, second], "best")]:
        with pytest.raises(UsageError):
            combine_files(paths, out, rule)
    with pytest.raises(UsageError, match="2 files and 3 weights"):
        combine_files([first, second], out, Rule("avg", weights=(1, 1, 1)))
    with pytest.raises(UsageError, match="one of the files to combine"):
        combine_files([first, second], first, overwrite=True)
    with pytest.raises(UsageError, match="no format"):
        combine_files([first, second], out.with_suffix(".doc"))
    with pytest.raises(AudioError, match="exists already"):
        combine_files([first, second], short)
    assert not out.exists() and {path.name for path in tmp_path.rglob("*.*")} == {
        p.name for p in (first, second, short, mono)
    }


def test_progress_sees_both_passes(put: Callable[..., Path]) -> None:
    seen: dict[str, int] = {}

    def counting(blocks: Iterable[Tensor], stage: str, samples: int | None) -> Iterator[Tensor]:
        assert samples == 150_000
        for block in blocks:
            seen[stage] = seen.get(stage, 0) + block.shape[-1]
            yield block

    song = noise(2, 150_000)
    combined([put("a.wav", song), put("b.wav", song)], "min", progress=counting)
    assert seen == {"measuring": 150_000, "combining": 150_000}
