"""Names become devices, and what is not there is told with what to choose instead."""

import pytest
import torch

from vocalremover.devices import choose_device, choose_devices, choose_precision
from vocalremover.errors import DeviceError, UsageError


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps:1", "0", "", "CUDA", "auto:1"])
def test_unknown_device(name: str) -> None:
    with pytest.raises(DeviceError, match="no device"):
        choose_device(name)


def test_choose_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    for absent in ("cuda", "cuda:0", "mps"):
        with pytest.raises(DeviceError, match=f"{absent} is not there"):
            choose_device(absent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="cuda:0 to cuda:1"):
        choose_device("cuda:7")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("all", ["cuda:0", "cuda:1"]),
        ("cuda:1,cuda:0", ["cuda:1", "cuda:0"]),
        (["cuda:0", "cuda:1", "cuda:0"], ["cuda:0", "cuda:1"]),
        (" cuda , cuda:0, cpu", ["cuda:0", "cpu"]),
        ("all,cpu", ["cuda:0", "cuda:1", "cpu"]),
        ("cuda", ["cuda"]),
        ("cpu", ["cpu"]),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_several_devices(names: str | list[str], chosen: list[str]) -> None:
    """Each once: two workers on one device would take its memory twice."""
    assert [str(device) for device in choose_devices(names)] == chosen


def test_all_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_devices("all") == [torch.device("cpu")]
    for names in ("", ",", []):
        with pytest.raises(DeviceError, match="no device is named"):
            choose_devices(names)
    with pytest.raises(DeviceError, match="cuda:0 is not there"):
        choose_devices("cpu,cuda:0")


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"
    for capability, chosen in (((9, 0), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, it=capability: it)
        assert choose_precision("auto", torch.device("cuda")) == chosen
    for wrong in ("fp16", "int8"):
        with pytest.raises(UsageError):
            choose_precision(wrong, torch.device("cpu"))
