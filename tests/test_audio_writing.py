"""What is written comes back: same length, same place, same level; and a file is whole or not there."""

import errno
import io
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vocalremover.audio import FORMATS, Encoding, Reader, Tags, Writer, read, resample, wav, write
from vocalremover.errors import AudioError, UsageError

LOSSY = ["mp3", "ogg", "opus", "m4a"]
RATES = {
    "wav": [8000, 44100, 192000],
    "flac": [8000, 44100, 192000],
    "mp3": [8000, 22050, 44100, 48000],
    "ogg": [8000, 44100, 192000],
    "opus": [8000, 44100, 48000, 96000],
    "m4a": [8000, 44100, 96000],
}


def noise(channels: int, samples: int, seed: int = 0) -> Tensor:
    """Noise of the lower third of the band, which every codec keeps; no two channels are alike."""
    white = torch.randn(channels, 1, samples + 14, generator=torch.Generator().manual_seed(seed))
    window = torch.hann_window(17)[1:-1]
    return 0.2 * torch.nn.functional.conv1d(white, (window / window.sum())[None, None])[:, 0]


def lag(late: Tensor, early: Tensor) -> int:
    """By how many samples the first comes after the second, from their cross-correlation."""
    size = late.shape[-1] + early.shape[-1]
    best = torch.fft.irfft(torch.fft.rfft(late, size) * torch.fft.rfft(early, size).conj(), size).argmax().item()
    return best if best <= size // 2 else best - size


def expected(song: Tensor, rate: int, name: str) -> tuple[Tensor, int]:
    """The song as the format holds it: opus knows 48 kHz only."""
    if name != "opus" or rate == 48000:
        return song, rate
    return torch.cat(list(resample([song], rate, 48000)), dim=1), 48000


@pytest.mark.parametrize(("name", "rate"), [(name, rate) for name in FORMATS for rate in RATES[name]])
@pytest.mark.parametrize("channels", [1, 2])
def test_length_place_and_level_of_a_song_come_back(tmp_path: Path, name: str, rate: int, channels: int) -> None:
    song = noise(channels, 20011)
    write(tmp_path / "song", song, rate, Encoding(name))
    wanted, wanted_rate = expected(song, rate, name)
    with Reader(tmp_path / "song") as reader:
        assert (reader.rate, reader.channels, reader.samples) == (wanted_rate, *wanted.shape)
        found = torch.cat(list(reader.blocks()), dim=1)
        assert reader.warnings == []
    assert found.shape == wanted.shape
    for heard, meant in zip(found, wanted, strict=True):
        assert lag(heard, meant) == 0
        assert torch.corrcoef(torch.stack([heard, meant]))[0, 1] > (0.95 if name in LOSSY else 0.999999)
        # A codec may lose a little of the band's top, never a tenth of the level.
        assert heard.std() / meant.std() == pytest.approx(1, abs=0.1 if name in LOSSY else 1e-5)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "mp3"])
@pytest.mark.parametrize("channels", [3, 4, 5, 6, 7, 8])
def test_no_loudspeaker_is_lost_or_moved(tmp_path: Path, name: str, channels: int) -> None:
    song = noise(channels, 20011)
    write(tmp_path / "song", song, 48000, Encoding(name))
    with Reader(tmp_path / "song") as reader:
        assert reader.layout == {3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}[channels]
        found = torch.cat(list(reader.blocks()), dim=1)
    assert found.shape == song.shape
    likeness = torch.corrcoef(torch.cat([song, found]))[:channels, channels:]
    assert likeness.argmax(dim=1).tolist() == list(range(channels))
    # The channel for bass is cut off above 120 Hz by lossy codecs.
    kept = [index for index in range(channels) if name not in LOSSY or channels < 6 or index != 3]
    assert likeness.diagonal()[kept].min() > 0.95


@pytest.mark.parametrize("layout", ["2.1", "3.0(back)", "4.0", "4.1", "3.1", "6.0", "6.0(front)", "hexagonal", "7.0"])
def test_m4a_keeps_a_layout_or_refuses_it(tmp_path: Path, layout: str) -> None:
    channels = av.AudioLayout(layout).nb_channels
    try:
        writer = Writer(tmp_path / "song", 48000, channels, Encoding("m4a"), layout=layout)
    except UsageError as error:
        assert layout in str(error)
        assert layout not in ("2.1", "3.0(back)", "4.0")
        return
    with writer:
        writer.write(noise(channels, 20011))
    assert Reader(tmp_path / "song").layout == layout


