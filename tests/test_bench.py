"""`vocalremover bench`: every stage and setting is told, what does not fit is told as such, the best is the fastest."""

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Outcome, noise
from torch import Tensor, nn
from torch.testing import assert_close
from voices import BAND, RATE, SPEC, WAVE, Gains, constant

from vocalremover.audio import read, write
from vocalremover.bench import STAGES, Bench, Setting, Stage, Trial, Wanted, plan, song, stages, trials
from vocalremover.cli import commands
from vocalremover.cli.bench import announcement, doubts, drawn, reasons, sentence, stage_table, trial_table
from vocalremover.models import ModelSpec
from vocalremover.separate import Separator

Command = Callable[..., Outcome]
ROOT = Path(__file__).parent.parent
BASE = Setting("balanced", 1, "fp32", 1)


def stand(network: nn.Module, spec: ModelSpec = SPEC, device: str = "cpu") -> trials.Stand:
    return trials.Stand(spec, network, torch.device(device), [noise(RATE)], RATE, None, "stereo", 0.4)


def try_out(network: nn.Module, setting: Setting = BASE, champion: Trial | None = None) -> Trial:
    return trials.run(stand(network), setting, 4, 2, champion, lambda seconds: True)


# The command


@pytest.fixture(scope="module")
def quick(tiny_model: Path) -> list[str]:
    return ["bench", "-m", str(tiny_model), "-d", "cpu", "--seconds", "2"]


def test_json_has_every_stage_and_the_best_is_the_fastest(command: Command, quick: list[str]) -> None:
    threads = torch.get_num_threads()
    outcome = command(*quick, "--json")
    assert outcome.code == 0 and "this takes about" in outcome.err
    record = json.loads(outcome.out)
    needed = [stage for stage in STAGES if stage not in ("measure", "resample")]  # the song has the model's rate
    assert [stage["stage"] for stage in record["stages"]] == needed
    for stage in record["stages"]:
        if stage["seconds"]:
            assert stage["real_time_factor"] == pytest.approx(stage["song_seconds"] / stage["seconds"])
    ran = [trial for trial in record["trials"] if trial["state"] == "ok" and trial["quality"] == "balanced"]
    fastest = max(ran, key=lambda trial: trial["real_time_factor"])
    assert {key: record["best"][key] for key in fastest} == fastest
    assert record["default"]["whole"] == pytest.approx(record["stages"][-1]["real_time_factor"])
    words = record["command"]
    assert words[words.index("--batch-size") + 1] == str(fastest["batch"])
    assert words[words.index("--precision") + 1] == fastest["precision"]
    assert record["plan"]["song_seconds"] > 0 and record["host_bytes"] > 0
    assert torch.get_num_threads() == threads


def test_a_song_of_ones_own_is_resampled_and_left_alone(command: Command, quick: list[str], make_song: Command) -> None:
    path = make_song("mine.flac", samples=24000, rate=48000, channels=1)
    before = path.read_bytes()
    outcome = command(*quick, "--song", path)
    assert outcome.code == 0 and path.read_bytes() == before and os.listdir(path.parent) == ["mine.flac"]
    lines = outcome.out.splitlines()
    assert all(len(line) <= 80 for line in lines[:-1])
    assert any("resample" in line for line in lines) and any("file to files" in line for line in lines)
    assert lines[-1].startswith("On this machine: ") and "real time" in lines[-1]
    quiet = command(*quick, "--song", path, "-q")
    assert quiet.err == "" and quiet.out


def test_what_is_wrong_is_one_sentence(command: Command, tmp_path: Path) -> None:
    (tmp_path / "none.mp3").write_text("no song")
    for code, words in (
        (1, ("--song", tmp_path / "none.mp3")), (1, ("--song", tmp_path / "absent.mp3")), (4, ("-m", "nothing")),
        (2, ("--seconds", "0")), (2, ("-d", "gpu")),
    ):  # fmt: skip
        outcome = command("bench", *words)
        assert (outcome.code, outcome.out) == (code, "") and "Traceback" not in outcome.err


