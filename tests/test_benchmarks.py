"""The harness of the benchmarks: rows that are judged, processes of their own, one table, one file, an exit code."""

import json
import sys
from collections.abc import Callable, Iterator
from io import BytesIO, StringIO
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console

from benchmarks import __main__ as harness
from benchmarks import growth, loader, rows
from benchmarks.rows import Absent, Row, Settings, Timing, absent, run_process, side_by_side
from benchmarks.table import show
from vocalremover.audio import PipeReader


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`python -m benchmarks WORDS` -> the exit code and the table."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, words)])
        code = harness.main()
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Puts a shell script in the place of the interpreter that the harness starts."""

    def become(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return become


def measured(monkeypatch: pytest.MonkeyPatch, body: Callable[[Settings], Iterator[Row]]) -> list[Row]:
    module = ModuleType("benchmarks.start")
    module.rows = body
    monkeypatch.setitem(sys.modules, "benchmarks.start", module)
    return list(harness.guarded("start", Settings()))


@pytest.mark.parametrize(
    ("bounds", "met"),
    [({}, None), ({"most": 0.5}, True), ({"most": 0.4}, False), ({"least": 0.5}, True), ({"least": 0.6}, False),
     ({"least": 0.4, "most": 0.6}, True)],
)  # fmt: skip
def test_the_ratio_is_judged_by_its_bounds(bounds: dict[str, float], met: bool | None) -> None:
    row = Row("a stage", 2.0, "s", 4.0, "another", **bounds)
    assert (row.ratio, row.met) == (0.5, met)


def test_a_row_without_a_second_number_has_no_ratio() -> None:
    assert Row("alone", 2.0, "s", most=1).met is None
    assert absent("a GPU", "there is none").ratio is None


def test_rows_survive_json() -> None:
    for row in (Row("a", 1.5, "s", 3.0, "b", most=1, timing=Timing(1.5, 1.2, 80.0, 3)), absent("c", "not here")):
        assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_ways_run_in_turn_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    taken = side_by_side({name: lambda name=name: order.append(name) for name in ("a", "b")}, runs=2)
    assert "".join(order) == "ababab"
    assert {timing.runs for timing in taken.values()} == {2}


def test_a_process_is_measured_whole() -> None:
    wall, cpu, peak = run_process([sys.executable, "-c", "x = bytearray(64 << 20); sum(range(10**6))"])
    assert wall > 0 and cpu > 0
    assert peak > 64


def test_an_error_becomes_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(settings: Settings) -> Iterator[Row]:
        yield Row("first", 1.0, "s")
        raise ValueError("no such window")

    first, last = measured(monkeypatch, body)
    assert first.state == "done"
    assert (last.state, last.note) == ("failed", "ValueError: no such window")


def test_what_is_absent_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(settings: Settings) -> Iterator[Row]:
        raise Absent("there is no CUDA device")
        yield

    (row,) = measured(monkeypatch, body)
    assert (row.state, row.note) == ("absent", "there is no CUDA device")


def test_a_process_that_breaks_down_fails_and_keeps_its_rows(
    benchmarks: Callable[..., tuple[int, str]], python: Callable[[str], None], tmp_path: Path
) -> None:
    row = json.dumps(Row("half done", 1.0, "s").to_json())
    python(f"echo '{row}'\nexit 3")
    code, table = benchmarks("--only", "memory", "--out", tmp_path / "out.json")
    told = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert code == 1
    assert [(row["benchmark"], row["state"]) for row in told] == [("memory", "done"), ("memory", "failed")]
    assert "its process ended with 3" in table


def test_a_benchmark_that_hangs_is_ended(
    benchmarks: Callable[..., tuple[int, str]], python: Callable[[str], None]
) -> None:
    python("sleep 60")
    code, table = benchmarks("--only", "memory", "--limit", "0.2")
    assert code == 1
    assert "took longer than 0.2 s" in table


def test_a_tiny_selection_runs_for_real(
    benchmarks: Callable[..., tuple[int, str]], make_song: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    words = ["--only", "overlap", "--quick", "--runs", "1", "-d", "cpu", "--out", out]
    code, table = benchmarks(*words, "--song", make_song(samples=44100))
    told = json.loads(out.read_text())
    assert code == 0, table
    assert {"cpu", "cores", "versions"} <= told["machine"].keys()
    assert "torch" in told["machine"]["versions"]
    (row,) = told["rows"]
    assert row["state"] == "done" and row["ratio"] == pytest.approx(row["value"] / row["against"])
    assert row["what"] in table

    code, table = benchmarks(*words, "--song", tmp_path / "missing.wav")
    (row,) = json.loads(out.read_text())["rows"]
    assert (code, row["state"]) == (1, "failed")
    assert "missing.wav" in row["note"] and "missing.wav" in table.replace("\n", "")


def test_the_table_says_what_was_left_out_and_takes_names_literally() -> None:
    text = StringIO()
    told = [("gpu", absent("V10 [batch]", "no CUDA device")), ("gpu", Row("x [b]", 2.0, "s", 1.0, "y"))]
    show(told, Console(file=text))
    assert "absent: gpu: V10 [batch]: no CUDA device" in text.getvalue()
    assert "x [b]" in text.getvalue()


def test_every_benchmark_of_the_folder_is_in_the_table() -> None:
    helpers = {"__init__", "__main__", "rows", "table"}
    folder = Path(rows.__file__).parent
    plugged = {path.stem for path in folder.glob("*.py") if "\ndef rows(" in path.read_text(encoding="utf-8")}
    assert plugged <= {*harness.NAMES, *helpers}


def test_the_endless_song_is_as_long_as_was_asked_for() -> None:
    reader = PipeReader(BytesIO(b"".join(growth.song(61.5))))
    assert (reader.rate, reader.channels) == (growth.RATE, 2)
    assert sum(block.shape[-1] for block in reader.blocks()) == round(61.5 * growth.RATE)


def test_growth_is_judged_against_the_usual_length() -> None:
    def point(seconds: float, cost: float, peak: float) -> dict[str, float]:
        return {"seconds": seconds, "wall": cost * seconds, "cpu": cost * seconds, "peak_mib": peak, "runs": 1}

    points = [point(30, 0.01, 400), point(growth.ANCHOR, 0.01, 400), point(3600, 0.02, 400)]
    assert [row.met for row in growth.told("tiny", points)] == [True, False, True, True]
    assert [growth.words(seconds) for seconds in (10, 180, 3600)] == ["10 s", "3 min", "1 h"]


def test_fewer_examples_than_a_batch_are_a_step() -> None:
    steps: list[int] = []
    assert loader.measure("few", steps.append, 2, 4, torch.device("cpu")) > 0
    assert steps == [0, 1]


def test_a_small_song_grows_for_real() -> None:
    told = growth.ask("tiny", 2.0, "cpu")
    assert told["cpu"] > 0 and told["peak_mib"] > 100
