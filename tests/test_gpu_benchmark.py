"""The benchmark for GPUs works, in small, where there is none: it has to at once where there is one for minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cases, device, gpu
from benchmarks.rows import ROOT, Absent, Settings

CPU = torch.device("cpu")
PEAK = {"fp32": 1e10, "bf16": 1e10, "fp16": 1e10, "bytes": 1e10}


def test_every_answer_is_on_disk(tmp_path: Path) -> None:
    """From the card to the last kernel, in processes of its own."""
    told = list(gpu.run(tmp_path / "out", "cpu", True, ["default"], 900))
    assert [one["kind"] for one in told] == [
        "peak", "network", "network", "error", "error", "error", "song", "kernels", "kernels"
    ]  # fmt: skip
    assert not any("error" in one for one in told)
    assert json.loads((tmp_path / "out/gpu.json").read_text()) == told
    assert "default fp32 batch 2 none" in (tmp_path / "out/kernels.txt").read_text()
    assert all(gpu.show(one).startswith(one["model"]) for one in told)


@pytest.mark.parametrize("name", ["v10", "bs_roformer", "mel_roformer"])
def test_every_model_is_measured(name: str, tmp_path: Path) -> None:
    case = cases.Case(name, CPU, tiny=True)
    (network,) = cases.measure_network(case, PEAK, ("none",))
    assert network["x_real"] == pytest.approx(2 * case.seconds / network["ms"] * 1e3)
    assert network["of_matrix_peak"] > 0 and network["of_copy_peak"] > 0 and not network["warnings"]
    errors = {one["precision"]: one["db"] for one in cases.measure_error(case)}
    assert errors["fp32"] is None and 50 < errors["fp16"] < 120
    (song,) = cases.measure_song(case, tmp_path)
    assert song["x_real"] > 0 and not song["warnings"]


def test_what_does_not_run_is_told_and_the_next_goes_on() -> None:
    def fail(batch: int) -> dict[str, object]:
        raise RuntimeError("CUDA out of memory\nmore")

    assert cases.guarded("network", {"batch": 64}, fail) == {
        "kind": "network", "batch": 64, "error": "CUDA out of memory"
    }  # fmt: skip


def test_a_process_ends_with_its_share_and_what_it_told_is_kept(tmp_path: Path) -> None:
    told = list(gpu.run(tmp_path, "cpu", True, [], 0))
    assert told == [{"model": "peak", "kind": "end", "error": "its 1 s were over"}]


def test_bytes_are_those_read_and_written() -> None:
    x = torch.rand(1000)
    with device.Traffic() as counted:
        (x.view(10, 100).mT + 1).sum()
    assert counted.bytes == 4 * (1000 + 1000 + 1000 + 1)
    with device.Traffic() as counted:
        x.mul_(2)
        x.half()
    assert counted.bytes == 4 * 2000 + 4 * 1000 + 2 * 1000


BARE = """
import importlib.util, sys
from pathlib import Path
real = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in ("av", "soundfile", "soxr", "platformdirs") else real(name)
from benchmarks import standins
sys.meta_path.insert(0, sys.meta_path.pop())
from benchmarks import cases
import torch
case = cases.Case("default", torch.device("cpu"), tiny=True)
(song,) = cases.measure_song(case, Path(sys.argv[1]))
assert song["files"] == "wave", song
left, right, whole = (cases.read_plain(Path(sys.argv[1], name))[0] for name in ("vocals.wav", "instrumental.wav",
                                                                                "song.wav"))
assert (left + right - whole).abs().max() < 1e-4
import av
assert not hasattr(av, "__version__") or isinstance(av.__version__, type)
"""


def test_without_the_audio_libraries(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", BARE, tmp_path], cwd=ROOT, check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_rows_need_a_gpu() -> None:
    with pytest.raises(Absent):
        next(gpu.rows(Settings()))