STUCK = """
import sys, time
from vocalremover.bench import plan, trials
plan.draw = lambda window, *rest: plan.Plan(window, 2, 1, window, 1, 1, ({}, {"batch": 2}), 60.0)
run = trials.run
def stuck(stand, setting, *rest, **more):
    if setting.batch > 1:
        print("working", file=sys.stderr, flush=True)
        time.sleep(600)
    return run(stand, setting, *rest, **more)
trials.run = stuck
from vocalremover.cli import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_an_interrupt_tells_what_is_known(quick: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, *quick, "--json", "-q"], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        # A test run in the background of a shell has ^C ignored, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "stopped" in err and "Traceback" not in err
    record = json.loads(out)
    assert record["stages"][-1]["stage"] == "whole" and not record["complete"]
    assert record["trials"][0]["state"] == "ok" and record["best"]["batch"] == 1


# Trials


class Greedy(nn.Module):
    """Lacks memory for more than some windows at once."""

    def __init__(self, error: Exception, most: int = 1) -> None:
        super().__init__()
        self.error, self.most = error, most

    def forward(self, magnitudes: Tensor) -> Tensor:
        if len(magnitudes) > self.most:
            raise self.error
        return torch.ones_like(magnitudes)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "out of memory"),
        (RuntimeError("MPS backend out of memory"), "out of memory"),
        (MemoryError(), "out of memory"),
        (RuntimeError("no kernel image is available"), "failed"),
    ],
)
def test_a_setting_that_cannot_run_is_its_own_result(error: Exception, state: str) -> None:
    """Also where the separator itself goes on with a smaller batch: that is another setting."""
    network = Greedy(error)
    assert try_out(network).state == "ok"
    trial = try_out(network, Setting("balanced", 4, "fp32", 1))
    assert (trial.state, trial.real_time_factor) == (state, None) and not trial.is_fit


def test_an_unknown_precision_of_a_device_is_told() -> None:
    trial = try_out(constant(0.5), Setting("balanced", 1, "fp16", 1))
    assert trial.state == "failed" and "GPU" in trial.note


def done(seconds: float, quality: str = "balanced", sdr: float | None = None, state: str = "ok") -> Trial:
    return Trial(Setting(quality, 1, "fp32", None), state, 10.0, seconds, 3, sdr=sdr)


def test_the_best_is_the_fastest_of_what_sounds_the_same() -> None:
    usual, exact, crude = done(2.0), done(1.5, sdr=60.0), done(1.0, sdr=20.0)
    found = [usual, exact, crude, done(0.5, "fast"), done(0.1, state="out of memory"), done(0.1, state="left out")]
    assert trials.best(found) is exact
    assert trials.best(found[3:]) is None
    assert exact.real_time_factor == pytest.approx(10 / 1.5)


def test_the_warm_up_does_not_count_and_a_slow_setting_runs_once() -> None:
    """Windows: one batch to warm up, then all of them for each run."""
    network = constant(0.5)
    each = 4 * 0.4 * RATE / SPEC.stft.hop / SPEC.chunking.size
    trial = try_out(network)
    assert trial.runs == 2 and trial.song == pytest.approx(4 * 0.4)
    assert network.windows == pytest.approx(2 * each + each / 4, abs=4)
    network.windows = 0
    slow = try_out(network, champion=done(1e-9))
    assert slow.runs == 1 and slow.song == pytest.approx(0.4) and network.windows < each


def test_time_that_is_up_leaves_a_setting_out(tiny_model: Path) -> None:
    bench = Bench(Wanted(str(tiny_model), "cpu", seconds=1.0))
    window = bench.prepare().window
    bench.plan = plan.Plan(window, 1, 1, 1.0, 1, 1, ({}, {"batch": 2}, {"quality": "fast"}), 1.0)
    bench._has_time = lambda seconds: False
    found = [result for result in bench.run() if isinstance(result, Trial)]
    assert found[0].state == "ok" and {trial.state for trial in found[1:]} == {"left out"}
    assert not bench.complete and bench.best is found[0]


def test_words_name_what_differs_from_the_default(tiny_model: Path) -> None:
    bench = Bench(Wanted(str(tiny_model), "cpu"))
    more = Setting("balanced", 2, "bf16", bench.base.threads + 1)
    words = bench.words(more)
    assert words[:3] == [f"OMP_NUM_THREADS={more.threads}", "vocalremover", "separate"]
    assert " ".join(words[3:]) == f"SONG -m {tiny_model} -d cpu --batch-size 2 --precision bf16"
    assert bench.words(bench.base)[0] == "vocalremover"


@pytest.mark.skipif(os.name != "posix", reason="the quotes of a POSIX shell")
def test_the_recommended_command_can_be_pasted(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copy(tiny_model, tmp_path / "it's(1).safetensors")
    bench = Bench(Wanted(str(model), "cpu"))
    more = replace(bench.base, threads=bench.base.threads + 1)
    bench.trials = [Trial(more, "ok", song=1.0, seconds=1.0)]
    words = sentence(bench).removeprefix("On this machine: ").partition(" is fastest")[0]
    assert shlex.split(words) == bench.words(more)
    assert words.startswith(f"OMP_NUM_THREADS={more.threads} vocalremover separate SONG -m ")


def test_where_a_shell_takes_no_variables_the_command_has_none(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(Wanted(str(tiny_model), "cpu"))
    more = replace(bench.base, threads=bench.base.threads + 1)
    bench.trials = [Trial(more, "ok", song=1.0, seconds=1.0)]
    monkeypatch.setattr("vocalremover.cli.bench.os.name", "nt")
    told = sentence(bench)
    assert told.startswith("On this machine: vocalremover separate SONG ")
    assert f" with OMP_NUM_THREADS={more.threads} is fastest" in told


# The plan


@pytest.mark.parametrize("limit", [5.0, 45.0, 600.0])
@pytest.mark.parametrize("cost", [0.001, 0.05, 0.4, 2.0, 30.0])
def test_a_plan_keeps_to_its_limit(cost: float, limit: float) -> None:
    for base, processors in ((Setting("balanced", 1, "fp32", 4), 8), (Setting("balanced", 4, "fp16", None), 8)):
        tried = plan.changes(base, ["fp32", "bf16"], processors)
        drawn_up = plan.draw(12.0, cost, limit, tried, None)
        assert drawn_up.changes[0] == {} and 12.0 <= drawn_up.song <= plan.LONGEST
        alone = len(drawn_up.changes) == 1 and drawn_up.windows == drawn_up.runs == 1
        assert drawn_up.seconds <= limit or alone
        assert all(change.get("batch", 1) <= drawn_up.windows for change in drawn_up.changes)
        assert plan.draw(12.0, cost, limit, tried, 7.0).song <= 7.0


def test_changes_keep_to_the_machine() -> None:
    tried = plan.changes(Setting("balanced", 1, "fp32", 4), ["fp32", "bf16"], 8)
    assert [change["threads"] for change in tried if "threads" in change] == [8]
    assert [change["batch"] for change in tried if "batch" in change] == [2, 4]
    assert [change["precision"] for change in tried if "precision" in change] == ["bf16"]
    assert not any("threads" in change for change in plan.changes(Setting("balanced", 4, "fp16", None), [], 8))


def test_the_announcement_says_why_it_takes_longer() -> None:
    assert "--seconds" not in announcement(40.2, 45, 7, 3) and "about 40 s" in announcement(40.2, 45, 7, 3)
    assert "more than --seconds 45" in announcement(200, 45, 1, 1)


# Stages


def test_the_stages_add_up_to_the_stream() -> None:
    medians = {"decode": 1.0, "resample": 0.5, "stft": 0.25, "stream": 9.0, "around": 2.0, "encode": 3.0}
    seconds = {stage.name: stage.seconds for stage in stages.told(medians, 60.0, 3)}
    assert seconds["network"] == 7.0
    assert sum(seconds[name] for name in ("resample", "stft", "network", "istft")) == medians["stream"]
    assert list(seconds) == [name for name in STAGES if name in seconds]
    quick = {stage.name: stage for stage in stages.told({**medians, "stream": 1.9}, 60.0, 3)}
    assert quick["network"].seconds == 0 and quick["network"].real_time_factor is None  # and never less


@pytest.mark.parametrize("spec", [SPEC, WAVE, BAND], ids=lambda spec: spec.name)
def test_a_network_in_no_time_keeps_the_song(spec: ModelSpec) -> None:
    """What is measured without the network does all the rest: the song comes out of it."""
    instant = stages.Instant(len(spec.outputs), spec.domain == "waveform")
    song_of_noise = noise(RATE)
    made = Separator(spec, instant, stems=["vocals"]).separate(song_of_noise, RATE)["vocals"]
    assert_close(made, song_of_noise, rtol=0, atol=1e-5)  # float32 through an STFT and back


@pytest.mark.parametrize(("spec", "network"), [(SPEC, constant(0.5)), (WAVE, Gains(0.5))])
def test_every_stage_of_both_domains(tmp_path: Path, spec: ModelSpec, network: nn.Module) -> None:
    write(tmp_path / "song.wav", noise(RATE, 3), 2 * RATE)
    line = stages.Line(Separator(spec, network), tmp_path / "song.wav", tmp_path)
    found = stages.measure(line, 2, lambda seconds: True)
    assert [stage.name for stage in found] == ["decode", "resample", "stft", "network", "istft", "encode"]
    assert {stage.runs for stage in found} == {2} and {stage.song for stage in found} == {0.5}
    assert line.whole() > 0 and not any(path.name.startswith(".") for path in (tmp_path / "stems").glob("*.wav"))
    assert stages.measure(line, 3, lambda seconds: False)[0].runs == 1


# Songs


def test_the_synthesised_song_is_the_same_every_time_and_no_silence() -> None:
    first, second = (torch.cat(list(song.synthesise(2.5)), dim=1) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (2, math.ceil(2.5 * song.RATE))
    assert 0.3 < first.abs().max() <= 1 and not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    ("name", "rate", "channels", "kind"),
    [("a.wav", 44100, 2, ".wav"), ("a.mp3", 48000, 1, ".mp3"), ("a.flac", 96000, 6, ".flac")],
)
def test_the_beginning_of_a_song_in_a_file_of_its_kind(
    tmp_path: Path, make_song: Command, name: str, rate: int, channels: int, kind: str
) -> None:
    path = make_song(name, samples=rate, rate=rate, channels=channels)
    (tmp_path / "out").mkdir()
    path = song.prepare(path, 0.25, tmp_path / "out")
    audio, given = read(path)
    assert path.suffix == kind and given == rate and audio.shape == (channels, rate // 4)


def test_a_song_under_another_name_becomes_a_flac(tmp_path: Path, make_song: Command) -> None:
    odd = make_song("a.wav").rename(tmp_path / "a.mkv")
    (tmp_path / "out").mkdir()
    path = song.prepare(odd, 0.25, tmp_path / "out")
    assert path.suffix == ".flac" and read(path)[0].shape[1] == round(0.25 * 44100)


# Tables


def test_a_busy_machine_and_uneven_runs_are_told(tiny_model: Path) -> None:
    bench = Bench(Wanted(str(tiny_model), "cpu"))
    bench.load = 0.0
    bench.trials = [replace(done(1.0), spread=0.1)]
    assert doubts(bench) == []
    bench.load, bench.trials = 1e3, [replace(done(1.0), spread=0.9)]
    assert len(doubts(bench)) == 2


def test_tables_fit_a_terminal() -> None:
    rows = [Stage(name, 60.0, 1.0, 3) for name in STAGES]
    long = Setting("balanced", 16, "fp32", 128)
    found = [
        Trial(long, "ok", 60.0, 0.01, 3, host_bytes=1 << 40, device_bytes=1 << 40),
        Trial(long, "out of memory", note="too much"),
        Trial(long, "failed", note="a reason that is far longer than any line of a terminal can be, " * 3),
    ]
    on_gpu = [replace(trial, setting=replace(long, threads=None)) for trial in found]
    for tried in (found, on_gpu):
        text = drawn(stage_table(rows)) + "\n" + drawn(trial_table(tried, tried[0]))
        assert max(map(len, text.splitlines())) <= 80
        words = ("best", "failed", "out of memory", "1048576", *STAGES.values())
        assert all(word in text for word in words)
    assert [line.partition(": ")[2] for line in reasons(found)] == [found[1].note, found[2].note]


def test_readme_names_every_option() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("### How fast it is here\n")[1].split("\n##")[0]
    for option in commands.commands["bench"].params:
        assert any(f"`{word}" in section for word in option.opts), option.name
