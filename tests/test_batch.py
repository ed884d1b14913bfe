"""Jobs: which songs, which names, what is refused before anything starts; and what is on disk afterwards."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import FakeSeparator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from vocalremover import batch
from vocalremover.audio import Encoding, read
from vocalremover.batch import Job, Settings
from vocalremover.errors import InputError, UsageError

FLOAT = Encoding("wav", "32f")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"song")


def inputs_of(jobs: list[Job]) -> list[str]:
    return [job.input.name for job in jobs]


def names_in(folder: Path) -> list[str]:
    """All names, hidden ones too, save for the journal's."""
    return sorted(set(os.listdir(folder)) - {batch.JOURNAL})


# Planning


def test_a_folder_is_the_songs_in_it_sorted_and_nothing_else(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b.MP3", "a.flac", "c.txt", ".hidden.wav", "deeper/d.wav")))
    (tmp_path / "folder.wav").mkdir()
    assert inputs_of(batch.plan([tmp_path], Settings())) == ["a.flac", "b.MP3"]


def test_songs_come_in_the_order_given_and_once(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav", tmp_path / "b.wav")
    again = tmp_path / "." / "x" / ".." / "a.wav"
    (tmp_path / "x").mkdir()
    assert inputs_of(batch.plan([tmp_path / "b.wav", again, tmp_path], Settings())) == ["b.wav", "a.wav"]


def test_a_folder_without_songs_is_no_input(tmp_path: Path) -> None:
    touch(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="no song in"):
        batch.plan([tmp_path], Settings())
    with pytest.raises(InputError):
        batch.plan([], Settings())


def test_stems_of_an_earlier_run_are_no_songs_but_may_be_named(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("song.mp3", "song_Vocals.wav", "song_Instrumental.flac", "other_Vocals.wav")))
    assert inputs_of(batch.plan([tmp_path], Settings())) == ["other_Vocals.wav", "song.mp3"]
    assert inputs_of(batch.plan([f"{tmp_path}/*"], Settings())) == ["other_Vocals.wav", "song.mp3"]
    named = batch.plan([tmp_path / "song_Instrumental.flac"], Settings())
    assert inputs_of(named) == ["song_Instrumental.flac"]


def test_default_names_stand_beside_the_input(tmp_path: Path) -> None:
    touch(tmp_path / "song.mp3")
    (job,) = batch.plan([tmp_path / "song.mp3"], Settings())
    assert job.outputs == {
        "vocals": tmp_path / "song_Vocals.wav",
        "instrumental": tmp_path / "song_Instrumental.wav",
    }


def test_a_template_decides_name_and_folder(tmp_path: Path) -> None:
    settings = Settings(
        out=tmp_path / "out",
        template="{model}/{stem}/{track}.{ext}",
        stems=("vocals",),
        encoding=Encoding("flac"),
        model="/models/best.run.safetensors",
    )
    assert settings.name(tmp_path / "a.b.mp3", "vocals") == tmp_path / "out/best.run/Vocals/a.b.flac"


def test_no_songs_name_leads_out_of_the_output_folder(tmp_path: Path) -> None:
    settings = Settings(out=tmp_path / "out", template="{track}/{stem}.{ext}")
    assert settings.name(tmp_path / "...wav", "vocals") == tmp_path / "out/_../Vocals.wav"


@pytest.mark.parametrize(
    "template",
    [
        "{artist}.{ext}",
        "{track.name}_{stem}.{ext}",
        "{track!r}_{stem}.{ext}",
        "{track:>9}_{stem}.{ext}",
        "{}_{stem}.{ext}",
        "{track_{stem}.{ext}",
        "{track}_{stem}",
        "{track}_{stem}.wav",
        "../{track}_{stem}.{ext}",
        "/{track}_{stem}.{ext}",
        "",
    ],
)
def test_a_template_that_cannot_name_stems_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match="template"):
        Settings(template=template)


def test_an_unknown_clip_rule_is_refused() -> None:
    with pytest.raises(UsageError, match="rescale"):
        Settings(clip="loud")


def test_both_stems_of_a_song_need_two_names(tmp_path: Path) -> None:
    touch(tmp_path / "song.mp3")
    with pytest.raises(UsageError, match=r"\{stem\}"):
        batch.plan([tmp_path / "song.mp3"], Settings(out=tmp_path / "out", template="{track}.{ext}"))
    alone = Settings(out=tmp_path / "out", template="{track}.{ext}", stems=("vocals",))
    assert batch.plan([tmp_path / "song.mp3"], alone)[0].outputs["vocals"] == tmp_path / "out/song.wav"