@pytest.mark.parametrize("layout", ["5.1.4", "7.1.4"])
def test_loudspeakers_above_are_named_in_a_wav(tmp_path: Path, layout: str) -> None:
    channels = av.AudioLayout(layout).nb_channels
    with Writer(tmp_path / "song", 48000, channels, layout=layout) as writer:
        writer.write(noise(channels, 1000))
    assert Reader(tmp_path / "song").layout == layout


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("samples", [47, 100, 1000])
def test_the_shortest_songs_keep_their_length(tmp_path: Path, name: str, samples: int) -> None:
    write(tmp_path / "song", noise(2, samples), 48000, Encoding(name))
    assert read(tmp_path / "song")[0].shape == (2, samples)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("samples", [0, 1])
def test_songs_of_no_or_one_sample_can_be_read_again(tmp_path: Path, name: str, samples: int) -> None:
    write(tmp_path / "song", torch.zeros(2, samples), 48000, Encoding(name))
    # Lossy formats cannot hold nothing, and LAME nothing below 47 samples.
    least = {"wav": 0, "flac": 0, "mp3": 47}.get(name, 1)
    assert read(tmp_path / "song")[0].shape == (2, max(samples, least))


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(0, 3000),
    channels=st.integers(1, 8),
    block=st.integers(1, 1500),
    bits=st.sampled_from(["16", "24", "32f"]),
    loudness=st.floats(0.001, 3),
)
def test_wav_errors_are_below_half_a_unit(
    tmp_path_factory: pytest.TempPathFactory, samples: int, channels: int, block: int, bits: str, loudness: float
) -> None:
    path = tmp_path_factory.mktemp("wav") / "song"
    song = loudness * (2 * torch.rand(channels, samples, generator=torch.Generator().manual_seed(samples)) - 1)
    with Writer(path, 44100, channels, Encoding("wav", bits)) as writer:
        for part in song.split(block, dim=1) if samples else []:
            writer.write(part)
    assert writer.peak == (song.abs().max() if samples else 0)
    found, _ = read(path)
    assert found.shape == song.shape
    if bits == "32f":
        assert torch.equal(found, song)
        return
    # Beyond full scale the nearest integer is kept; wrapping round would be wrong by 2. TPDF dither adds one unit.
    unit = 2.0 ** (1 - int(bits))
    nearest = song.clamp(-1, 1 - unit)
    assert samples == 0 or (found - nearest).abs().max() <= unit * (1.5 if bits == "16" else 0.5) * (1 + 1e-6)


@pytest.mark.parametrize("bits", ["16", "24"])
def test_flac_holds_the_same_samples_as_wav(tmp_path: Path, bits: str) -> None:
    song = 6 * noise(2, 30000)
    for name in ("wav", "flac"):
        write(tmp_path / name, song, 44100, Encoding(name, bits))
    assert soundfile.info(str(tmp_path / "flac")).subtype == f"PCM_{bits}"
    assert torch.equal(read(tmp_path / "wav")[0], read(tmp_path / "flac")[0])


def test_dither_makes_the_error_independent_of_the_song(tmp_path: Path) -> None:
    # A tone of a third of a unit would vanish by rounding alone.
    tone = torch.sin(torch.arange(200000) / 50)[None] * 2**-15 / 3
    write(tmp_path / "song", tone, 44100, Encoding("wav", "16"))
    found, _ = read(tmp_path / "song")
    assert (found @ tone.T).item() == pytest.approx((tone @ tone.T).item(), rel=0.05)
    # Rounding (1/12) and triangular dither (1/6 of a squared unit) are all there is.
    assert (found - tone).var().item() == pytest.approx(2.0**-30 / 4, rel=0.05)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_dither_is_the_same_however_a_song_is_cut(tmp_path: Path, channels: int) -> None:
    song = noise(channels, 9999)
    written = []
    for block in (9999, 1001, 7):
        with Writer(tmp_path / "song", 44100, channels, Encoding("wav", "16")) as writer:
            for part in song.split(block, dim=1):
                writer.write(part)
        written.append((tmp_path / "song").read_bytes())
    assert written[0] == written[1] == written[2]


def test_silence_stays_silent(tmp_path: Path) -> None:
    write(tmp_path / "song", torch.zeros(2, 5000), 44100, Encoding("wav", "16"))
    assert not read(tmp_path / "song")[0].any()


