"""`vocalremover ensemble`: how its models are named, what reaches the library, and what it makes."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import check_wrong_usage
from torch.testing import assert_close

from vocalremover import checkpoint
from vocalremover.audio import Encoding, read, write
from vocalremover.cli.ensemble import ModelsCommand
from vocalremover.cli.ensemble import command as ensemble_command
from vocalremover.ensemble import Ensemble, Rule, Turns
from vocalremover.separate import Inference, Separator

Command = Callable[..., "object"]


def words_of(line: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The models and the inputs that a command line names."""
    context = ensemble_command.make_context("ensemble", line.split())
    return context.params["models"], context.params["inputs"]


# How models are named


@pytest.mark.parametrize(
    "line",
    [
        "song.mp3 --models v1 v2b v10",
        "song.mp3 --models v1,v2b,v10",
        "song.mp3 --models v1 --models v2b --models v10",
        "song.mp3 -m v1 -m v2b,v10",
        "song.mp3 --models=v1 v2b v10",
        "song.mp3 --models v1 v2b v10 -o stems",
        "--models v1 v2b v10 song.mp3",
        "--models v1,v2b v10 -o stems song.mp3",
        "-o stems --models v1 v2b --tta song.mp3 --models v10",
        "--models v1 v2b v10 -- song.mp3",
    ],
)
def test_models_are_named_as_one_likes(line: str) -> None:
    assert words_of(line) == (("v1", "v2b", "v10"), ("song.mp3",))


@pytest.mark.parametrize("song", ["-", "@list.txt", "songs/", "*.wav", "a.v1", "/music/v1.flac", "take[1].wav"])
def test_what_can_be_no_model_is_an_input(song: str) -> None:
    assert words_of(f"--models v1 models/v2.ckpt {song} b.wav") == (("v1", "models/v2.ckpt"), (song, "b.wav"))


def test_the_first_word_is_a_model_whatever_it_looks_like() -> None:
    assert words_of("--models weights.wav v1 a.wav") == (("weights.wav", "v1"), ("a.wav",))


def test_a_folder_called_like_a_model_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("v10", "songs"):
        (tmp_path / name).mkdir()
    assert words_of("--models v1 v10 songs") == (("v1", "v10"), ("songs",))


def test_what_follows_two_dashes_is_an_input() -> None:
    assert words_of("-m v1 -m v2b -- --models") == (("v1", "v2b"), ("--models",))
    assert issubclass(type(ensemble_command), ModelsCommand)


# What reaches the library


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> dict[str, object]:
    """What `load_all` was handed; nothing is separated."""
    handed: dict[str, object] = {}

    def load_all(
        names: tuple, device: str, rule: Rule, inference: Inference, configs: list, stems: tuple, in_turn: bool | None
    ) -> Ensemble:  # fmt: skip
        handed.update(
            names=names, device=device, rule=rule, inference=inference, configs=configs, stems=stems, in_turn=in_turn
        )
        return Ensemble([Separator.load(tiny_model, "cpu")] * 2)

    def run(jobs: list, separators: list, settings: object, progress: object, songs: int | None) -> iter:
        handed["settings"] = settings
        yield from ()

    monkeypatch.setattr("vocalremover.ensemble.load_all", load_all)
    monkeypatch.setattr("vocalremover.batch.run", run)
    monkeypatch.setattr("vocalremover.checkpoint.find", lambda name: tiny_model)
    return handed


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("", Rule("min", "spec")),
        ("--method max --domain wave", Rule("max", "wave")),
        ("--method avg_wave --weights 2,1", Rule("avg", "wave", (2.0, 1.0))),
        ("--method avg --weights 2 --weights 1", Rule("avg", "spec", (2.0, 1.0))),
        ("--method min_fft", Rule("min", "spec")),
        ("--method original", Rule("original", "spec")),
    ],
)
def test_rules(command: Command, make_song: Command, loaded: dict, words: str, rule: Rule) -> None:
    assert command("ensemble", make_song(), "--models", "v1", "v10", *words.split()).code == 0
    assert loaded["rule"] == rule
    assert loaded["names"] == ("v1", "v10")


def test_options_reach_the_library(command: Command, make_song: Command, loaded: dict, tmp_path: Path) -> None:
    words = "--models v1 v10 -d cpu --overlap 0.5 --tta --config v10=a.yaml --template {track}_{model}_{stem}.{ext}"
    outcome = command("ensemble", make_song(), *words.split(), "-o", tmp_path / "out", "-f", "flac", "--stem", "vocals")
    assert outcome.code == 0, outcome.err
    assert (loaded["device"], loaded["configs"], loaded["stems"]) == ("cpu", [None, Path("a.yaml")], ("vocals",))
    assert loaded["inference"] == Inference(overlap=0.5, tta=True)
    assert loaded["in_turn"] is None
    settings = loaded["settings"]
    assert (settings.out, settings.model, settings.encoding) == (tmp_path / "out", "v1+v10", Encoding("flac"))