@pytest.mark.parametrize("twins", [("song.mp3", "song.flac"), ("a/song.mp3", "b/song.mp3"), ("Song.mp3", "song.wav")])
def test_two_songs_with_one_output_are_refused(tmp_path: Path, twins: tuple[str, str]) -> None:
    songs = [tmp_path / name for name in twins]
    touch(*songs)
    with pytest.raises(UsageError, match="would both be written to"):
        batch.plan(songs, Settings(out=tmp_path / "out"))


def test_names_that_differ_only_in_their_accents_encoding_collide(tmp_path: Path) -> None:
    songs = [tmp_path / f"{unicodedata.normalize(form, 'é')}.wav" for form in ("NFC", "NFD")]
    touch(*songs)
    with pytest.raises(UsageError, match="would both"):
        batch.plan(songs, Settings(out=tmp_path / "out"))


@pytest.mark.parametrize("kind", ["same", "case", "symlink", "hardlink", "linked folder"])
def test_an_output_that_is_an_input_is_refused(tmp_path: Path, kind: str) -> None:
    song = tmp_path / ("SONG.wav" if kind == "case" else "song.wav")
    touch(song)
    out = tmp_path
    if kind == "linked folder":
        out = tmp_path / "link"
        out.symlink_to(tmp_path, target_is_directory=True)
    elif kind in ("symlink", "hardlink"):
        out = tmp_path / "out"
        out.mkdir()
        (out / "song.wav").symlink_to(song) if kind == "symlink" else os.link(song, out / "song.wav")
    named = tmp_path / "song.mp3" if kind == "case" else song
    touch(named)
    settings = Settings(out=out, template="{track}.{ext}", stems=("vocals",), overwrite=True)
    with pytest.raises(UsageError, match="is the input"):
        batch.plan([named, song], settings) if kind == "case" else batch.plan([song], settings)


def test_an_output_that_is_another_songs_file_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "song.mp3", tmp_path / "song_Vocals.wav")
    with pytest.raises(UsageError, match=r"song_Vocals\.wav is the input"):
        batch.plan([tmp_path / "song.mp3", tmp_path / "song_Vocals.wav"], Settings(overwrite=True))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=300))
def test_no_name_is_longer_than_a_file_system_takes(track: str) -> None:
    song = Path("folder") / f"{track}.mp3"
    for stem in batch.STEMS:
        name = Settings().name(song, stem).name
        assert len(os.fsencode(name)) <= 255
        assert name.endswith(f"_{stem.capitalize()}.wav")


def test_long_names_with_the_same_beginning_stay_apart() -> None:
    names = {Settings().name(Path("ä" * 120 + end + ".mp3"), "vocals").name for end in ("one" * 9, "two" * 9)}
    assert len(names) == 2


# Running


def test_the_stems_are_whole_and_sum_to_the_song(make_song: Callable[..., Path], fake_separator: FakeSeparator) -> None:
    song = make_song(samples=70001, rate=48000, bits="32f")
    settings = Settings(encoding=FLOAT)
    (result,) = batch.run(batch.plan([song], settings), fake_separator, settings)
    assert result.error is None
    assert result.duration == pytest.approx(70001 / 48000)
    stems = {stem: read(path) for stem, path in result.job.outputs.items()}
    assert {rate for _, rate in stems.values()} == {48000}
    assert_close(stems["vocals"][0] + stems["instrumental"][0], read(song)[0], rtol=0, atol=1e-7)
    assert names_in(song.parent) == ["song.wav", "song_Instrumental.wav", "song_Vocals.wav"]


def test_only_the_wanted_stem_is_written(make_song: Callable[..., Path], fake_separator: FakeSeparator) -> None:
    song = make_song()
    settings = Settings(stems=("instrumental",))
    (result,) = batch.run(batch.plan([song], settings), fake_separator, settings)
    assert list(result.job.outputs) == ["instrumental"]
    assert names_in(song.parent) == ["song.wav", "song_Instrumental.wav"]


