"""Names in, devices out: what PyTorch can compute on here, and in which precision."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vocalremover.errors import DeviceError, UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALF_CAPABILITY = (7, 0)  # the first generation of NVIDIA GPUs that is faster in half than in single precision


def choose_device(name: str) -> torch.device:
    """The device called "cpu", "cuda", "cuda:N" or "mps"; "auto" is the first of cuda, mps and cpu that is there.

    Raises DeviceError for an unknown name and for a device that was asked for and is absent.
    """
    kind, colon, number = name.partition(":")
    if name not in ("auto", "cpu", "cuda", "mps") and not (kind == "cuda" and number.isascii() and number.isdigit()):
        raise DeviceError(f"there is no device {name!r}: choose auto, cpu, cuda, cuda:N or mps")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"{name} is not there: PyTorch sees no CUDA GPU on this machine (its driver or PyTorch itself may lack "
            "CUDA); choose --device cpu or auto"
        )
    if colon and int(number) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise DeviceError(f"{name} is not there: this machine's GPUs are cuda:0 to cuda:{last}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("mps is not there: it needs a Mac with Apple's own chip; choose --device cpu or auto")
    return torch.device(name)


def choose_devices(names: str | Iterable[str]) -> list[torch.device]:
    """The devices of "cuda:0,cuda:1" or of several such names, each once; "all" is every CUDA GPU, or what auto is.

    "cuda" alone is the first GPU. Raises DeviceError as `choose_device` does, and where nothing is named.
    """
    words = [word.strip() for name in ([names] if isinstance(names, str) else names) for word in name.split(",")]
    chosen: list[torch.device] = []
    for word in filter(None, words):
        if word == "all":
            gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
            chosen += [torch.device(f"cuda:{number}") for number in range(gpus)] or [choose_device("auto")]
        else:
            chosen.append(choose_device(word))
    if not chosen:
        raise DeviceError("no device is named: choose auto, cpu, cuda, cuda:N, mps or all")
    several = len(chosen) > 1
    numbered = [torch.device("cuda:0") if several and device == torch.device("cuda") else device for device in chosen]
    return list(dict.fromkeys(numbered))


def choose_precision(name: str, device: torch.device) -> str:
    """The key in PRECISIONS for a name that may be "auto"; raises UsageError for what the device has not."""
    if name not in ("auto", *PRECISIONS):
        raise UsageError(f"the precision must be auto, {', '.join(PRECISIONS)}, not {name!r}")
    if name == "fp16" and device.type == "cpu":
        raise UsageError("fp16 is for GPUs; on a CPU choose bf16 or fp32")
    if name != "auto":
        return name
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= HALF_CAPABILITY:
        return "fp16"  # three more bits of a mask than bf16; what overflows runs again in fp32
    return "fp32"


def send(block: Tensor, device: torch.device) -> Tensor:
    """The block on the device. To a CUDA device it goes from pinned memory, and nobody waits for the copy."""
    if device.type != "cuda" or block.device.type != "cpu":
        return block.to(device)
    return block.pin_memory().to(device, non_blocking=True)


def fetch(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The blocks on the CPU, in order. From a CUDA device one is copied while the one after it is computed."""
    waiting: tuple[Tensor, torch.cuda.Event] | None = None
    for block in blocks:
        if block.device.type != "cuda":
            yield block.cpu()
            continue
        copied = torch.empty(block.shape, dtype=block.dtype, pin_memory=True).copy_(block, non_blocking=True)
        event = torch.cuda.current_stream(block.device).record_event()
        if waiting:
            waiting[1].synchronize()
            yield waiting[0]
        waiting = copied, event
    if waiting:
        waiting[1].synchronize()
        yield waiting[0]
