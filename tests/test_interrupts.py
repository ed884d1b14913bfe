"""The real command, ended in the middle: what is on disk afterwards, and that another run goes on where it stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import noise
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from vocalremover.audio import Encoding, read, write
from vocalremover.batch import JOURNAL
from vocalremover.cli import Stopped, _signals_stop

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")

ROOT = Path(__file__).parent.parent
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
# The command, which says "working" in the middle of its third song and stays there.
STUCK = """
import sys, time
from vocalremover import separate
stream, songs = separate.Separator.stream, []
def stuck(self, *song):
    songs.append(song)
    for stems in stream(self, *song):
        yield stems
        if len(songs) == 3:
            print("working", file=sys.stderr, flush=True)
            time.sleep(600)
separate.Separator.stream = stuck
from vocalremover.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """A folder of five songs, one of which is none."""
    folder = tmp_path / "songs"
    folder.mkdir()
    for number in range(5):
        write(folder / f"{number}.wav", noise(30000, seed=number), 44100, Encoding("wav", "32f"))
    (folder / "1.wav").write_bytes(b"not a song")
    return folder


@pytest.fixture
def words(songs: Path, tiny_model: Path) -> list[str]:
    out = songs.parent / "out"
    return [*f"separate {songs} -o {out} -m {tiny_model} -d cpu --bits 32f --skip-existing --json -q".split()]


def command(words: list[str]) -> tuple[int, list[dict], str]:
    done = subprocess.run(
        [sys.executable, "-m", "vocalremover", *words], env=ONE_THREAD, capture_output=True, text=True, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if "input" in line], done.stderr


def ended_by(number: int, words: list[str]) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, *words], env=ONE_THREAD, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A test run in the background of a shell has ^C ignored, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    seen = ""
    while "working" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    return process.returncode, err


def staged(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".") and name != JOURNAL]


def stems(folder: Path) -> dict[str, tuple[int, int]]:
    """Each stem with its file's number and date, which tell whether it was written again."""
    paths = folder.glob("*.wav")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_batch_that_was_ended_goes_on_where_it_stopped(
    songs: Path, words: list[str], number: int, code: int
) -> None:
    out = songs.parent / "out"
    returned, err = ended_by(number, words)
    assert returned == code
    assert "Traceback" not in err
    before = stems(out)
    # The third song that the network saw was 3.wav, and of that nothing is to be seen.
    assert set(before) == {f"{track}_{stem}.wav" for track in (0, 2) for stem in ("Vocals", "Instrumental")}
    assert bool(staged(out)) == (number == signal.SIGKILL)

    returned, records, err = command(words)
    assert returned == 1
    assert [record["state"] for record in records] == ["skipped", "failed", "skipped", "done", "done"]
    assert "1.wav" in records[1]["error"]
    assert staged(out) == []
    after = stems(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == 8
    for track in (0, 2, 3, 4):
        vocals, instrumental = (read(out / f"{track}_{stem}.wav")[0] for stem in ("Vocals", "Instrumental"))
        assert_close(vocals + instrumental, read(songs / f"{track}.wav")[0], rtol=0, atol=1e-6)


def test_another_model_makes_all_again_and_a_plan_tells_so_before(
    songs: Path, words: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    (songs / "1.wav").unlink()
    assert command(words)[0] == 0
    again = command([*words, "--dry-run"])[1]
    assert [record["state"] for record in again] == ["done"] * 4
    other = tmp_path / "other" / tiny_model.name
    other.parent.mkdir()
    retrain(tiny_model, other)
    words = [str(other) if word == str(tiny_model) else word for word in words]
    before = stems(tmp_path / "out")
    assert [record["state"] for record in command([*words, "--dry-run"])[1]] == ["stale"] * 4
    assert stems(tmp_path / "out") == before
    assert [record["state"] for record in command(words)[1]] == ["done"] * 4
    assert all(stems(tmp_path / "out")[name] != before[name] for name in before)


def retrain(model: Path, target: Path) -> None:
    """The same recipe under the same name with other numbers."""
    with safe_open(model, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(model)
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[first] = tensors[first] + torch.full_like(tensors[first], 0.01)
    save_file(tensors, target, metadata)


def test_shards_side_by_side_do_all_songs_once(songs: Path, words: list[str]) -> None:
    (songs / "1.wav").unlink()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "vocalremover", *words, "--shard", f"{number}/2"], env=ONE_THREAD, text=True,
            stdout=subprocess.PIPE,
        )
        for number in (1, 2)
    ]  # fmt: skip
    done = []
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        done += [json.loads(line)["input"] for line in out.splitlines() if "input" in line]
    assert sorted(done) == [str(songs / f"{track}.wav") for track in (0, 2, 3, 4)]
    code, records, _ = command(words)
    assert code == 0
    assert {record["state"] for record in records} == {"skipped"}


def test_a_second_signal_leaves_the_tidying_alone_unless_the_first_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Final:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: lost.append(unraisable.exc_type))
    before = signal.getsignal(signal.SIGTERM)
    with _signals_stop():
        Final()
        assert lost == [Stopped]
        with pytest.raises(Stopped) as tidying:
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert tidying.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for two stems of a song and a bit."""
    folder = tmp_path / "out"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", folder]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_costs_what_does_not_fit_and_no_more(
    songs: Path, words: list[str], small_disk: Path
) -> None:
    code, records, _ = command([*words, "--jobs", "1"])
    assert code == 1
    assert [record["state"] for record in records] == ["done", "failed", "failed", "failed", "failed"]
    assert all("the disk is full" in record["error"] or "No space" in record["error"] for record in records[2:])
    assert staged(small_disk) == []
    assert set(stems(small_disk)) == {"0_Vocals.wav", "0_Instrumental.wav"}


def test_one_folder_with_everything_wrong_in_it(
    songs: Path, words: list[str], make_song: Callable[..., Path]
) -> None:
    deep = songs / "deep"
    deep.mkdir()
    shutil.copy(songs / "0.wav", deep / "5.wav")
    (deep / "loop").symlink_to(songs, target_is_directory=True)
    (songs / "6.wav").symlink_to(songs / "nowhere.wav")
    (songs / "7.wav").mkdir()
    os.mkfifo(songs / "8.wav")
    (songs / "9.wav").write_bytes(b"")
    code, records, err = command([*words, "--recursive"])
    states = {Path(record["input"]).name: record["state"] for record in records}
    good = {f"{track}.wav": "done" for track in (0, 2, 3, 4, 5)}
    assert states == good | {"1.wav": "failed", "6.wav": "failed", "9.wav": "failed"}
    assert code == 1
    assert "Traceback" not in err
    assert (songs.parent / "out" / "deep" / "5_Vocals.wav").exists()


def test_a_pipe_with_a_name_is_told_and_not_waited_for(words: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    words[1] = str(tmp_path / "pipe.wav")
    code, records, _ = command(words)
    assert code == 1
    assert "standard input" in records[0]["error"]