def test_the_first_pass_is_made_only_where_the_model_needs_it(make_song: Callable[..., Path]) -> None:
    song = make_song()
    loudest = float(read(song)[0].abs().max())
    for needs_peak, expected in ((False, None), (True, loudest)):
        separator = FakeSeparator(needs_peak=needs_peak)
        settings = Settings(overwrite=True)
        list(batch.run(batch.plan([song], settings), separator, settings))
        assert separator.measured == [expected]


def test_a_failed_song_leaves_nothing_and_stops_nobody(
    make_song: Callable[..., Path], fake_separator: FakeSeparator
) -> None:
    songs = [make_song("a.wav"), make_song("b.wav"), make_song("c.wav")]
    songs[1].write_bytes(b"")
    settings = Settings(out=songs[0].parent / "out")
    results = list(batch.run(batch.plan(songs, settings), fake_separator, settings))
    assert [result.error is None for result in results] == [True, False, True]
    assert "b.wav" in results[1].error
    assert names_in(settings.out) == [f"{track}_{stem}.wav" for track in "ac" for stem in ("Instrumental", "Vocals")]


@pytest.mark.parametrize("failure", [RuntimeError("boom"), OSError(28, "No space left on device"), ValueError("odd")])
@pytest.mark.parametrize("clip", ["none", "rescale"])
def test_a_failure_in_the_middle_leaves_no_file(
    make_song: Callable[..., Path], failure: Exception, clip: str
) -> None:
    class Breaks(FakeSeparator):
        def stream(self, *song: object) -> Iterator[dict[str, Tensor]]:
            for number, stems in enumerate(super().stream(*song)):
                if number == 1:
                    raise failure
                yield stems

    song = make_song(samples=200000)
    settings = Settings(clip=clip)
    (result,) = batch.run(batch.plan([song], settings), Breaks(), settings)
    assert str(failure.args[-1]) in result.error
    assert "\n" not in result.error
    assert names_in(song.parent) == ["song.wav"]


def test_existing_stems_are_kept_unless_told_otherwise(
    make_song: Callable[..., Path], fake_separator: FakeSeparator
) -> None:
    song = make_song()
    other = make_song("other.wav")
    old = song.with_name("song_Vocals.wav")
    old.write_bytes(b"precious")
    settings = Settings()
    results = list(batch.run(batch.plan([song, other], settings), fake_separator, settings))
    assert "--overwrite" in results[0].error
    assert results[1].error is None
    assert old.read_bytes() == b"precious"
    settings = Settings(overwrite=True)
    (result,) = batch.run(batch.plan([song], settings), fake_separator, settings)
    assert result.error is None
    assert old.read_bytes() != b"precious"


def test_a_folder_in_the_place_of_a_stem_is_an_error(
    make_song: Callable[..., Path], fake_separator: FakeSeparator
) -> None:
    song = make_song()
    song.with_name("song_Instrumental.wav").mkdir()
    settings = Settings(overwrite=True)
    (result,) = batch.run(batch.plan([song], settings), fake_separator, settings)
    assert "is a folder" in result.error
    assert not song.with_name("song_Vocals.wav").exists()


def test_a_stem_beyond_full_scale_is_told_and_left_alone(make_song: Callable[..., Path]) -> None:
    song = make_song(samples=30000, bits="32f")
    for encoding, told in ((Encoding("wav", "16"), True), (FLOAT, False)):
        settings = Settings(encoding=encoding, overwrite=True)
        (result,) = batch.run(batch.plan([song], settings), FakeSeparator(share=8.0), settings)
        over = [warning for warning in result.warnings if "vocals" in warning and "dB" in warning]
        assert bool(over) is told
    vocals, _ = read(result.job.outputs["vocals"])
    assert_close(vocals, read(song)[0] * 8.0)


@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        (Encoding("wav"), "was clipped; --clip rescale or --bits 32f keeps it whole"),
        (Encoding("flac"), "was clipped; --clip rescale or -f wav --bits 32f keeps it whole"),
        (Encoding("mp3"), "may be clipped by a player; --clip rescale or -f wav --bits 32f keeps it whole"),
    ],
)
def test_what_is_said_of_a_stem_beyond_full_scale_is_true_of_its_format(
    make_song: Callable[..., Path], encoding: Encoding, told: str
) -> None:
    settings = Settings(encoding=encoding, stems=("vocals",))
    (result,) = batch.run(batch.plan([make_song()], settings), FakeSeparator(share=8.0), settings)
    (warning,) = result.warnings
    assert warning.endswith(f"dB and {told}")