@pytest.mark.parametrize("bits", ["16", "24", "32f"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_wav_beyond_four_gigabytes_is_an_rf64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: str, channels: int
) -> None:
    song = noise(channels, 9999)
    write(tmp_path / "small", song, 44100, Encoding("wav", bits), Tags("Song"))
    monkeypatch.setattr(wav, "RIFF_LIMIT", 20000)
    write(tmp_path / "large", song, 44100, Encoding("wav", bits), Tags("Song"))
    assert (tmp_path / "small").read_bytes()[:4] == b"RIFF"
    assert (tmp_path / "large").read_bytes()[:4] == b"RF64"
    small, large = read(tmp_path / "small")[0], read(tmp_path / "large")[0]
    assert torch.equal(small, large)
    with soundfile.SoundFile(tmp_path / "large") as file:
        assert file.frames == 9999
        np.testing.assert_array_equal(file.read(dtype="float32", always_2d=True).T, large.numpy())


@pytest.mark.parametrize("name", LOSSY)
def test_other_decoders_find_the_same_length_and_place(tmp_path: Path, name: str) -> None:
    song = noise(2, 50021)
    write(tmp_path / "song", song, 48000, Encoding(name))
    with av.open(str(tmp_path / "song")) as container:
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
    found = torch.from_numpy(np.concatenate(parts, axis=1))
    # PyAV alone leaves the padding of the last frame of an m4a, whose end only its header tells.
    assert found.shape[1] == 50021 or (name == "m4a" and 0 <= found.shape[1] - 50021 < 1024)
    assert lag(found[0], song[0]) == 0
    if name != "m4a":
        found = torch.from_numpy(soundfile.read(tmp_path / "song", dtype="float32")[0].T)
        assert found.shape == song.shape
        assert lag(found[0], song[0]) == 0


@pytest.mark.parametrize("name", LOSSY)
def test_a_bitrate_is_heeded(tmp_path: Path, name: str) -> None:
    song = noise(2, 4 * 48000)
    sizes = []
    for bitrate in (96_000, 192_000):
        write(tmp_path / "song", song, 48000, Encoding(name, bitrate=bitrate))
        sizes.append((tmp_path / "song").stat().st_size * 8 / 4)
    # Vorbis and opus aim at an average over all music, which this noise is not.
    assert 60_000 < sizes[0] < 150_000
    assert sizes[1] > 1.4 * sizes[0]


@pytest.mark.parametrize(
    "settings_of", [("wma",), ("mp3", "16"), ("flac", "32f"), ("wav", "8"), ("wav", None, 192000), ("mp3", None, 1)]
)
def test_impossible_encodings_are_refused(settings_of: tuple) -> None:
    with pytest.raises(UsageError):
        Encoding(*settings_of)


def test_a_name_tells_the_format(tmp_path: Path) -> None:
    for name in FORMATS:
        assert Encoding.of(f"Song.{name.upper()}") == Encoding(name)
    with pytest.raises(UsageError, match=r"\.flac"):
        write(tmp_path / "song.xyz", noise(1, 10), 44100)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "hint"),
    [("mp3", 96000, 2, "wav or flac"), ("mp3", 44100, 6, "wav, flac, ogg, opus, m4a"), ("m4a", 192000, 2, "wav"),
     ("flac", 44100, 9, "wav"), ("wav", 0, 2, "sample rate")],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_refused_with_a_way_out(
    tmp_path: Path, name: str, rate: int, channels: int, hint: str
) -> None:
    with pytest.raises(UsageError, match=hint):
        Writer(tmp_path / "song", rate, channels, Encoding(name))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", FORMATS)
def test_an_exception_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"song.{name}"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), Writer(path, 48000, 2, Encoding(name)) as writer:
        writer.write(noise(2, 30000))
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["wav", "ogg", "flac"])
def test_an_exception_within_the_file_is_not_lost(tmp_path: Path, name: str) -> None:
    class Stopping(io.RawIOBase):
        def write(self, data: bytes) -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "song", 48000, 2, Encoding(name)) as writer:
        writer._out.file.close()
        writer._out.file = Stopping()
        writer.write(noise(2, 200000))
    assert not any(tmp_path.iterdir())


