"""Our networks and our pipeline give the original's numbers, and the command tells when they do not."""

import json
import shutil
from pathlib import Path

import numpy as np
import parity
import pytest

FIXTURES = sorted(path.with_suffix(".json") for path in (Path(__file__).parent / "fixtures").glob("*.npz"))
SMALL = Path(__file__).parent / "fixtures" / "v10_small.json"


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture(path: Path) -> None:
    lines = parity.check(path)
    assert lines
    assert not [str(line) for line in lines if not line.ok]


def copy_fixture(folder: Path, name: str, change: float = 0.0, **fields: object) -> Path:
    """V10's small fixture under another name, with other fields, and one number of its output changed."""
    fixture = json.loads(SMALL.read_text()) | {"name": name} | fields
    (folder / f"{name}.json").write_text(json.dumps(fixture))
    with np.load(SMALL.with_suffix(".npz")) as stored:
        arrays = dict(stored)
    arrays["output"][1, 0, 5, 7] += change
    np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.json"


def test_exit_status_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One number in 12 288 that is off by twice the tolerance, a NaN and a missing file each make it fail."""
    tolerance = parity.check(SMALL)[-1].tolerance
    off = copy_fixture(tmp_path, "v10_off", change=2 * tolerance)
    hole = copy_fixture(tmp_path, "v10_hole", change=float("nan"))
    assert parity.main([str(SMALL)]) == 0
    assert all(line.split()[-1] == "ok" and len(line.split()) == 4 for line in capsys.readouterr().out.splitlines())
    for path in (off, hole, tmp_path / "v10_absent.json"):
        assert parity.main([str(path), str(SMALL)]) == 1
        assert [line for line in capsys.readouterr().out.splitlines() if path.stem in line][-1].count("FAIL") == 1


def test_other_seeds_draw_other_weights(tmp_path: Path) -> None:
    assert not parity.check(copy_fixture(tmp_path, "v10_hidden", seed=1302))[-1].ok


def test_unfamiliar_name_is_found_by_file(tmp_path: Path) -> None:
    assert all(line.ok for line in parity.check(copy_fixture(tmp_path, "another")))


def test_unknown_network_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy_fixture(tmp_path, "another", file="elsewhere.py")
    assert parity.main([str(path)]) == 1
    assert "elsewhere.py" in capsys.readouterr().out


def test_missing_arrays_are_a_failure(tmp_path: Path) -> None:
    shutil.copy(SMALL, tmp_path)
    assert parity.main([str(tmp_path / SMALL.name)]) == 1