def test_a_yaml_for_each_model(command: Command, make_song: Command, loaded: dict) -> None:
    words = "--models a.ckpt b.ckpt --config a.yaml --config b.yaml --in-turn"
    assert command("ensemble", make_song(), *words.split()).code == 0
    assert loaded["configs"] == [Path("a.yaml"), Path("b.yaml")]
    assert loaded["in_turn"] is True


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--models v1 v10 --method mode",
        "--models v1 v10 --method avg_wave --domain spec",
        "--models v1 v10 --method avg --weights 1,2,3",
        "--models v1 v10 --method avg --weights heavy",
        "--models v1 v10 --method min --weights 1,2",
        "--models v1 v10 --config a.yaml",
        "--models v1 v10 --config a.yaml --config v1=b.yaml",
        "--models v1 v10 --domain time",
        "--models v1 v10 --files -o out.wav",
        "--files",
        "--files -o out.wav",
        "--files -o out.doc",
        "--files -o -",
        "--files -o out.wav --stem vocals",
        "--files -o out.wav --report page.html",
        "--files -o out.wav b.wav -f flac",
        "--files -o out.wav b.wav --clip rescale",
        "--files -o out.wav b.wav --template {track}.{ext}",
        "--files -o out.wav b.wav --in-turn",
        "--files -o out.wav b.wav -j 4",
        "--files -o out.wav b.wav --config nowhere.yaml",
        "--files -o out.wav b.wav --quality best",
        "--files -o out.wav b.wav -d cpu",
        "--models default default --stem drums",
        "--models default default --stem vocals -o - --in-turn",
    ],
)
def test_wrong_usage_is_one_sentence(command: Command, make_song: Command, words: str) -> None:
    song = make_song()
    check_wrong_usage(command("ensemble", song, *words.split()), song)


def test_no_input_is_wrong_usage(command: Command) -> None:
    assert command("ensemble", "--models", "v1", "v10").code == 2


# What it makes


def test_stems_sum_to_the_song_together_and_in_turn(
    command: Command, make_song: Command, tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    song = make_song(samples=50001)
    words = (song, "--models", tiny_model, other_model, "--bits", "32f", "-d", "cpu", "--json")
    stems = []
    for folder, more in (("together", ()), ("in turn", ("--in-turn",))):
        outcome = command("ensemble", *words, "-o", tmp_path / folder, *more)
        assert outcome.code == 0, outcome.err
        record = json.loads(outcome.out)
        assert record["model"] == "tiny+other"
        assert record["sha256"] == [checkpoint.sha256(tiny_model), checkpoint.sha256(other_model)]
        stems.append([read(Path(path))[0] for path in record["outputs"].values()])
        assert_close(stems[-1][0] + stems[-1][1], read(song)[0], rtol=0, atol=1e-6)
        assert sorted(os.listdir(tmp_path / folder)) == [
            ".vocalremover.jsonl", "song_Instrumental.wav", "song_Vocals.wav"
        ]  # fmt: skip
    # The spools hold float32, whose sums are rounded in another order.
    assert_close(stems[0][0], stems[1][0], rtol=0, atol=1e-5)
    for folder, more in (("together", ("--in-turn",)), ("in turn", ("--in-turn",)), ("in turn", ())):
        again = command("ensemble", *words, "-o", tmp_path / folder, *more, "--skip-existing")
        assert json.loads(again.out)["state"] == "skipped"
    for more in (("--cropsize", "40"), ()):
        anew = command("ensemble", *words, "-o", tmp_path / "in turn", "--in-turn", "--skip-existing", *more)
        assert json.loads(anew.out)["state"] == "done"


def test_what_went_otherwise_in_turn_is_told_with_the_first_song(
    command: Command, make_song: Command, tiny_model: Path, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = Turns.hear

    def noted(turns: Turns, *words: object) -> None:
        hear(turns, *words)
        turns.warnings.append("it ran otherwise")

    monkeypatch.setattr(Turns, "hear", noted)
    songs = [make_song("a.wav"), make_song("b.wav")]
    outcome = command("ensemble", *songs, "--models", tiny_model, other_model, "--in-turn", "--json")
    assert [json.loads(line)["warnings"] for line in outcome.out.splitlines()] == [["it ran otherwise"], []]


def test_a_song_that_fails_stops_no_other_in_turn(
    command: Command, make_song: Command, tiny_model: Path, other_model: Path
) -> None:
    songs = [make_song("a.wav"), make_song("b.wav"), make_song("c.wav")]
    songs[1].write_text("not a song")
    outcome = command("ensemble", *songs, "--models", tiny_model, other_model, "--in-turn", "--stem", "vocals")
    assert outcome.code == 1
    assert outcome.out.splitlines() == [str(song.with_name(f"{song.stem}_Vocals.wav")) for song in songs[::2]]
    assert outcome.err.count("error: ") == 1


def test_models_take_turns_beside_the_song_whatever_the_current_folder(
    command: Command, make_song: Command, tiny_model: Path, other_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nothing can be written into what is no folder any more; all that turns do not use is told once."""
    song, gone = make_song(), tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr("vocalremover.cli.options.Computing.devices", lambda self: ["cpu", "cuda:7"])
    outcome = command("ensemble", song, "--models", tiny_model, other_model, "--in-turn", "-j", 3, "--stem", "vocals")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [str(song.with_name("song_Vocals.wav"))]
    assert outcome.err.count("on cpu, without cuda:7, --jobs 3") == 1


def test_stems_made_elsewhere_become_one(command: Command, make_song: Command, tmp_path: Path) -> None:
    first = make_song("a.wav", samples=44100, bits="32f")
    song, rate = read(first)
    second, out = tmp_path / "b.wav", tmp_path / "made" / "both.flac"
    write(second, song / 2, rate, Encoding("wav", "32f"))
    outcome = command("ensemble", "--files", first, second, "-o", out, "--method", "avg_wave", "--weights", "3,1")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [str(out)]
    # 24 bits, in steps of 2**-23.
    assert_close(read(out)[0], song * (3 + 0.5) / 4, rtol=0, atol=2**-22)
    refused = command("ensemble", "--files", first, second, "-o", out)
    assert refused.code in (1, 2)
    assert "both.flac" in refused.err
    assert command("ensemble", first, second, "--files", "-o", out, "--overwrite", "--bits", "16", "-q").code == 0