# In a process of its own: what a signal raises may leave a lock of coverage's tracer taken.
INTERRUPTED = """
import signal, sys
from pathlib import Path
import torch
from vocalremover.audio import Encoding, Writer

def stop(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, stop)
folder, song = Path(sys.argv[1]), 0.1 * torch.randn(2, 1 << 16)
for trial in range(20):
    try:
        with Writer(folder / "song", 48000, 2, Encoding(sys.argv[2])) as writer:
            signal.setitimer(signal.ITIMER_REAL, 0.01 + 0.002 * trial)
            for _ in range(200):
                writer.write(song)
    except KeyboardInterrupt:
        print(*folder.iterdir(), sep="", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="timers that signal are POSIX")
@pytest.mark.parametrize("name", ["ogg", "flac"])
def test_a_signal_while_encoding_is_not_lost(tmp_path: Path, name: str) -> None:
    words = [sys.executable, "-c", INTERRUPTED, str(tmp_path), name]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == 20 * "\n", done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_not_written(tmp_path: Path, number: float) -> None:
    song = noise(2, 100)
    song[1, 50] = number
    with pytest.raises(AudioError, match="NaN"):
        write(tmp_path / "song.wav", song, 44100)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mp3", "opus", "ogg", "m4a"])
def test_what_an_encoder_cannot_take_is_refused_by_us(tmp_path: Path, name: str) -> None:
    """Beyond all bounds LAME ends the program, and Opus writes silence."""
    old = tmp_path / f"song.{name}"
    old.write_text("old")
    with pytest.raises(AudioError, match="full scale"):
        write(old, 1e7 * noise(2, 22050), 44100)
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]
    write(old, 500 * noise(2, 22050), 44100)
    assert read(old)[0].abs().max() > 0.5


@pytest.mark.parametrize(
    "song",
    [torch.zeros(100), torch.zeros(1, 2, 100), np.zeros((2, 100)), torch.ones(2, 100, dtype=torch.int16),
     torch.zeros(2, 100, dtype=torch.complex64), torch.zeros(44100, 2), torch.zeros(2, 100).to_sparse()],
)  # fmt: skip
def test_what_is_no_song_is_not_written(tmp_path: Path, song: object) -> None:
    with pytest.raises(AudioError, match="a song is"):
        write(tmp_path / "song.wav", song, 44100)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "m4a", "ogg", "opus"])
def test_a_rate_may_be_any_kind_of_number(tmp_path: Path, name: str) -> None:
    for rate in (np.int64(44100), float(44100)):
        write(tmp_path / f"song.{name}", noise(2, 4410), rate)
    for rate in (0, -1, 44100.5, float("nan"), 1 << 40, None, "44100"):
        with pytest.raises(UsageError):
            write(tmp_path / f"song.{name}", noise(2, 4410), rate)


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    path.write_bytes(b"old")
    program = (
        "import sys, torch; from vocalremover.audio import Writer\n"
        "with Writer(sys.argv[1], 44100, 2) as writer:\n"
        "    while True: writer.write(torch.zeros(2, 1 << 16)); print('.', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as child:
        for _ in range(5):
            assert child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A disk of 128 KiB, where a user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no permission to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seconds", [5, 12])
def test_a_full_disk_is_told_and_left_clean(small_disk: Path, name: str, seconds: int) -> None:
    song = torch.rand(2, 48000 * seconds, generator=torch.Generator().manual_seed(0)) - 0.5
    with pytest.raises(AudioError, match="disk is full"):
        write(small_disk / "song", song, 48000, Encoding(name, bitrate=320_000 if name in LOSSY else None))
    assert not any(small_disk.iterdir())


@pytest.mark.parametrize("name", FORMATS)
def test_a_limit_of_size_is_told_and_left_clean(tmp_path: Path, name: str) -> None:
    song = torch.rand(2, 96000, generator=torch.Generator().manual_seed(0)) - 0.5
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(AudioError, match="grew larger"):
            write(tmp_path / "song", song, 48000, Encoding(name))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(errno.EACCES, "no permission"), (errno.EROFS, "read-only"), (errno.ENOSPC, "disk is full")],
)
def test_a_folder_that_refuses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(AudioError, match=sentence):
        write(tmp_path / "song.wav", noise(1, 10), 44100)


def test_places_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").touch()
    for path, sentence in {
        tmp_path / "missing" / "song.wav": "folder does not exist",
        tmp_path / "file" / "song.wav": "folder does not exist",
        tmp_path / "folder.wav": "a folder has this name",
        tmp_path / ("x" * 300 + ".wav"): "name is too long",
    }.items():
        with pytest.raises(AudioError, match=sentence):
            write(path, noise(1, 10), 44100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.wav"]


@pytest.mark.parametrize(
    "name", ["Größe 大 🎵", "Gro\u0308ße", "quote ' \" $(x) %s", "-i", os.fsdecode(b"caf\xe9"), "x" * 250]
)
@pytest.mark.parametrize("suffix", FORMATS)
def test_any_name_can_be_written_and_read(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"{name}.{suffix}"
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system does not take the name")
    write(path, noise(1, 500), 48000)
    assert read(path)[0].shape == (1, 500)
    assert list(tmp_path.iterdir()) == [path]


def test_writing_is_many_times_faster_than_playing(tmp_path: Path) -> None:
    song = noise(2, 20 * 44100)
    for name in ("wav", "flac"):
        start = time.process_time()
        write(tmp_path / "song", song, 44100, Encoding(name))
        # Measured: 400 and more. A shared machine may be four times slower.
        assert 20 / (time.process_time() - start) > 50
