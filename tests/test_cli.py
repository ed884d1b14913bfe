"""The command: words, exit codes, what goes to stdout and what to stderr."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from vocalremover import __version__, audio, batch, checkpoint
from vocalremover.audio import read
from vocalremover.cli import output
from vocalremover.cli import separate as command_line
from vocalremover.models import MODELS
from vocalremover.separate import Inference, Separator

Command = Callable[..., "object"]


def lines(text: str) -> list[str]:
    return text.splitlines()


def hidden(folder: Path) -> list[str]:
    """Temporary files and folders that somebody forgot."""
    return [str(path) for path in folder.rglob("*") if path.name.startswith(".") or ".part" in path.name]


# What a newcomer types


def test_a_song_becomes_two_files_that_sum_to_it(command: Command, make_song: Command, tiny_model: Path) -> None:
    song = make_song("song.flac", samples=50001, rate=48000)
    outcome = command("separate", song, "-m", tiny_model, "--bits", "32f")
    assert outcome.code == 0
    names = ["song_Vocals.wav", "song_Instrumental.wav"]
    assert lines(outcome.out) == [str(song.with_name(name)) for name in names]
    stems = [read(song.with_name(name)) for name in names]
    assert [rate for _, rate in stems] == [48000, 48000]
    assert_close(stems[0][0] + stems[1][0], read(song)[0], rtol=0, atol=1e-6)
    assert float(stems[0][0].abs().max()) > 0


def test_the_shipped_weights_separate(command: Command, make_song: Command) -> None:
    song = make_song(samples=44100)
    outcome = command("separate", "--json", song)
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["model"] == "default"
    assert record["sha256"] == checkpoint.sha256(checkpoint.find("default"))
    assert read(song.with_name("song_Vocals.wav"))[0].shape == (2, 44100)


def test_json_tells_all_about_every_input(command: Command, make_song: Command, tiny_model: Path) -> None:
    songs = [make_song("a.wav"), make_song("b.wav")]
    songs[1].write_bytes(b"")
    outcome = command("separate", *songs, "-m", tiny_model, "--json", "-d", "cpu", "--stem", "vocals")
    assert outcome.code == 1
    done, failed = map(json.loads, lines(outcome.out))
    assert done["input"] == str(songs[0])
    assert done["outputs"] == {"vocals": str(songs[0].with_name("a_Vocals.wav"))}
    assert done["duration"] == 0.5
    assert done["seconds"] > 0
    assert done["real_time_factor"] == pytest.approx(done["duration"] / done["seconds"], rel=0.1)
    assert (done["device"], done["model"]) == ("cpu", "tiny")
    assert done["sha256"] == checkpoint.sha256(tiny_model)
    assert (done["warnings"], done["error"]) == ([], None)
    assert failed["outputs"] == {}
    assert "b.wav" in failed["error"]
    assert done.keys() == failed.keys()


def test_a_failed_file_is_told_and_the_others_are_done(
    command: Command, make_song: Command, tiny_model: Path
) -> None:
    songs = [make_song("a.wav"), make_song("b.wav"), make_song("c.wav")]
    songs[1].write_text("not a song")
    outcome = command("separate", *songs, "-m", tiny_model)
    assert outcome.code == 1
    assert [Path(line).name for line in lines(outcome.out)] == [
        f"{track}_{stem}.wav" for track in "ac" for stem in ("Vocals", "Instrumental")
    ]
    assert sum(line.startswith("error: ") and "b.wav" in line for line in lines(outcome.err)) == 1
    assert "Traceback" not in outcome.err


# Options


def test_auto_tells_its_device_once_and_quiet_tells_nothing(
    command: Command, make_song: Command, tiny_model: Path
) -> None:
    songs = [make_song("a.wav"), make_song("b.wav")]
    assert command("separate", *songs, "-m", tiny_model).err.count("device: ") == 1
    quiet = command("separate", *songs, "-m", tiny_model, "--overwrite", "-q")
    assert quiet.err == ""
    assert len(lines(quiet.out)) == 4
    named = command("separate", songs[0], "-m", tiny_model, "--overwrite", "-d", "cpu")
    assert "device: " not in named.err


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> list[tuple]:
    """What `Separator.load` and `batch.run` were handed; nothing is separated."""
    calls: list[tuple] = []

    class Loaded(Separator):
        @classmethod
        def load(cls, *words: object, **settings: object) -> Separator:
            calls.append((*words, settings))
            return real.load(tiny_model, "cpu")

    def run(jobs: list, separator: Separator, settings: batch.Settings, progress: object) -> Iterator[batch.Result]:
        calls.append((jobs, settings))
        return iter(())

    real = Separator
    monkeypatch.setattr("vocalremover.separate.Separator", Loaded)
    monkeypatch.setattr("vocalremover.batch.run", run)
    monkeypatch.setattr("vocalremover.checkpoint.find", lambda name: tiny_model)
    return calls


def test_every_option_reaches_the_library(command: Command, make_song: Command, loaded: list[tuple]) -> None:
    song = make_song()
    words = "-o out --template {model}_{track}_{stem}.{ext} --stem instrumental -f mp3 --bitrate 192k --clip rescale"
    words += " -g 1 --precision fp32 -c 256 --padding 32 -B 3 --overwrite -m default"
    assert command("separate", song, *words.split()).code == 0
    (model, device, inference, _), (jobs, told) = loaded
    assert (model, device) == ("default", "cuda:1")
    assert inference == Inference(precision="fp32", size=256, context=32, batch=3)
    assert told == batch.Settings(
        out=Path("out"),
        template="{model}_{track}_{stem}.{ext}",
        stems=("instrumental",),
        encoding=audio.Encoding("mp3", None, 192000),
        clip="rescale",
        overwrite=True,
        model="default",
    )
    assert jobs[0].outputs == {"instrumental": Path("out/default_song_Instrumental.mp3")}


@pytest.mark.parametrize(
    ("words", "stems"),
    [
        ("", ("vocals", "instrumental")),
        ("--stem both", ("vocals", "instrumental")),
        ("--stem vocals", ("vocals",)),
        ("--single-stem Instrumental", ("instrumental",)),
        ("--single_stem vocals", ("vocals",)),
        ("--two-stems vocals", ("vocals", "instrumental")),
        ("--two_stems=vocals", ("vocals", "instrumental")),
    ],
)
def test_names_that_users_of_other_tools_know(
    command: Command, make_song: Command, loaded: list[tuple], words: str, stems: tuple[str, ...]
) -> None:
    assert command("separate", make_song(), *words.split()).code == 0
    assert loaded[1][1].stems == stems


@pytest.mark.parametrize("words", ["--batch_size 2", "--batch-size 2", "-b 2", "-B 2", "--batchsize 2"])
def test_aliases_of_the_batch_size(command: Command, make_song: Command, loaded: list[tuple], words: str) -> None:
    assert command("separate", make_song(), *words.split()).code == 0
    assert loaded[0][2].batch == 2


@pytest.mark.parametrize(("words", "device"), [("-g 0", "cuda:0"), ("--gpu -1", "cpu"), ("-d cuda:2", "cuda:2")])
def test_devices(command: Command, make_song: Command, loaded: list[tuple], words: str, device: str) -> None:
    assert command("separate", make_song(), *words.split()).code == 0
    assert loaded[0][1] == device


@pytest.mark.parametrize(("word", "rate"), [("192k", 192000), ("192", 192000), ("128000", 128000)])
def test_bit_rates(command: Command, make_song: Command, loaded: list[tuple], word: str, rate: int) -> None:
    assert command("separate", make_song(), "-f", "mp3", "--bitrate", word).code == 0
    assert loaded[1][1].encoding.bitrate == rate


@pytest.mark.parametrize(
    "words",
    [
        "--stem drums",
        "--two-stems vocals --stem vocals",
        "-g 0 -d cpu",
        "-d tpu",
        "-d cuda:x",
        "--precision fp8",
        "--bits 12",
        "-f mp3 --bits 16",
        "-f flac --bits 32f",
        "-f wav --bitrate 192k",
        "--bitrate fast -f mp3",
        "--template {artist}.{ext}",
        "--template {track}.{ext}",
        "-c 0",
        "--padding -1",
        "-b 0",
        "--no-such-option",
        "--clip loud",
    ],
)
def test_wrong_usage_is_told_before_anything_starts(command: Command, make_song: Command, words: str) -> None:
    song = make_song()
    outcome = command("separate", song, *words.split())
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert outcome.err
    assert os.listdir(song.parent) == [song.name]


def test_no_input_at_all_is_wrong_usage(command: Command) -> None:
    assert command("separate").code == 2


def test_the_words_of_the_command_are_those_of_the_library() -> None:
    assert set(command_line.FORMATS) == set(audio.FORMATS)
    assert command_line.STEMS == batch.STEMS == MODELS["default"].stems


# What the terminal shows


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (205.4, "3:25"), (59.6, "1:00"), (7325, "2:02:05")])
def test_clock(seconds: float, text: str) -> None:
    assert output.clock(seconds) == text


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "PLAIN_SECONDS", 0.0)
    job = batch.Job(Path("folder/song.mp3"), {})
    report = output.Report(0, False, [job, batch.Job(Path("b.mp3"), {})], {})
    blocks = [torch.zeros(2, 50), torch.zeros(2, 150)]
    assert list(report.progress(blocks, job, "separating", 200)) == blocks
    assert capsys.readouterr().err == "[1/2] song.mp3: separating 25%\n[1/2] song.mp3: separating 100%\n"


def test_a_terminal_gets_a_bar_and_stdout_stays_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    job = batch.Job(Path("[b]a rather long name " * 5 + ".mp3"), {})
    report = output.Report(0, False, [job], {})
    blocks = [torch.zeros(2, 50), torch.zeros(2, 150)]
    for _ in report.progress(blocks, job, "separating", 200):
        print("a result")
    out, err = capsys.readouterr()
    assert out == "a result\n" * 2
    assert "[b]a rather" in err


# Start and end


def test_help_and_version_load_nothing_heavy() -> None:
    script = (
        "import sys, vocalremover\n"
        "from vocalremover.cli import main\n"
        "for words in (['--help'], ['separate', '--help'], ['models', '--help'], ['--version']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'librosa', 'numpy', 'av', 'soundfile', 'soxr', 'scipy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"vocalremover {__version__}"


ROOT = Path(__file__).parent.parent
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

SLOW = """
import sys, time
from vocalremover import separate
stream = separate.Separator.stream
def slow(self, *song):
    for stems in stream(self, *song):
        yield stems
        print("working", file=sys.stderr, flush=True)
        time.sleep(600)
separate.Separator.stream = slow
from vocalremover.cli import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize(
    ("number", "code", "clip"), [(signal.SIGINT, 130, "none"), (signal.SIGTERM, 143, "rescale")]
)
def test_a_signal_in_the_middle_leaves_no_file(
    make_song: Command, tiny_model: Path, number: int, code: int, clip: str
) -> None:
    song = make_song(samples=200000)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "separate", str(song), "-m", str(tiny_model), "-d", "cpu", "--clip", clip],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ONE_THREAD,
        # A test run in the background of a shell has ^C ignored, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr.readline() == "working\n"
    assert hidden(song.parent)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert process.returncode == code
    assert out == ""
    assert "stopped" in err
    assert "Traceback" not in err
    assert os.listdir(song.parent) == ["song.wav"]


def test_a_reader_of_stdout_that_leaves_ends_it_quietly(
    command: Command, make_song: Command, tiny_model: Path, tmp_path: Path
) -> None:
    song = make_song()
    process = subprocess.Popen(
        [sys.executable, "-m", "vocalremover", "separate", str(song), "-m", str(tiny_model), "-q"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ONE_THREAD,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
    assert song.with_name("song_Vocals.wav").exists()
