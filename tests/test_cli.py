"""The command: words, exit codes, what goes to stdout and what to stderr."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from conftest import check_wrong_usage
from torch.testing import assert_close

from vocalremover import __version__, audio, batch, checkpoint
from vocalremover.audio import read
from vocalremover.cli import main, options, output, screen
from vocalremover.durations import clock
from vocalremover.separate import ORIGINAL_TTA, Inference, Separator

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


@dataclass
class Handed:
    """What the library was handed; nothing is separated."""

    models: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    inference: Inference | None = None
    config: Path | None = None
    jobs: list[batch.Job] = field(default_factory=list)
    settings: batch.Settings | None = None
    songs: int | None = None


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Handed:
    """A command line whose library notes what it is handed."""
    handed = Handed()

    class Loaded(Separator):
        @classmethod
        def load(
            cls, model: str, device: str, inference: Inference, config: Path | None, stems: tuple[str, ...] | None
        ) -> Separator:
            handed.models.append(model)
            handed.devices.append(device)
            handed.inference, handed.config = inference, config
            return real.load(tiny_model, "cpu", stems=stems)

    def run(
        jobs: list, separators: list, settings: batch.Settings, progress: object, songs: int | None
    ) -> Iterator[batch.Result]:
        handed.jobs, handed.settings, handed.songs = jobs, settings, songs
        yield from ()

    real = Separator
    monkeypatch.setattr("vocalremover.separate.Separator", Loaded)
    monkeypatch.setattr("vocalremover.batch.run", run)
    monkeypatch.setattr("vocalremover.checkpoint.find", lambda name: tiny_model)
    monkeypatch.setattr("vocalremover.devices.choose_devices", lambda names: names.split(","))
    return handed


def test_every_option_reaches_the_library(command: Command, make_song: Command, loaded: Handed) -> None:
    song = make_song()
    words = "-o out --template {model}_{track}_{stem}.{ext} --stem instrumental -f mp3 --bitrate 192k --clip rescale"
    words += " -g 1 --precision fp32 -c 256 --padding 32 -B 3 --overwrite -m default --skip-existing -j 2"
    words += " --quality best --shifts 2 --tta --config some.yaml --acceleration compile"
    assert command("separate", song, *words.split()).code == 0
    assert (loaded.models, loaded.devices, loaded.config) == (["default"], ["cuda:1"], Path("some.yaml"))
    assert loaded.inference == Inference(
        precision="fp32", batch=3, quality="best", size=256, context=32, shifts=2, tta=True, acceleration="compile"
    )
    assert loaded.settings == batch.Settings(
        out=Path("out"),
        template="{model}_{track}_{stem}.{ext}",
        stems=("instrumental",),
        encoding=audio.Encoding("mp3", None, 192000),
        clip="rescale",
        overwrite=True,
        model="default",
        skip_existing=True,
    )
    assert loaded.jobs[0].outputs == {"instrumental": Path("out/default_song_Instrumental.mp3")}
    assert loaded.songs == 2


def test_nothing_said_is_nothing_asked_for(command: Command, make_song: Command, loaded: Handed) -> None:
    assert command("separate", make_song()).code == 0
    assert loaded.inference == Inference()
    assert loaded.settings == batch.Settings()
    assert (loaded.devices, loaded.songs, loaded.config) == (["auto"], None, None)


@pytest.mark.parametrize(
    ("words", "stems"),
    [
        ("", ("vocals", "instrumental")),
        ("--stem both", ("vocals", "instrumental")),
        ("--stem vocals", ("vocals",)),
        ("--stem instrumental,vocals", ("vocals", "instrumental")),
        ("--stem vocals --stem Instrumental", ("vocals", "instrumental")),
        ("--single-stem Instrumental", ("instrumental",)),
        ("--single_stem vocals", ("vocals",)),
        ("--two-stems vocals", ("vocals", "instrumental")),
        ("--two_stems=vocals", ("vocals", "instrumental")),
    ],
)
def test_names_that_users_of_other_tools_know(
    command: Command, make_song: Command, loaded: Handed, words: str, stems: tuple[str, ...]
) -> None:
    assert command("separate", make_song(), *words.split()).code == 0
    assert loaded.settings.stems == stems


@pytest.mark.parametrize("words", ["--batch_size 2", "--batch-size 2", "-b 2", "-B 2", "--batchsize 2"])
def test_aliases_of_the_batch_size(command: Command, make_song: Command, loaded: Handed, words: str) -> None:
    assert command("separate", make_song(), *words.split()).code == 0
    assert loaded.inference.batch == 2


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("--overlap 0.5", {"overlap": 0.5}),
        ("--num-overlap 4", {"overlap": 0.75}),
        ("--num_overlap 1", {"overlap": 0.0}),
        ("--segment 8.5", {"segment": 8.5}),
        ("--quality FAST", {"quality": "fast"}),
        ("--crops 64/128,32/0", {"crops": ((64, 128), (32, 0))}),
        ("--crops original", {"crops": ORIGINAL_TTA}),
    ],
)
def test_windows_and_passes(
    command: Command, make_song: Command, loaded: Handed, words: str, fields: dict[str, object]
) -> None:
    assert command("separate", make_song(), *words.split()).code == 0
    assert loaded.inference == Inference(**fields)


@pytest.mark.parametrize(
    ("words", "bits"), [("--int24", "24"), ("--float32", "32f"), ("--bits 24 --int24", "24"), ("--bits 16", "16")]
)
def test_aliases_of_the_bits(command: Command, make_song: Command, loaded: Handed, words: str, bits: str) -> None:
    assert command("separate", make_song(), *words.split()).code == 0
    assert loaded.settings.encoding.bits == bits


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        ("-g 0", ["cuda:0"]),
        ("--gpu -1", ["cpu"]),
        ("-d cuda:2", ["cuda:2"]),
        ("-d cuda:0,cuda:1", ["cuda:0", "cuda:1"]),
        ("-d all", ["all"]),
    ],
)
def test_devices(command: Command, make_song: Command, loaded: Handed, words: str, devices: list[str]) -> None:
    assert command("separate", make_song(), *words.split()).code == 0
    assert loaded.devices == devices


@pytest.mark.parametrize(("word", "rate"), [("192k", 192000), ("192", 192000), ("128000", 128000)])
def test_bit_rates(command: Command, make_song: Command, loaded: Handed, word: str, rate: int) -> None:
    assert command("separate", make_song(), "-f", "mp3", "--bitrate", word).code == 0
    assert loaded.settings.encoding.bitrate == rate


@pytest.mark.parametrize(
    "words",
    [
        "--stem drums",
        "--stem vocals,drums",
        "--stem both,vocals",
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
        "--overlap 0.96",
        "--overlap 0.5 --num-overlap 2",
        "--num-overlap 0",
        "--segment 0",
        "--segment 8 -c 256",
        "--overlap 0.5 --padding 8",
        "--crops 64",
        "--crops original --tta",
        "--shifts 0",
        "--quality good",
        "--bits 16 --int24",
        "--int24 --float32",
        "--shard 3/2",
        "--shard two",
        "-j 0",
        "--dry-run --report page.html",
        "--report .",
        "--overwrite --report song.wav",
        "-",
        "-d cuda:0,tpu",
    ],
)
def test_wrong_usage_is_told_before_anything_starts(command: Command, make_song: Command, words: str) -> None:
    song = make_song()
    check_wrong_usage(command("separate", song, *words.split()), song)


def test_no_input_at_all_is_wrong_usage(command: Command) -> None:
    assert command("separate").code == 2


def test_the_words_of_the_command_are_those_of_the_library() -> None:
    assert set(options.FORMATS) == set(audio.FORMATS)
    assert options.BOTH == batch.STEMS


@pytest.mark.parametrize(
    "words",
    ["--json", "--report page.html", "-o stems", "--recursive", "--dry-run", "--shard 1/2", "--skip-existing"],
)
def test_what_does_not_go_with_a_stream_is_wrong_usage(command: Command, words: str, tmp_path: Path) -> None:
    outcome = command("separate", "-", "--stem", "vocals", *words.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert words.split()[0].replace("-o", "--out") in outcome.err


def test_a_stream_is_one_song_and_one_stem(command: Command, make_song: Command) -> None:
    song = make_song()
    assert "one song" in command("separate", "-", song, "--stem", "vocals").err
    assert "one stem" in command("separate", "-").err
    assert "one stem" in command("separate", song, "-o", "-").err
    assert "one stem" in command("separate", song, "-o", "-", "--stem", "both").err


# Many songs


def test_a_plan_is_told_and_nothing_done(command: Command, make_song: Command, tiny_model: Path) -> None:
    songs = [make_song("a.wav"), make_song("b.wav")]
    songs[1].with_name("b_Vocals.wav").write_text("mine")
    outcome = command("separate", songs[0].parent, "-m", tiny_model, "--dry-run", "-d", "cpu")
    assert outcome.code == 1
    assert lines(outcome.out)[:3] == [
        f"to do: {songs[0]}",
        f"    {songs[0].with_name('a_Vocals.wav')}",
        f"    {songs[0].with_name('a_Instrumental.wav')}",
    ]
    assert lines(outcome.out)[3] == f"refused: {songs[1]}"
    assert sorted(os.listdir(songs[0].parent)) == ["a.wav", "b.wav", "b_Vocals.wav"]
    states = [json.loads(line)["state"] for line in lines(
        command("separate", songs[0].parent, "-m", tiny_model, "--dry-run", "--json", "--overwrite").out
    )]  # fmt: skip
    assert states == ["new", "replace"]


def test_what_is_done_is_skipped_and_counted(command: Command, make_song: Command, tiny_model: Path) -> None:
    songs = [make_song("a.wav"), make_song("b.wav")]
    words = ("separate", songs[0].parent, "-m", tiny_model, "-d", "cpu", "--stem", "vocals", "--skip-existing")
    assert command(*words, "--shard", "1/2").code == 0
    outcome = command(*words)
    assert outcome.code == 0
    assert lines(outcome.out) == [str(song.with_name(f"{song.stem}_Vocals.wav")) for song in songs]
    assert re.search(r"^done +1 .*real time", outcome.err, re.MULTILINE)
    assert re.search(r"^skipped +1$", outcome.err, re.MULTILINE)


def test_failures_are_told_again_in_the_sum(command: Command, make_song: Command, tiny_model: Path) -> None:
    songs = [make_song("a.wav"), make_song("b.wav")]
    songs[1].write_text("not a song")
    outcome = command("separate", *songs, "-m", tiny_model)
    assert re.search(r"^failed +1\n  \S*b\.wav: cannot be decoded", outcome.err, re.MULTILINE)


# What the terminal shows


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (205.4, "3:25"), (59.6, "1:00"), (7325, "2:02:05")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def screen_of(*names: str) -> tuple[screen.Screen, list[batch.Job]]:
    jobs = [batch.Job(Path(name), {}) for name in names]
    return screen.Screen(0, jobs), jobs


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "PLAIN_SECONDS", 0.0)
    shown, jobs = screen_of("folder/song.mp3")
    blocks = [torch.zeros(2, 50), torch.zeros(2, 150)]
    assert list(shown.progress(blocks, jobs[0], "separating", 200)) == blocks
    assert capsys.readouterr().err == "song.mp3: separating 25%\nsong.mp3: separating 100%\n"
    shown, jobs = screen_of("a.mp3", "b.mp3")
    list(shown.progress(blocks, jobs[1], "separating", 200))
    assert capsys.readouterr().err == (
        "[2/2] b.mp3: separating 25%; of all 12%\n[2/2] b.mp3: separating 100%; of all 50%\n"
    )


def test_the_bars_tell_the_song_at_work_and_all_songs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(screen, "perf_counter", lambda: now)
    monkeypatch.setattr(screen, "_rate", lambda song: 10)
    shown, jobs = screen_of("a.mp3", "b.mp3", "c.mp3", "d.mp3")
    shown.result(batch.Result(jobs[0], 1.0, state="skipped"))
    for job in (jobs[2], jobs[1]):
        walk = iter(shown.progress([torch.zeros(2, 50)] * 4, job, "measuring" if job is jobs[2] else "separating", 200))
        next(walk)
        setattr(shown, f"_held_{job.input.stem}", walk)  # an open pass
    now = 10.0
    song, whole = shown.rows(40)
    # 5 s of song in 10 s; a quarter is done, so the rest takes three times as long.
    assert song == ("b.mp3", 0.25, "0.5x", "0:30 left")
    # Of three songs that were not left out, a quarter of one.
    assert whole == ("1 of 4 songs", pytest.approx(1 / 12), "0.5x", "1:50 left")


def test_names_are_cut_in_the_middle() -> None:
    assert output.shorten("song.mp3", 8) == "song.mp3"
    assert output.shorten("a long name of a song.mp3", 11) == "a lon…g.mp3"
    assert [output.shorten("abc", width) for width in (0, 1, 2)] == ["", "…", "a…"]


@pytest.mark.parametrize("width", [80, 50])
def test_a_terminal_gets_bars_that_fit_and_stdout_stays_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    shown, jobs = screen_of("[b]a rather long name " * 5 + "[i].mp3", "b.mp3")
    with shown:
        for _ in shown.progress([torch.zeros(2, 50), torch.zeros(2, 150)], jobs[0], "separating", 200):
            shown.result(batch.Result(batch.Job(Path("x.mp3"), {"vocals": Path("x_Vocals.wav")}), 2.0, 30.0))
    out, err = capsys.readouterr()
    assert out == "x_Vocals.wav\n" * 2
    assert "[b]a rath" in err
    assert "[i].mp3" in err
    assert err.count("x.mp3: 0:30 in 2.0 s (15.0x real time)\n") == 2
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err)
    assert max(map(len, re.split(r"[\r\n]+", drawn))) <= width
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", err), "NO_COLOR"


# Start and end


def test_help_and_version_load_nothing_heavy() -> None:
    script = (
        "import sys, vocalremover\n"
        "from vocalremover.cli import main\n"
        "for word in ('separate', 'ensemble', 'models', 'convert', 'train', ''):\n"
        "    try: main([word, '--help'] if word else ['--version'])\n"
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


def test_a_full_stdout_is_told_in_a_sentence(make_song: Command, tiny_model: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    with full.open("wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "vocalremover", "separate", str(make_song()), "-m", str(tiny_model), "-q"],
            stdout=stdout, stderr=subprocess.PIPE, text=True, env=ONE_THREAD, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "vocalremover: stdout: No space left on device\n")


def test_letters_that_stdout_does_not_know_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "cp1252"))
    with pytest.raises(SystemExit) as end:
        main(["models", "verify", "日本.ckpt"])
    assert end.value.code == 4
    assert b"absent  \\u65e5\\u672c.ckpt" in written.getvalue()
