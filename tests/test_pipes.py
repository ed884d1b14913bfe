"""Streams: a song that comes once through a pipe, a stem that goes as it is made, and both ends closing early."""

import io
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import FakeSeparator, noise
from torch import Tensor
from torch.testing import assert_close

from vocalremover import batch
from vocalremover.audio import Encoding, PipeReader, PipeWriter, Reader, Tags, read, write
from vocalremover.batch import Result, Settings
from vocalremover.errors import AudioError, UsageError

SONG = noise(70001)
ROOT = Path(__file__).parent.parent
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def vocals(encoding: Encoding | None = None, **more: object) -> Settings:
    return Settings(stems=("vocals",), encoding=encoding or Encoding("wav", "32f"), **more)


def piped(content: bytes, settings: Settings, separator: FakeSeparator | None = None) -> tuple[bytes, Result]:
    """What comes out of a real pipe when `content` goes into another, byte by byte as they like."""
    (source, feed), (drain, sink) = os.pipe(), os.pipe()
    came: list[bytes] = []

    def write_all() -> None:
        with os.fdopen(feed, "wb") as pipe:
            pipe.write(content)

    def read_all() -> None:
        with os.fdopen(drain, "rb") as pipe:
            came.append(pipe.read())

    threads = [threading.Thread(target=write_all), threading.Thread(target=read_all)]
    for thread in threads:
        thread.start()
    with os.fdopen(source, "rb") as incoming, os.fdopen(sink, "wb") as outgoing:
        result = batch.pipe(incoming, outgoing, separator or FakeSeparator(1.0), settings)
    for thread in threads:
        thread.join()
    return came[0], result


def encoded(tmp_path: Path, encoding: Encoding) -> bytes:
    path = tmp_path / f"song.{encoding.format}"
    write(path, SONG, 44100, encoding, Tags(title="Title", artist="Ä"))
    return path.read_bytes()


# In


@pytest.mark.parametrize("name", ["wav 16", "wav 24", "wav 32f", "flac 24", "ogg", "opus", "m4a"])
@pytest.mark.parametrize("measures", [False, True])
def test_a_stream_is_heard_as_the_file_is(tmp_path: Path, name: str, measures: bool) -> None:
    content = encoded(tmp_path, Encoding(*name.split()))
    out, result = piped(content, vocals(), FakeSeparator(1.0, needs_peak=measures))
    song, rate = read(tmp_path / f"song.{name.split()[0]}")
    (tmp_path / "out.wav").write_bytes(out)
    heard, out_rate = read(tmp_path / "out.wav")
    assert out_rate == rate
    assert_close(heard, song, rtol=0, atol=1e-6)
    assert result.duration == pytest.approx(song.shape[1] / rate)
    assert result.warnings == ()


def test_an_mp3_has_at_most_its_last_frames_too_many(tmp_path: Path) -> None:
    out, _ = piped(encoded(tmp_path, Encoding("mp3")), vocals())
    song, _ = read(tmp_path / "song.mp3")
    (tmp_path / "out.wav").write_bytes(out)
    heard, _ = read(tmp_path / "out.wav")
    assert 0 <= heard.shape[1] - song.shape[1] < 2 * 1152
    assert_close(heard[:, : song.shape[1]], song, rtol=0, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"x", b"A letter, not a song.\n" * 999, bytes(5000), b"RIFF\0\0\0\0WAVE"])
