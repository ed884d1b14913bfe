"""Whatever a person hands over, the command answers in a sentence and an exit code, and leaves no half-written file."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.testing import assert_close

from vocalremover import checkpoint
from vocalremover.audio import read
from vocalremover.batch import JOURNAL, Job, Result, Summary
from vocalremover.cli.screen import Screen
from vocalremover.models import MODELS

resource = pytest.importorskip("resource", reason="limits and permissions are POSIX")

Command = Callable[..., "object"]


@pytest.fixture
def separate(command: Command, tiny_model: Path) -> Command:
    """`vocalremover separate` with the tiny model on the CPU; checks what holds for every answer."""

    def run(*words: object) -> object:
        outcome = command("separate", "-m", tiny_model, "-d", "cpu", *words)
        assert "Traceback" not in outcome.err
        errors = [line for line in outcome.err.splitlines() if line.startswith(("error: ", "vocalremover: "))]
        assert bool(errors) == (outcome.code != 0)
        assert all(len(error) < 600 for error in errors)
        return outcome

    return run


def files(folder: Path) -> list[str]:
    """All names below a folder, hidden ones too, save for the journal's."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != JOURNAL)


def stems_of(song: Path, **folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    out = folder.get("out", song.parent)
    return tuple(read(out / f"{song.stem}_{stem}.wav")[0] for stem in ("Vocals", "Instrumental"))


# Files that are none


def test_missing_file(separate: Command, tmp_path: Path) -> None:
    outcome = separate(tmp_path / "nowhere.mp3")
    assert outcome.code == 1
    assert "nowhere.mp3" in outcome.err
    assert files(tmp_path) == []


def test_folder_without_songs(separate: Command, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no song")
    outcome = separate(tmp_path)
    assert outcome.code == 5
    assert str(tmp_path) in outcome.err


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty.mp3", b""), ("empty.wav", b""), ("text.mp3", b"A letter, not a song.\n" * 99), ("zeros.m4a", bytes(5000))],
)
def test_a_file_that_is_no_song(separate: Command, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    outcome = separate(tmp_path / name)
    assert outcome.code == 1
    assert name in outcome.err
    assert files(tmp_path) == [name]


@pytest.mark.parametrize("suffix", ["mp3", "flac", "m4a"])
@pytest.mark.parametrize("kept", [0.02, 0.6])
def test_truncated_file(separate: Command, make_song: Command, suffix: str, kept: float) -> None:
    song = make_song(f"song.{suffix}", samples=88200)
    whole = song.read_bytes()
    song.write_bytes(whole[: int(len(whole) * kept)])
    outcome = separate(song)
    if outcome.code == 0:
        assert "warning: " in outcome.err
        vocals, instrumental = stems_of(song)
        assert 0 < vocals.shape[-1] == instrumental.shape[-1] < 88200
    else:
        assert outcome.code == 1
        assert song.name in outcome.err
        assert files(song.parent) == [song.name]


def test_a_video_without_sound(separate: Command, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for packet in stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")):
            container.mux(packet)
        container.mux(stream.encode(None))
    outcome = separate(path)
    assert outcome.code == 1
    assert "film.mp4" in outcome.err


# Songs that are odd


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(separate: Command, tmp_path: Path, bad: float) -> None:
    song = tmp_path / "song.wav"
    samples = np.full((5000, 2), 0.1, np.float32)
    samples[1000:1003] = bad
    soundfile.write(song, samples, 44100, subtype="FLOAT")
    outcome = separate(song)
    assert outcome.code == 0
    assert "warning: " in outcome.err
    for stem in stems_of(song):
        assert torch.isfinite(stem).all()


def test_silence_stays_silence(separate: Command, tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    soundfile.write(song, np.zeros((30000, 2), np.float32), 44100, subtype="FLOAT")
    assert separate(song, "--bits", "32f").code == 0
    for stem in stems_of(song):
        assert torch.equal(stem, torch.zeros(2, 30000))


@pytest.mark.parametrize("samples", [0, 1, 100])
@pytest.mark.parametrize("rate", [44100, 48000])
def test_very_short_songs(separate: Command, make_song: Command, samples: int, rate: int) -> None:
    song = make_song(samples=samples, rate=rate, bits="32f")
    assert separate(song, "--bits", "32f").code == 0
    vocals, instrumental = stems_of(song)
    assert vocals.shape == (2, samples)
    assert_close(vocals + instrumental, read(song)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 2), (192000, 2), (44100, 1), (48000, 6)])
def test_rates_and_channels_stay(separate: Command, make_song: Command, rate: int, channels: int) -> None:
    song = make_song(samples=rate // 2 + 1, rate=rate, channels=channels, bits="32f")
    assert separate(song, "--bits", "32f").code == 0
    vocals, instrumental = stems_of(song)
    assert vocals.shape == (channels, rate // 2 + 1)
    assert soundfile.info(song.with_name("song_Vocals.wav")).samplerate == rate
    assert_close(vocals + instrumental, read(song)[0], rtol=0, atol=1e-6)
    assert (vocals.abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize(
    "track",
    [
        "歌 うた песня",
        "🎵 “song” 'n’ \\ [b]x {stem} %s",
        unicodedata.normalize("NFD", "Überraschung é ñ"),
        " leading and trailing ",
        "-o",
        "line\nbreak",
        "ä" * 125,
        os.fsdecode(b"latin1 \xe9\xff"),
    ],
)
def test_names_of_every_kind(separate: Command, make_song: Command, track: str) -> None:
    song = make_song()
    song = song.rename(song.with_name(f"{track}.wav"))
    outcome = separate("--json", song)
    assert outcome.code == 0
    outputs = json.loads(outcome.out)["outputs"]
    for stem in ("vocals", "instrumental"):
        assert read(outputs[stem])[0].shape == (2, 22050)
        assert len(os.fsencode(Path(outputs[stem]).name)) <= 255
    assert len(files(song.parent)) == 3
    assert separate(song, "--overwrite").code == 0


# Places that do not take a file


@pytest.fixture
def locked_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that takes no new file, not even from root."""
    folder = tmp_path / "locked"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    if not shutil.which("chattr") or subprocess.run(["chattr", "+i", folder], check=False).returncode:
        pytest.skip("root may write everywhere here")
    yield folder
    subprocess.run(["chattr", "-i", folder], check=True)


def test_no_write_permission(separate: Command, make_song: Command, locked_folder: Path) -> None:
    outcome = separate(make_song(), "-o", locked_folder)
    assert outcome.code == 1
    assert str(locked_folder) in outcome.err
    assert ".vocalremover" not in outcome.err
    assert files(locked_folder) == []


def test_a_file_in_the_place_of_the_output_folder(separate: Command, make_song: Command, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("taken")
    outcome = separate(make_song(), "-o", tmp_path / "out")
    assert outcome.code == 2
    assert f"{tmp_path / 'out'} is a file" in outcome.err


def test_what_the_system_refuses_is_a_sentence(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    name = tmp_path / ("x" * 300)
    for words in (("separate", "song.wav", "-m", name), ("convert", tiny_model, f"{name}.safetensors")):
        outcome = command(*words)
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err.startswith(f"vocalremover: {name}")
        assert outcome.err.count("\n") == 1


@pytest.fixture
def song(make_song: Command) -> Path:
    return make_song(samples=200000)


@pytest.fixture
def full_disk(request: pytest.FixtureRequest, tmp_path: Path, song: Path) -> Iterator[Path]:
    """A folder whose files cannot grow beyond 64 KiB: by this process's limit, or because its disk is full."""
    folder = tmp_path / "full"
    folder.mkdir()
    if request.param == "limit":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        yield folder
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("full_disk", ["limit", "disk"], indirect=True)
@pytest.mark.parametrize("words", ["", "--clip rescale", "-f flac", "-f mp3 --bitrate 320k", "-f m4a --bitrate 320k"])
def test_full_disk(separate: Command, full_disk: Path, song: Path, words: str) -> None:
    outcome = separate(song, "-o", full_disk, *words.split())
    assert outcome.code == 1
    assert str(full_disk / "song_") in outcome.err
    assert ".vocalremover" not in outcome.err
    assert files(full_disk) == []


# Outputs that would cost a file


def test_output_equal_to_input(separate: Command, make_song: Command) -> None:
    song = make_song()
    before = song.read_bytes()
    outcome = separate(song, "--template", "{track}.{ext}", "--stem", "vocals", "--overwrite")
    assert outcome.code == 2
    assert "is the input" in outcome.err
    assert song.read_bytes() == before


def test_colliding_outputs(separate: Command, make_song: Command) -> None:
    songs = [make_song("a.wav"), make_song("b.wav"), make_song("b.flac")]
    outcome = separate(*songs)
    assert outcome.code == 2
    assert "b.wav" in outcome.err
    assert "b.flac" in outcome.err
    assert files(songs[0].parent) == ["a.wav", "b.flac", "b.wav"]


def test_existing_output(separate: Command, make_song: Command) -> None:
    song = make_song()
    song.with_name("song_Vocals.wav").write_bytes(b"precious")
    outcome = separate(song)
    assert outcome.code == 1
    assert "--overwrite" in outcome.err
    assert song.with_name("song_Vocals.wav").read_bytes() == b"precious"
    assert len(files(song.parent)) == 2


def test_the_same_folder_twice(separate: Command, make_song: Command) -> None:
    song = make_song()
    assert separate(song.parent).code == 0
    assert separate(song.parent, "--overwrite").code == 0
    assert files(song.parent) == ["song.wav", "song_Instrumental.wav", "song_Vocals.wav"]


def test_of_several_songs_every_sentence_names_its_own(separate: Command, make_song: Command, tmp_path: Path) -> None:
    good, bad = make_song(), tmp_path / "loud.wav"
    soundfile.write(bad, np.full((5000, 2), 1e20, np.float32), 44100, "FLOAT")
    outcome = separate(good, bad)
    (error,) = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    assert outcome.code == 1 and error.startswith(f"error: {bad}: the song holds samples beyond")
    assert outcome.err.count(str(bad)) == 2, "in its line and in the sum at the end"


def test_a_log_on_a_full_disk_stops_no_work(tmp_path: Path, make_song: Command, tiny_model: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no disk that is always full")
    song = make_song()
    words = [sys.executable, "-m", "vocalremover", "separate", song, "-m", tiny_model, "-d", "cpu"]
    with open("/dev/full", "w") as full:
        subprocess.run(words, stderr=full, check=True, capture_output=False, stdout=subprocess.DEVNULL)
    assert files(song.parent) == ["song.wav", "song_Instrumental.wav", "song_Vocals.wav"]


# Streams that are closed


def test_closed_streams(tmp_path: Path, make_song: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    monkeypatch.setattr("sys.stdout", None)
    job = Job(make_song(), {"vocals": tmp_path / "vocals.wav"})
    with Screen(0, [job, Job(tmp_path / "other.wav", {})]) as screen:
        for _ in screen.progress(iter([torch.zeros(2, 10)]), job, "separating", 10):
            pass
        screen.result(Result(job, 1.0, 1.0, ("a warning",)))
        screen.sum(Summary())


# Devices and models that are not there


@pytest.mark.parametrize("device", ["cuda:99", "mps"])
def test_absent_device(command: Command, make_song: Command, tiny_model: Path, device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    outcome = command("separate", make_song(), "-m", tiny_model, "-d", device)
    assert outcome.code == 3
    assert device.split(":")[0] in outcome.err.lower()
    assert "Traceback" not in outcome.err


def test_missing_weights_are_told_with_file_folder_and_link(
    command: Command, make_song: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOCALREMOVER_HOME", str(tmp_path / "home"))
    outcome = command("separate", make_song(), "-m", "v10")
    assert outcome.code == 4
    for word in ("model.v10.pth", str(tmp_path / "home" / "models"), MODELS["v10"].url):
        assert word in outcome.err


def test_unknown_model(command: Command, make_song: Command) -> None:
    outcome = command("separate", make_song(), "-m", "v99")
    assert outcome.code == 4
    assert "v99" in outcome.err
    assert "v10" in outcome.err


def test_weights_that_are_no_numbers(command: Command, make_song: Command, tiny_model: Path, tmp_path: Path) -> None:
    spec, network = checkpoint.load(tiny_model)
    weights = {name: value * float("nan") for name, value in network.state_dict().items()}
    checkpoint.save(tmp_path / "weights.safetensors", spec, weights)
    outcome = command("separate", make_song(), "-m", tmp_path / "weights.safetensors", "-d", "cpu")
    assert outcome.code == 4 and "weights" in outcome.err
    outcome = command("convert", tmp_path / "weights.safetensors", tmp_path / "again.safetensors")
    assert outcome.code == 4 and not (tmp_path / "again.safetensors").exists()


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_model(command: Command, make_song: Command, tiny_model: Path, tmp_path: Path, kept: int) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(tiny_model.read_bytes()[:kept])
    song = make_song()
    outcome = command("separate", song, "-m", weights)
    assert outcome.code == 4
    assert str(weights) in outcome.err
    assert "Traceback" not in outcome.err
    assert len(files(song.parent)) == 2
