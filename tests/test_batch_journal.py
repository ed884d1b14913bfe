"""What is skipped, what is made again and what is never touched, by what the journal tells of an output."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import FakeSeparator
from torch import Tensor

from vocalremover import batch
from vocalremover.audio import Encoding
from vocalremover.batch import Job, Journal, Result, Settings
from vocalremover.batch.journal import Origin, Stamp, describe, digest

Make = Callable[..., Path]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(out=tmp_path / "out", skip_existing=True)


def run(song: Path, settings: Settings, share: float = 0.25) -> Result:
    (result,) = batch.run(batch.plan([song], settings), FakeSeparator(share), settings)
    return result


def state(song: Path, settings: Settings, share: float = 0.25) -> str:
    (step,) = batch.preview(batch.plan([song], settings), settings, FakeSeparator(share).describe)
    return step.state


def test_what_is_done_is_skipped_and_not_touched(make_song: Make, settings: Settings) -> None:
    song = make_song()
    assert state(song, settings) == "new"
    first = run(song, settings)
    before = {path: path.stat() for path in first.job.outputs.values()}
    assert state(song, settings) == "done"
    again = run(song, settings)
    assert (first.state, again.state, again.error) == ("done", "skipped", None)
    assert {path: path.stat() for path in before} == before
    assert list(again.record()["outputs"]) == ["vocals", "instrumental"]


def test_stems_are_no_songs_where_their_folder_was_moved(make_song: Make, tmp_path: Path) -> None:
    folder = make_song("music/song.wav").parent
    list(batch.run(batch.plan([folder], Settings()), FakeSeparator(), Settings()))
    moved = folder.rename(tmp_path / "songs")
    (job,) = batch.plan([moved], Settings(out=tmp_path / "out"))
    assert job.input == moved / "song.wav"
    (moved / "song.wav").unlink()
    assert len(batch.plan([moved], Settings(out=tmp_path / "out"))) == 2, "without the song they are what there is"


def test_a_model_is_described_where_stems_exist(make_song: Make, settings: Settings) -> None:
    """Not before: its weights are read for that."""
    jobs = batch.plan([make_song()], settings)
    asked = []

    def describe() -> dict[str, object]:
        asked.append(True)
        return FakeSeparator().describe()

    assert [step.state for step in batch.preview(jobs, settings, describe)] == ["new"] and not asked
    list(batch.run(jobs, FakeSeparator(), settings))
    assert [step.state for step in batch.preview(jobs, settings, describe)] == ["done"] and len(asked) == 1


def test_another_model_setting_or_song_is_made_again(make_song: Make, settings: Settings) -> None:
    song = make_song()
    run(song, settings)
    assert state(song, settings, share=0.5) == "stale"
    assert run(song, settings, share=0.5).state == "done"
    assert state(song, settings, share=0.5) == "done"
    for other in (Encoding("wav", "16"), Encoding("wav", "32f")):
        assert state(song, replace(settings, encoding=other), share=0.5) == "stale"
    assert state(song, replace(settings, clip="clamp"), share=0.5) == "stale"
    make_song(samples=30000)
    assert run(song, settings, share=0.5).state == "done"
    assert state(song, settings, share=0.5) == "done"


def test_where_it_ran_and_how_many_windows_at_once_make_no_difference(settings: Settings) -> None:
    def name(**told: object) -> str:
        return digest(describe(settings, {"model": "a", "models": [{"sha256": "b", **told}], **told}))

    assert name(device="cpu", batch=1, stems=["vocals"]) == name(device="cuda:0", batch=4, stems=["drums"])
    assert name(precision="fp32") != name(precision="fp16")


def test_a_song_that_was_only_touched_moved_or_copied_is_done(make_song: Make, settings: Settings) -> None:
    song = make_song()
    run(song, settings)
    os.utime(song, (1, 1))
    assert state(song, settings) == "done"
    moved = song.rename(song.parent / "moved" / song.name) if (song.parent / "moved").mkdir() else song
    assert state(moved, settings) == "done"


def test_one_missing_stem_makes_the_song_again(make_song: Make, settings: Settings) -> None:
    song = make_song()
    result = run(song, settings)
    result.job.outputs["vocals"].unlink()
    assert state(song, settings) == "stale"
    assert run(song, settings).state == "done"
    assert result.job.outputs["vocals"].exists()


def test_one_stem_of_what_is_done_is_done(make_song: Make, settings: Settings) -> None:
    song = make_song()
    run(song, settings)
    assert state(song, replace(settings, stems=("instrumental",))) == "done"


def test_the_same_name_for_another_stem_is_not_done(make_song: Make, settings: Settings) -> None:
    song = make_song()
    settings = replace(settings, template="{track}.{ext}", stems=("vocals",))
    run(song, settings)
    assert state(song, replace(settings, stems=("instrumental",))) == "stale"


def test_what_the_journal_does_not_know_is_nobodys_to_replace(make_song: Make, settings: Settings) -> None:
    song = make_song()
    run(song, settings)
    (settings.out / batch.JOURNAL).unlink()
    result = run(song, settings)
    assert result.state == "failed"
    assert "the journal does not tell" in result.error
    assert "--overwrite" in result.error
    assert run(song, replace(settings, overwrite=True)).state == "done"


def test_what_was_changed_by_hand_is_left_alone(make_song: Make, settings: Settings) -> None:
    song = make_song()
    vocals = run(song, settings).job.outputs["vocals"]
    os.utime(vocals)  # as a copy does
    assert state(song, settings) == "done"
    vocals.write_bytes(b"my own")
    assert state(song, settings) == "exists"
    for share in (0.25, 0.5):
        result = run(song, settings, share)
        assert "was changed since it was made" in result.error
        assert vocals.read_bytes() == b"my own"


def test_stems_under_any_name_are_no_songs_beside_the_song_they_were_made_from(make_song: Make, tmp_path: Path) -> None:
    song = make_song("songs/song.wav")
    settings = Settings(template="{track}/{stem}-{model}.{ext}")
    stems = run(song, settings).job.outputs.values()
    for inputs in ([song.parent], [song, *stems], [f"{song.parent}/**/*.wav"]):
        assert [job.input for job in batch.plan(inputs, Settings(), recursive=True)] == [song]
    alone = [job.input for job in batch.plan([song.with_suffix("")], Settings(out=tmp_path / "out"))]
    assert sorted(alone) == sorted(stems)


def test_a_song_that_is_missing_is_no_work_to_do(settings: Settings, tmp_path: Path) -> None:
    (step,) = batch.preview(batch.plan([tmp_path / "no.wav"], settings), settings, FakeSeparator().describe)
    assert step.state == "failed" and "no such file" in step.reason


def test_the_stem_of_another_song_is_left_alone(make_song: Make, settings: Settings) -> None:
    run(make_song("a/song.wav"), settings)
    other = make_song("b/song.wav", samples=30000)
    assert "was made from" in run(other, settings).error


def test_a_run_that_was_killed_between_two_names_is_finished(
    make_song: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    song = make_song()
    replaced = os.replace

    def once(source: Path, target: Path) -> None:
        if "Instrumental" in str(target):
            raise RuntimeError("killed here")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", once)
    run(song, settings)
    monkeypatch.undo()
    assert sorted(os.listdir(settings.out)) == [batch.JOURNAL, "song_Vocals.wav"]
    assert state(song, settings) == "stale"
    assert run(song, settings).state == "done"
    assert len(os.listdir(settings.out)) == 3


def test_what_another_run_makes_meanwhile_is_skipped(make_song: Make, settings: Settings) -> None:
    songs = [make_song(f"{number}.wav") for number in range(3)]
    run(songs[0], settings)
    results = batch.run(batch.plan(songs, settings), FakeSeparator(), settings, songs=1)
    assert next(results).state == "skipped"
    assert run(songs[2], settings).state == "done"
    assert [(result.state, result.error) for result in results] == [("done", None), ("skipped", None)]


@pytest.mark.parametrize("skip", [True, False])
def test_what_another_run_makes_of_the_same_song_is_not_replaced(
    make_song: Make, settings: Settings, skip: bool
) -> None:
    class Slower(FakeSeparator):
        def stream(self, *song: object) -> Iterator[dict[str, Tensor]]:
            made.update({path: path.stat() for path in run(input_song, settings).job.outputs.values()})
            return super().stream(*song)

    made: dict[Path, os.stat_result] = {}
    input_song, slower = make_song(), replace(settings, skip_existing=skip)
    (result,) = batch.run(batch.plan([input_song], slower), Slower(), slower)
    assert result.state == ("skipped" if skip else "failed")
    assert skip or ("meanwhile" in result.error and "--overwrite" in result.error)
    assert {path: path.stat() for path in made} == made


def test_a_journal_is_read_on_from_where_it_was_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for track in ("first", "second"):
        assert journal.entry(tmp_path / f"{track}.wav") is None
        note(tmp_path, track, {})
        assert journal.entry(tmp_path / f"{track}.wav").done
    other = tmp_path / "other"
    other.mkdir()
    for track in ("third", "fourth", "fifth"):
        note(other, track, {})
    (other / batch.JOURNAL).replace(tmp_path / batch.JOURNAL)
    assert [journal.entry(tmp_path / f"{track}.wav") is None for track in ("first", "third")] == [True, False]


def test_half_a_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    note(tmp_path, "song", {})
    path, journal = tmp_path / batch.JOURNAL, Journal(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert journal.entry(tmp_path / "song.wav") is None
    path.write_bytes(whole)
    assert journal.entry(tmp_path / "song.wav").done


@pytest.mark.parametrize("replaces", [False, True])
def test_a_name_that_the_disk_refuses_leaves_all_as_it_was(
    make_song: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    def refused(source: Path, target: Path) -> None:
        if Path(source).name == "stem1.wav" and Path(target).name == "song_Instrumental.wav":
            raise OSError(errno.EACCES, "Permission denied")
        replaced(source, target)

    song, replaced = make_song(), os.replace
    if replaces:
        run(song, settings)
    settings.out.mkdir(exist_ok=True)
    before = {path.name: path.read_bytes() for path in settings.out.glob("*.wav")}
    monkeypatch.setattr(os, "replace", refused)
    result = run(song, settings, share=0.5)
    monkeypatch.undo()
    assert result.error.startswith(f"{result.job.outputs['instrumental']}: cannot be written, no permission")
    assert {path.name: path.read_bytes() for path in settings.out.glob("*.wav")} == before
    assert set(os.listdir(settings.out)) == {*before, batch.JOURNAL}
    assert state(song, settings, share=0.5) == ("stale" if replaces else "new")
    assert run(song, settings, share=0.5).state == "done"


def test_the_journal_is_written_without_being_asked_and_moves_with_its_folder(
    make_song: Make, settings: Settings, tmp_path: Path
) -> None:
    song = make_song()
    run(song, replace(settings, skip_existing=False))
    elsewhere = tmp_path / "elsewhere"
    shutil.move(settings.out, elsewhere)
    assert state(song, replace(settings, out=elsewhere)) == "done"


def test_a_journal_that_cannot_be_written_is_told_and_costs_no_song(make_song: Make, settings: Settings) -> None:
    (settings.out / batch.JOURNAL).mkdir(parents=True)
    result = run(make_song(), settings)
    assert result.state == "done"
    assert any("cannot be written" in warning for warning in result.warnings)


# The file


def note(folder: Path, track: str, making: dict[str, object]) -> None:
    job = Job(folder / f"{track}.mp3", {"vocals": folder / f"{track}.wav"})
    origin = Origin(str(job.input), Stamp(1, 2), "0" * 64)
    Journal(folder).note(job, origin, {"vocals": Stamp(3, 4)}, making, done=True)


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    note(tmp_path, "first", {"model": "a"})
    with open(tmp_path / batch.JOURNAL, "ab") as journal:
        journal.write(b'[1]\n"text"\n{"outputs": {"vocals": 3}}\n\xff\xfe\n\n' + b"[" * 100_000 + b"\n")
        origin = {"size": 1, "mtime_ns": 1, "sha256": "", "making": "", "state": "done"}
        for odd in ({"input": [1]}, {"input": "a", "size": {}}, {"input": "a", "making": []}):
            journal.write(json.dumps({**origin, **odd, "outputs": {"vocals": ["third.wav", 1, 1]}}).encode() + b"\n")
        journal.write(b'{"state": "done", "outp')
    note(tmp_path, "second", {"model": "a"})
    journal = Journal(tmp_path)
    assert journal.entry(tmp_path / "first.wav").done
    assert journal.entry(tmp_path / "second.wav").stamp == Stamp(3, 4)
    assert journal.entry(tmp_path / "third.wav") is None


def test_many_writers_at_once_lose_no_line(tmp_path: Path) -> None:
    def write(name: int) -> None:
        for number in range(20):
            note(tmp_path, f"{name}-{number}", {"model": name})

    threads = [threading.Thread(target=write, args=(name,)) for name in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for line in (tmp_path / batch.JOURNAL).read_text().splitlines():
        json.loads(line)
    journal = Journal(tmp_path)
    for name in range(5):
        for number in range(20):
            assert journal.entry(tmp_path / f"{name}-{number}.wav") is not None


@pytest.mark.parametrize("track", ["é", "e\u0301", os.fsdecode(b"\xe9"), "line\nbreak", "{}"])
def test_a_journal_knows_names_of_every_kind(tmp_path: Path, track: str) -> None:
    note(tmp_path, track, {})
    for other in {track, track.replace("é", "e\u0301"), track.replace("e\u0301", "é")}:
        assert Journal(tmp_path).entry(tmp_path / f"{other}.wav").done