def test_rescale_turns_all_stems_down_by_one_gain(make_song: Callable[..., Path]) -> None:
    song = make_song(samples=30000, bits="32f")
    settings = Settings(clip="rescale", encoding=Encoding("wav", "24"))
    (result,) = batch.run(batch.plan([song], settings), FakeSeparator(share=8.0), settings)
    mixture, _ = read(song)
    gain = 1 / (8.0 * float(mixture.abs().max()))
    stems = {stem: read(path)[0] for stem, path in result.job.outputs.items()}
    step = 2.0**-23
    assert_close(stems["vocals"], mixture * 8.0 * gain, rtol=0, atol=step)
    assert_close(stems["instrumental"], mixture * -7.0 * gain, rtol=0, atol=step)
    assert any("dB" in warning for warning in result.warnings)


def test_rescale_leaves_a_song_within_full_scale_as_it_is(
    make_song: Callable[..., Path], fake_separator: FakeSeparator
) -> None:
    song = make_song(samples=30000, bits="32f")
    settings = Settings(clip="rescale", encoding=FLOAT)
    (result,) = batch.run(batch.plan([song], settings), fake_separator, settings)
    assert result.warnings == ()
    assert torch.equal(read(result.job.outputs["vocals"])[0], read(song)[0] * 0.25)


def test_clamp_limits_samples_and_nothing_else(make_song: Callable[..., Path]) -> None:
    song = make_song(samples=30000, bits="32f")
    settings = Settings(clip="clamp", encoding=FLOAT)
    (result,) = batch.run(batch.plan([song], settings), FakeSeparator(share=8.0), settings)
    assert torch.equal(read(result.job.outputs["vocals"])[0], (read(song)[0] * 8.0).clamp(-1, 1))
    assert any("limited" in warning for warning in result.warnings)


def test_a_name_too_long_for_the_disk_is_told_before_the_work(make_song: Callable[..., Path]) -> None:
    class Untouched(FakeSeparator):
        def stream(self, *song: object) -> Iterator[dict[str, Tensor]]:
            raise AssertionError("the song was separated in vain")

    song = make_song()
    settings = Settings(out=song.parent / "out", template="x" * 240 + "_{stem}.{ext}")
    (result,) = batch.run(batch.plan([song], settings), Untouched(), settings)
    assert "_Instrumental.wav: cannot be written, the name is too long for this disk" in result.error
    assert os.listdir(settings.out) == []


@pytest.mark.parametrize("clip", batch.CLIPS)
def test_a_rate_that_the_format_lacks_is_told_before_the_work(make_song: Callable[..., Path], clip: str) -> None:
    class Untouched(FakeSeparator):
        def stream(self, *song: object) -> Iterator[dict[str, Tensor]]:
            raise AssertionError("the song was separated in vain")

    song = make_song(rate=50000)
    settings = Settings(encoding=Encoding("mp3"), clip=clip)
    (result,) = batch.run(batch.plan([song], settings), Untouched(), settings)
    assert "50000 Hz" in result.error
    assert str(song.with_name("song_Vocals.mp3")) in result.error


def test_progress_sees_every_sample_of_every_pass(make_song: Callable[..., Path]) -> None:
    seen: dict[str, int] = {}

    def progress(blocks: Iterable[Tensor], job: Job, stage: str, samples: int | None) -> Iterator[Tensor]:
        assert samples == 150000
        for block in blocks:
            seen[stage] = seen.get(stage, 0) + block.shape[-1]
            yield block

    settings = Settings()
    jobs = batch.plan([make_song(samples=150000)], settings)
    list(batch.run(jobs, FakeSeparator(needs_peak=True), settings, progress))
    assert seen == {"measuring": 150000, "separating": 150000}


def test_the_separators_warnings_go_to_the_song_they_arose_with(make_song: Callable[..., Path]) -> None:
    class Warns(FakeSeparator):
        def stream(self, *song: object) -> Iterator[dict[str, Tensor]]:
            self.warnings.append(f"warning {len(self.warnings)}")
            return super().stream(*song)

    songs = [make_song("a.wav"), make_song("b.wav")]
    settings = Settings()
    results = list(batch.run(batch.plan(songs, settings), Warns(), settings))
    assert [result.warnings for result in results] == [("warning 0",), ("warning 1",)]
