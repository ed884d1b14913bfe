"""What a person may name as inputs, and which songs that stands for: folders, trees, patterns, lists, shards."""

import os
import unicodedata
from pathlib import Path, PurePath

import pytest

from vocalremover import batch
from vocalremover.batch import Settings, find_songs
from vocalremover.errors import InputError, UsageError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"song")


def found(folder: Path, *inputs: object, recursive: bool = False, out: Path | None = None) -> list[str]:
    return [song.path.relative_to(folder).as_posix() for song in find_songs(inputs or [folder], recursive, out)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    names = "b.wav a/z.wav a/deep/x.mp3 c.txt .hidden.wav .vocalremover-1/stem0.wav a/.vocalremover-2/stem0.wav"
    touch(*(tmp_path / name for name in names.split()))
    return tmp_path


def test_a_tree_is_walked_only_when_asked_and_never_into_hidden_folders(tree: Path) -> None:
    assert found(tree) == ["b.wav"]
    assert found(tree, recursive=True) == ["b.wav", "a/z.wav", "a/deep/x.mp3"]


def test_an_empty_name_is_not_the_folder_one_is_in(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(UsageError, match="an input is empty"):
        found(tree, "")


def test_the_tree_is_repeated_below_the_output_folder(tree: Path) -> None:
    out = tree.parent / "out"
    jobs = batch.plan([tree], Settings(out=out, stems=("vocals",)), recursive=True)
    assert [job.outputs["vocals"].relative_to(out) for job in jobs] == [
        PurePath("b_Vocals.wav"), PurePath("a/z_Vocals.wav"), PurePath("a/deep/x_Vocals.wav")
    ]  # fmt: skip
    beside = batch.plan([tree], Settings(stems=("vocals",)), recursive=True)
    assert {job.outputs["vocals"].parent for job in beside} == {tree, tree / "a", tree / "a/deep"}


def test_the_output_folder_within_the_tree_is_not_searched_for_songs(tree: Path) -> None:
    out = tree / "stems"
    touch(out / "b_Vocals.wav", out / "a/z_Vocals.wav")
    assert found(tree, recursive=True, out=out) == ["b.wav", "a/z.wav", "a/deep/x.mp3"]
    assert found(tree, out, recursive=True, out=out) == ["stems/b_Vocals.wav", "stems/a/z_Vocals.wav"]


def test_links_in_a_circle_end_and_a_song_reached_twice_is_one(tree: Path) -> None:
    (tree / "a/loop").symlink_to(tree, target_is_directory=True)
    (tree / "self").symlink_to(tree / "self")
    (tree / "twin").symlink_to(tree / "a", target_is_directory=True)
    songs = found(tree, recursive=True)
    assert sorted(PurePath(song).name for song in songs) == ["b.wav", "x.mp3", "z.wav"]


def test_what_looks_like_a_song_and_is_none(tree: Path) -> None:
    (tree / "folder.wav").mkdir()
    os.mkfifo(tree / "pipe.wav")
    (tree / "gone.wav").symlink_to(tree / "nowhere.wav")
    (tree / "round.wav").symlink_to(tree / "round.wav")
    assert found(tree) == ["b.wav", "gone.wav", "round.wav"]


def test_a_folder_that_cannot_be_read_is_a_job_that_tells_why(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    jobs = batch.plan([tree], Settings(), recursive=True)
    assert [job.problem is None for job in jobs] == [True, True, False]
    assert "deep: this folder cannot be read: Permission denied" in jobs[-1].problem


def test_a_pattern_stands_for_what_the_shell_would_put_there(tree: Path) -> None:
    touch(tree / "d[1].wav", tree / "a.wav")
    assert found(tree, f"{tree}/*.wav") == ["a.wav", "b.wav", "d[1].wav"]
    assert found(tree, tree / "d[1].wav") == ["d[1].wav"]
    assert found(tree, f"{tree}/**/*.mp3") == ["a/deep/x.mp3"]
    (song,) = find_songs([f"{tree}/*.flac"])
    assert "no file has a name like this" in song.problem


def test_a_pattern_that_nothing_matches_is_no_input_unless_there_are_songs_besides(tree: Path) -> None:
    (tree / "empty").mkdir()
    for inputs in ([f"{tree}/*.flac"], [tree / "empty", f"{tree}/*.flac"]):
        with pytest.raises(InputError, match=r"\*\.flac: no file has a name like this"):
            batch.plan(inputs, Settings())
    assert [job.problem is None for job in batch.plan([f"{tree}/*.flac", tree], Settings())] == [False, True]


def test_a_list_is_relative_to_its_own_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = os.fsdecode(b"latin\xe9.wav")
    nfd = unicodedata.normalize("NFD", "é.wav")
    touch(tree / odd, tree / nfd, tree / " padded .wav", tree / "#sharp.wav")
    lines = ["# of songs", "", "b.wav", str(tree / "a/z.wav"), odd, nfd, " padded .wav", "a/deep", "./#sharp.wav"]
    text = "\r\n".join(lines).encode("utf-8", "surrogateescape")
    (tree / "list.txt").write_bytes(b"\xef\xbb\xbf" + text)
    monkeypatch.chdir(tree.parent)
    assert found(tree, f"@{tree / 'list.txt'}") == [
        "b.wav", "a/z.wav", odd, nfd, " padded .wav", "a/deep/x.mp3", "#sharp.wav"
    ]  # fmt: skip


def test_a_name_that_begins_with_an_at_is_a_file_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(Path("@home.wav"))
    assert [song.path for song in find_songs(["@home.wav"])] == [Path("@home.wav")]
    with pytest.raises(InputError, match=r"nothing\.txt cannot be read"):
        find_songs(["@nothing.txt"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_may_be_what_windows_writes(tree: Path, encoding: str) -> None:
    (tree / "list.txt").write_text("b.wav\r\na/z.wav\r\n", encoding=encoding, newline="")
    assert found(tree, f"@{tree / 'list.txt'}") == ["b.wav", "a/z.wav"]
    (tree / "list.txt").write_bytes(b"b.wav\0a/z.wav")
    with pytest.raises(InputError, match="is no text"):
        find_songs([f"@{tree / 'list.txt'}"])


def test_standard_input_is_no_file_among_others() -> None:
    with pytest.raises(UsageError, match="stands alone"):
        find_songs(["-", "song.wav"])


# Shards


def test_shards_share_all_jobs_whatever_is_done(tmp_path: Path) -> None:
    songs = [tmp_path / "in" / f"{number}.wav" for number in range(7)]
    touch(*songs)
    settings = Settings(out=tmp_path / "out")
    whole = batch.plan([tmp_path / "in"], settings)
    shards = []
    for number in (1, 2, 3):
        shards.append(batch.plan([tmp_path / "in"], settings, shard=(number, 3)))
        touch(*shards[-1][0].outputs.values())
    assert sorted((job for shard in shards for job in shard), key=lambda job: job.input) == whole
    assert [len(shard) for shard in shards] == [3, 2, 2]
    assert batch.plan([songs[0]], settings, shard=(2, 3)) == []


def test_a_collision_between_two_shards_is_refused_in_each(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav", tmp_path / "a.mp3", tmp_path / "b.wav")
    for number in (1, 2, 3):
        with pytest.raises(UsageError, match="would both be written to"):
            batch.plan([tmp_path], Settings(), shard=(number, 3))


@pytest.mark.parametrize("shard", [(0, 8), (3, 2)])
def test_a_shard_is_counted_from_one(tmp_path: Path, shard: tuple[int, int]) -> None:
    touch(tmp_path / "a.wav")
    with pytest.raises(UsageError, match="shard"):
        batch.plan([tmp_path], Settings(), shard=shard)