@pytest.mark.parametrize("measures", [False, True])
def test_what_is_no_song_is_told(content: bytes, measures: bool) -> None:
    with pytest.raises(AudioError, match="standard input") as failure:
        piped(content, vocals(), FakeSeparator(needs_peak=measures))
    assert "vocalremover-" not in str(failure.value)


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_a_stream_that_ends_early_is_told(tmp_path: Path, form: str) -> None:
    content = encoded(tmp_path, Encoding(form))
    out, result = piped(content[: len(content) // 2], vocals())
    assert any("truncated" in warning for warning in result.warnings)
    (tmp_path / "out.wav").write_bytes(out)
    assert 0 < read(tmp_path / "out.wav")[0].shape[1] < SONG.shape[1]


def test_a_title_is_not_taken_for_the_song(tmp_path: Path) -> None:
    write(tmp_path / "song.wav", SONG, 44100, Encoding("wav"), Tags(title="Metadata fmt song"))
    content = (tmp_path / "song.wav").read_bytes()
    assert piped(content, vocals())[1].warnings == ()
    assert any("0.8 s are missing" in each for each in piped(content[: len(content) // 2], vocals())[1].warnings)


def test_a_wav_of_unknown_length_is_whole(tmp_path: Path) -> None:
    first, _ = piped(encoded(tmp_path, Encoding("wav", "32f")), vocals())
    second, result = piped(first, vocals())
    for number, out in enumerate((first, second)):
        (tmp_path / f"{number}.wav").write_bytes(out)
        assert torch.equal(read(tmp_path / f"{number}.wav")[0], SONG)
    assert result.warnings == ()


def test_samples_that_are_no_numbers_are_repaired_and_told() -> None:
    bad = SONG[:, :1000].clone()
    bad[0, 5] = float("nan")
    _, result = piped(piped_floats(bad), vocals())
    assert any("1 samples that were not numbers" in warning for warning in result.warnings)


def piped_floats(song: Tensor) -> bytes:
    """A wav of 32-bit floats, whatever they are."""
    return header(44100, 2) + song.T.contiguous().numpy().astype("<f4").tobytes()


def header(rate: int, channels: int) -> bytes:
    file = io.BytesIO()
    with PipeWriter(file, rate, channels, Encoding("wav", "32f")):
        pass
    return file.getvalue()


def test_a_file_that_is_named_is_read_as_a_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "song", SONG.T.numpy(), 44100, format="CAF", subtype="ALAC_24")
    sink = io.BytesIO()
    result = batch.pipe(tmp_path / "song", sink, FakeSeparator(1.0), vocals())
    assert result.duration == pytest.approx(SONG.shape[1] / 44100)
    (tmp_path / "text").write_text("no song")
    with pytest.raises(AudioError, match="text: cannot be decoded"):
        batch.pipe(str(tmp_path / "text"), sink, FakeSeparator(1.0), vocals())


def test_a_caf_comes_through_a_pipe_though_its_index_is_at_its_end(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "song", SONG.T.numpy(), 44100, format="CAF", subtype="ALAC_24")
    _, result = piped((tmp_path / "song").read_bytes(), vocals())
    assert result.duration == pytest.approx(SONG.shape[1] / 44100)


def test_a_stream_that_cannot_be_kept_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(tmp_path, Encoding("wav"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(AudioError, match="standard input cannot be kept"):
        batch.pipe(io.BytesIO(content), io.BytesIO(), FakeSeparator(needs_peak=True), vocals())


@pytest.mark.parametrize("start", [3000, 100000])
def test_an_exception_while_reading_is_not_lost(tmp_path: Path, start: int) -> None:
    class Stopping(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            if self.tell() > start:
                raise KeyboardInterrupt
            return super().read1(min(size, 2000))

    with pytest.raises(KeyboardInterrupt):
        batch.pipe(Stopping(encoded(tmp_path, Encoding("flac"))), io.BytesIO(), FakeSeparator(1.0), vocals())


@pytest.mark.parametrize(("failure", "told"), [(KeyboardInterrupt, None), (OSError(5, "I/O error"), "read: I/O error")])
@pytest.mark.parametrize(("form", "measures"), [("m4a", False), ("wav", True)])
def test_an_exception_while_a_stream_is_kept_is_not_its_end(
    tmp_path: Path, failure: BaseException, told: str | None, form: str, measures: bool
) -> None:
    class Stopping(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            if self.tell() > 10000:
                raise failure
            return super().read1(min(size, 2000))

    song, sink = Stopping(encoded(tmp_path, Encoding(form))), io.BytesIO()
    with pytest.raises(AudioError if told else KeyboardInterrupt, match=told):
        batch.pipe(song, sink, FakeSeparator(1.0, measures), vocals())
    assert sink.getvalue() == b""


# Out


@pytest.mark.parametrize("name", ["wav 16", "wav 24", "wav 32f", "flac 16", "flac 24", "ogg", "opus", "mp3"])
def test_every_streamable_format_can_be_read_again(tmp_path: Path, name: str) -> None:
    encoding = Encoding(*name.split())
    out, _ = piped(encoded(tmp_path, Encoding("flac", "24")), vocals(encoding))
    path = tmp_path / f"out.{encoding.format}"
    path.write_bytes(out)
    with Reader(path) as reader:
        heard = torch.cat(list(reader.blocks()), dim=1)
        assert reader.tags.title == "Title (Vocals)"
        assert reader.tags.artist == "Ä"
        assert reader.warnings == []
    if encoding.bits:  # two dithered steps of 16 bits
        assert_close(heard, SONG, rtol=0, atol=2**-14 if encoding.bits == "16" else 2**-22)
    else:
        # An mp3 tells the delay and padding of its encoder in a header that only a file can have.
        surplus = 3 * 1152 if encoding.format == "mp3" else 1
        assert 0 <= heard.shape[1] - round(SONG.shape[1] * reader.rate / 44100) <= surplus
    if encoding.format == "wav":
        assert out[4:8] == b"\xff" * 4  # "up to the end", as FFmpeg and sox have it


def test_six_channels_and_their_places_go_through_a_pipe(tmp_path: Path) -> None:
    song = noise(5000, channels=6)
    write(tmp_path / "song.wav", song, 48000, Encoding("wav", "32f"))
    out, _ = piped((tmp_path / "song.wav").read_bytes(), vocals())
    (tmp_path / "out.wav").write_bytes(out)
    with Reader(tmp_path / "out.wav") as reader:
        assert (reader.channels, reader.rate, reader.layout) == (6, 48000, "5.1")
        assert torch.equal(torch.cat(list(reader.blocks()), dim=1), song)


def test_what_is_ready_is_flushed_at_once() -> None:
    """The first samples come out before the last ones went in."""
    (source, feed), (drain, sink) = os.pipe(), os.pipe()
    content = piped_floats(noise(1 << 20))
    half = len(content) // 2
    heard: list[int] = []

    def talk() -> None:
        with os.fdopen(feed, "wb", buffering=0) as pipe:
            pipe.write(content[:half])
            assert first.wait(60)
            pipe.write(content[half:])

    def listen() -> None:
        with os.fdopen(drain, "rb", buffering=0) as pipe:
            while piece := pipe.read(1 << 16):
                heard.append(len(piece))
                if sum(heard) > half // 2:
                    first.set()

    first = threading.Event()
    threads = [threading.Thread(target=talk), threading.Thread(target=listen)]
    for thread in threads:
        thread.start()
    with os.fdopen(source, "rb") as incoming, os.fdopen(sink, "wb") as outgoing:
        batch.pipe(incoming, outgoing, FakeSeparator(1.0), vocals())
    for thread in threads:
        thread.join()
    assert sum(heard) == len(content)


def test_memory_does_not_grow_with_the_stream() -> None:
    """Two hours of silence at 8 kHz: 230 MB in and as much out."""

    class Endless(io.RawIOBase):
        left = 2 * 3600 * 8000 * 4

        def readable(self) -> bool:
            return True

        def readinto(self, target: bytearray) -> int:
            count = min(len(target), self.left)
            target[:count] = bytes(count)
            self.left -= count
            return count

    class Nowhere(io.RawIOBase):
        written = 0

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            self.written += len(data)
            return len(data)

    class Chain(io.RawIOBase):
        def __init__(self) -> None:
            self.parts = [io.BytesIO(header(8000, 1)), Endless()]

        def readable(self) -> bool:
            return True

        def readinto(self, target: bytearray) -> int:
            count = self.parts[0].readinto(target)
            if not count and len(self.parts) > 1:
                self.parts.pop(0)
                return self.readinto(target)
            return count

    sink, most = Nowhere(), []

    def progress(blocks: Iterable[Tensor], *rest: object) -> Iterator[Tensor]:
        for number, block in enumerate(blocks):
            if number % 100 == 50:
                most.append(resident())
            yield block

    result = batch.pipe(io.BufferedReader(Chain()), io.BufferedWriter(sink), FakeSeparator(), vocals(), progress)
    assert result.duration == 2 * 3600
    assert sink.written == len(header(8000, 1)) + 2 * 3600 * 8000 * 4
    assert max(most) - most[0] < 8 << 20


def resident() -> int:
    """Bytes that this process has in memory."""
    with open("/proc/self/statm", encoding="ascii") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# What cannot be


def test_settings_that_no_stream_can_follow(tmp_path: Path) -> None:
    source, sink = io.BytesIO(encoded(tmp_path, Encoding("wav"))), io.BytesIO()
    with pytest.raises(UsageError, match="one stem"):
        batch.pipe(source, sink, FakeSeparator(), Settings())
    with pytest.raises(UsageError, match="no stem 'drums'"):
        batch.pipe(source, sink, FakeSeparator(), Settings(stems=("drums",)))
    with pytest.raises(UsageError, match="rescale"):
        batch.pipe(source, sink, FakeSeparator(), vocals(clip="rescale"))
    with pytest.raises(UsageError, match="m4a cannot be written into a pipe; choose one of wav, flac"):
        batch.pipe(source, sink, FakeSeparator(), vocals(Encoding("m4a")))
    assert sink.getvalue() == b""


def test_a_stem_is_clamped_only_when_asked(tmp_path: Path) -> None:
    content = encoded(tmp_path, Encoding("wav", "32f"))
    for clip, top in (("none", 8 * float(SONG.abs().max())), ("clamp", 1.0)):
        out, result = piped(content, vocals(clip=clip), FakeSeparator(8.0))
        (tmp_path / "out.wav").write_bytes(out)
        assert float(read(tmp_path / "out.wav")[0].abs().max()) == pytest.approx(top)
        assert result.peaks["vocals"] == pytest.approx(8 * float(SONG.abs().max()))
    warning = piped(content, vocals(Encoding("wav", "16")), FakeSeparator(8.0))[1].warnings[-1]
    assert "of standard input exceeds" in warning and "--bits 32f" in warning and "rescale" not in warning


def test_a_disk_that_is_full_is_told() -> None:
    told = pytest.raises(AudioError, match=r"standard output: cannot be written, the disk is full")
    with open("/dev/full", "wb", buffering=0) as full, told:
        batch.pipe(io.BytesIO(piped_floats(SONG)), full, FakeSeparator(), vocals())


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "ogg", "opus"])
def test_a_reader_who_leaves_ends_it_with_a_broken_pipe(name: str) -> None:
    drain, sink = os.pipe()
    os.close(drain)
    with pytest.raises(BrokenPipeError), os.fdopen(sink, "wb", buffering=0) as outgoing:
        batch.pipe(io.BytesIO(piped_floats(SONG)), outgoing, FakeSeparator(), vocals(Encoding(name)))


def test_a_pipe_reader_hands_its_song_out_once(tmp_path: Path) -> None:
    with PipeReader(io.BytesIO(encoded(tmp_path, Encoding("flac")))) as reader:
        assert reader.samples is None
        assert sum(block.shape[1] for block in reader.blocks()) == SONG.shape[1]
        with pytest.raises(AudioError):
            list(reader.blocks())  # of a song that should have sound in it


# The command


def separate(*words: object, **more: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "vocalremover", "separate", *map(str, words)],
        env=ONE_THREAD, capture_output=True, check=False, timeout=300, **more,
    )  # fmt: skip


def test_the_command_between_two_pipes(make_song: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    song = make_song(samples=60000, rate=48000, bits="32f")
    words = ("-m", tiny_model, "-d", "cpu", "--stem", "vocals", "--bits", "32f", "-q")
    done = separate("-", *words, input=song.read_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "out.wav").write_bytes(done.stdout)
    assert separate(song, *words).returncode == 0
    assert_close(read(tmp_path / "out.wav")[0], read(tmp_path / "song_Vocals.wav")[0], rtol=0, atol=1e-6)
    assert sorted(os.listdir(tmp_path)) == sorted([batch.JOURNAL, "out.wav", "song.wav", "song_Vocals.wav"])


@pytest.mark.parametrize("closed", [False, True])
def test_the_command_with_nothing_on_stdin(tiny_model: Path, closed: bool) -> None:
    words = ("-", "-m", tiny_model, "-d", "cpu", "--stem", "vocals")
    shut = {"preexec_fn": lambda: os.close(0)} if closed else {"stdin": subprocess.DEVNULL}
    done = separate(*words, **shut)
    assert done.returncode in (1, 2)
    assert b"Traceback" not in done.stderr
    assert b"standard input" in done.stderr or b"stdin" in done.stderr
    assert done.stdout == b""


def test_the_command_whose_reader_leaves(make_song: Callable[..., Path], tiny_model: Path) -> None:
    song = make_song(samples=500000)
    process = subprocess.Popen(
        [sys.executable, "-m", "vocalremover", "separate", "-", "-m", tiny_model, "-d", "cpu", "--stem=vocals", "-q"],
        stdin=song.open("rb"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ONE_THREAD,
    )  # fmt: skip
    process.stdout.read(100)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=300) == 1
