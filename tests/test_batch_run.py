"""Several songs under way at once: what overlaps, what is bounded, and that nothing is left when it ends."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import FakeSeparator, noise
from torch import Tensor

from vocalremover import batch, staging
from vocalremover.audio import Encoding, Writer, write
from vocalremover.batch import Job, Settings
from vocalremover.batch.flow import Flow, Gone
from vocalremover.errors import UsageError

Make = Callable[..., Path]
PATIENCE = 20.0  # seconds until a test gives up what should happen at once


def await_that(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.005)


def threads_of_ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("song")]


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".") and name != batch.JOURNAL]


def tiny_songs(folder: Path, count: int) -> None:
    """Copies of one song of 64 samples."""
    folder.mkdir(parents=True)
    write(folder / "00000.wav", noise(64), 44100, Encoding("wav", "16"))
    content = (folder / "00000.wav").read_bytes()
    for number in range(1, count):
        (folder / f"{number:05}.wav").write_bytes(content)


# Order and overlap


def test_results_of_one_separator_come_in_the_order_of_the_jobs(make_song: Make) -> None:
    songs = [make_song(f"{number}.wav", samples=samples) for number, samples in enumerate((90000, 10, 50000, 10))]
    songs[1].write_bytes(b"")
    settings = Settings()
    results = list(batch.run(batch.plan(songs, settings), FakeSeparator(), settings))
    assert [result.job.input for result in results] == songs
    assert [result.state for result in results] == ["done", "failed", "done", "done"]


def test_the_next_song_is_measured_and_the_last_one_written_while_a_song_is_separated(make_song: Make) -> None:
    measured: list[str] = []

    class Waits(FakeSeparator):
        def stream(self, *song: object) -> Iterator[dict[str, Tensor]]:
            number = len(self.measured)
            if number < 2:
                await_that(lambda: len(measured) > number + 1)  # the song after this one
            if number == 1:
                await_that(songs[0].with_name("0_Vocals.wav").exists)
            return super().stream(*song)

    def progress(blocks: Iterable[Tensor], job: Job, stage: str, samples: int | None) -> Iterator[Tensor]:
        yield from blocks
        if stage == "measuring":
            measured.append(job.input.stem)

    songs = [make_song(f"{number}.wav") for number in range(3)]
    settings = Settings()
    results = list(batch.run(batch.plan(songs, settings), Waits(needs_peak=True), settings, progress, songs=3))
    assert [result.error for result in results] == [None] * 3
    assert sorted(measured) == ["0", "1", "2"]


@pytest.mark.parametrize(("most", "devices"), [(1, 1), (2, 1), (5, 1), (1, 2)])
def test_no_more_songs_are_under_way_than_may_be(tmp_path: Path, most: int, devices: int) -> None:
    most_seen = 0

    class Counts(FakeSeparator):
        def stream(self, *song: object) -> Iterator[dict[str, Tensor]]:
            nonlocal most_seen
            most_seen = max(most_seen, len({name.partition(":")[0] for name in threads_of_ours()}))
            return super().stream(*song)

    tiny_songs(tmp_path / "in", 12)
    settings = Settings(out=tmp_path / "out")
    crew = [Counts() for _ in range(devices)]
    results = list(batch.run(batch.plan([tmp_path / "in"], settings), crew, settings, songs=most))
    assert [result.state for result in results] == ["done"] * 12
    assert 1 <= most_seen <= most * devices


def test_several_separators_share_the_songs_and_a_slow_one_holds_nobody_up(tmp_path: Path) -> None:
    class Slow(FakeSeparator):
        def stream(self, *song: object) -> Iterator[dict[str, Tensor]]:
            began.set()
            await_that(lambda: len(seen) >= 5)
            return super().stream(*song)

    class Fast(FakeSeparator):
        def stream(self, *song: object) -> Iterator[dict[str, Tensor]]:
            assert began.wait(PATIENCE)
            return super().stream(*song)

    began, slow = threading.Event(), Slow()
    slow.device = "cuda:1"
    tiny_songs(tmp_path / "in", 7)
    settings = Settings(out=tmp_path / "out")
    seen: list[str] = []
    for result in batch.run(batch.plan([tmp_path / "in"], settings), [slow, Fast()], settings):
        assert result.error is None
        seen.append(result.device)
    assert seen[:5] == ["cpu"] * 5
    assert len(seen) == 7
    assert "cuda:1" in seen


def test_a_bug_in_a_worker_ends_the_run_and_is_told(tmp_path: Path) -> None:
    class Broken(FakeSeparator):
        def stream(self, *song: object) -> Iterator[dict[str, Tensor]]:
            raise SystemExit(9)

    tiny_songs(tmp_path / "in", 3)
    settings = Settings(out=tmp_path / "out")
    with pytest.raises(SystemExit):
        list(batch.run(batch.plan([tmp_path / "in"], settings), [Broken(), Broken()], settings))
    assert threads_of_ours() == hidden(tmp_path / "out") == []


@pytest.mark.parametrize("refused", ["song.wav: vocals", "song.wav: reading"])
def test_a_song_fails_where_the_system_has_no_more_threads(
    make_song: Make, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    whole = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name.endswith(refused):
            raise RuntimeError("can't start new thread")
        whole(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr("vocalremover.batch.work.WRITE_BEHIND", 1000)
    song = make_song("song.wav")
    (result,) = batch.run(batch.plan([song], Settings()), FakeSeparator(), Settings())
    assert result.state == "failed" and "can't start new thread" in result.error
    assert list(song.parent.iterdir()) == [song]


def test_a_stem_that_the_model_does_not_give_is_refused() -> None:
    settings = Settings(stems=("drums",))
    with pytest.raises(UsageError, match=r"no stem 'drums'.*vocals, instrumental"):
        list(batch.run([], FakeSeparator(), settings))
    with pytest.raises(UsageError, match="at least one song"):
        list(batch.run([], FakeSeparator(), Settings(), songs=0))


# Memory


def test_memory_does_not_grow_with_the_number_of_songs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # two thousand waits for a disk
    tiny_songs(tmp_path / "in", 10_000)
    settings = Settings(out=tmp_path / "out")
    jobs = batch.plan([tmp_path / "in"], settings, shard=(3, 10))
    assert len(jobs) == 1000
    before = None
    for number, result in enumerate(batch.run(jobs, FakeSeparator(), settings)):
        assert result.error is None
        before = resident() if number == 300 else before
    # Seven hundred songs later: less than a page for each, where a thread's stack or a block of sound alone is more.
    # The allocator takes and keeps a megabyte now and then, whoever asks.
    assert resident() - before < 700 * 4096
    assert len(os.listdir(settings.out)) == 2001


def resident() -> int:
    """Bytes that this process has in memory."""
    with open("/proc/self/statm", encoding="ascii") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_slow_encoder_makes_the_network_wait(make_song: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vocalremover.batch.work.WRITE_BEHIND", 1 << 20)
    ahead: list[int] = []
    written = threading.Semaphore(0)

    class Long(FakeSeparator):
        def stream(self, *song: object) -> Iterator[dict[str, Tensor]]:
            for number in range(64):  # 512 KiB each
                ahead.append(number)
                yield dict.fromkeys(self.stems, torch.zeros(2, 1 << 16))

    song = make_song()
    real = Writer.write

    def write_when_told(self: object, block: Tensor) -> None:
        assert written.acquire(timeout=PATIENCE)
        real(self, block)

    monkeypatch.setattr(Writer, "write", write_when_told)
    settings = Settings(stems=("vocals",))
    run = batch.run(batch.plan([song], settings), Long(), settings)
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.extend(run))
    thread.start()
    await_that(lambda: len(ahead) >= 3)
    time.sleep(0.1)
    assert len(ahead) <= 4  # two that wait, one that is being written, one that is about to be given
    written.release(64)
    thread.join(PATIENCE)
    assert results[0].error is None


def test_a_flow_hands_over_in_order_and_ends_either_way() -> None:
    flow = Flow(1 << 30)
    for number in range(3):
        flow.give(torch.full((1, 1), float(number)))
    flow.end()
    assert [float(block) for block in flow] == [0, 1, 2]
    flow.abandon()
    with pytest.raises(Gone):
        flow.give(torch.zeros(1, 1))
    with pytest.raises(Gone):
        next(iter(flow))


# The end


@pytest.mark.parametrize("clip", ["none", "rescale"])
@pytest.mark.parametrize("devices", [1, 3])
def test_closing_the_results_leaves_no_thread_and_no_file(make_song: Make, clip: str, devices: int) -> None:
    class Endless(FakeSeparator):
        def stream(self, blocks: Iterable[Tensor], *rest: object) -> Iterator[dict[str, Tensor]]:
            blocks = list(blocks)
            yield from super().stream(blocks, *rest)
            while blocks[0].shape[-1] > 100:  # every song but the first
                yield {stem: torch.zeros(2, 0) for stem in self.stems}

    songs = [make_song(f"{number}.wav", samples=20000 if number else 100) for number in range(5)]
    settings = Settings(out=songs[0].parent / "out", clip=clip)
    run = batch.run(batch.plan(songs, settings), [Endless() for _ in range(devices)], settings)
    assert next(run).job.input == songs[0]
    assert threads_of_ours()
    run.close()
    assert threads_of_ours() == hidden(settings.out) == []
    assert sorted(os.listdir(settings.out)) == [batch.JOURNAL, "0_Instrumental.wav", "0_Vocals.wav"]


def test_a_failing_disk_is_told_by_every_song_and_leaves_nothing(
    make_song: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    songs = [make_song(f"{number}.wav") for number in range(3)]
    settings = Settings(out=songs[0].parent / "out")
    monkeypatch.setattr(os, "fsync", lambda descriptor: full(Path(), Path()))
    results = list(batch.run(batch.plan(songs, settings), FakeSeparator(), settings))
    assert all("the disk is full" in result.error for result in results)
    assert os.listdir(settings.out) == []


# Staging


def test_what_a_dead_process_left_is_swept_and_what_a_living_one_needs_is_not(tmp_path: Path) -> None:
    with staging.Staging(tmp_path) as living:
        dead = tmp_path / f"{staging.PREFIX}dead"
        dead.mkdir()
        (dead / staging.LOCK).write_text(staging.socket.gethostname())
        (dead / "stem0.wav").write_bytes(b"half")
        unlocked = tmp_path / f"{staging.PREFIX}unlocked"
        unlocked.mkdir()
        (tmp_path / f"{staging.PREFIX}file").write_bytes(b"")
        foreign = tmp_path / f"{staging.PREFIX}foreign"
        foreign.mkdir()
        (foreign / staging.LOCK).write_text("another-computer")
        staging.sweep(tmp_path)
        assert living.is_dir()
        assert not dead.exists()
        assert unlocked.exists()
        assert foreign.exists()
        for path in (foreign / staging.LOCK, foreign, unlocked):
            os.utime(path, (1, 1))
        staging.sweep(tmp_path)
        assert not unlocked.exists()
        assert not foreign.exists()
    assert os.listdir(tmp_path) == [f"{staging.PREFIX}file"]


def test_a_run_sweeps_the_folders_it_writes_into_even_where_all_is_done(make_song: Make) -> None:
    song = make_song()
    settings = Settings(out=song.parent / "out", skip_existing=True)
    list(batch.run(batch.plan([song], settings), FakeSeparator(), settings))
    dead = settings.out / f"{staging.PREFIX}dead"
    dead.mkdir()
    (dead / staging.LOCK).write_text(staging.socket.gethostname())
    (result,) = batch.run(batch.plan([song], settings), FakeSeparator(), settings)
    assert result.state == "skipped"
    assert hidden(settings.out) == []
