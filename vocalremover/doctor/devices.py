"""What can compute: processors with their threads, GPUs with their memory, and why one that is there cannot be used."""

import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from vocalremover import devices, machine
from vocalremover.doctor.checks import Check, Wanted, first_line
from vocalremover.errors import VocalRemoverError

BF16 = (8, 0)  # the first generation of NVIDIA GPUs that computes in bf16
PAGE = "https://pytorch.org/get-started/locally/"


def look(wanted: Wanted) -> Iterator[Check]:
    """The processor, each GPU, a driver that PyTorch does not use, and the devices that are wanted."""
    yield _processor()
    yield from _gpus()
    if torch.backends.mps.is_available():
        size = torch.mps.recommended_max_memory()
        facts = {"bytes": size, "precisions": precisions("mps")}
        found = f"Apple's GPU, {size / machine.GIB:.1f} GiB, {', '.join(precisions('mps'))}"
        yield Check("devices", "mps", "ok", found, facts=facts)
    try:
        chosen = [str(device) for device in devices.choose_devices(wanted.device)]
    except VocalRemoverError as error:
        yield Check("devices", "chosen", "failed", wanted.device, f"{error}.")
        return
    by = " (chosen by auto)" if wanted.device == "auto" else ""
    yield Check("devices", "chosen", "ok", f"{', '.join(chosen)}{by}", facts={"devices": chosen})


def precisions(device: str) -> list[str]:
    """The precisions that a device knows; see `devices.PRECISIONS`."""
    kind, known = torch.device(device).type, list(devices.PRECISIONS)
    if kind == "cpu":
        return ["fp32", "bf16"]
    if kind == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < BF16:
        known.remove("bf16")
    return known


def has_nvidia() -> bool:
    """Whether a driver of NVIDIA is installed."""
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").exists()
    return Path("/proc/driver/nvidia/version").exists() or bool(shutil.which("nvidia-smi"))


def _processor() -> Check:
    threads, processors = torch.get_num_threads(), machine.processors()
    asked = os.environ.get("OMP_NUM_THREADS")
    facts = {"threads": threads, "OMP_NUM_THREADS": asked, "bf16": machine.has_bf16(), "precisions": precisions("cpu")}
    slow = {True: "", None: "", False: " (bf16 is slow on this processor)"}[facts["bf16"]]
    found = f"{threads} thread{'s' * (threads != 1)}, {', '.join(precisions('cpu'))}{slow}"
    advice = ""
    if threads > processors:
        advice = f"Set OMP_NUM_THREADS={processors}: more threads than processors wait for one another."
    elif asked and threads < processors // 2:
        advice = f"Unset OMP_NUM_THREADS to let all {processors} processors work."
    return Check("devices", "cpu", "warning" if advice else "ok", found, advice, facts)


def _gpus() -> Iterator[Check]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    if there:
        for number in range(torch.cuda.device_count()):
            yield _gpu(number)
        return
    if not has_nvidia():
        return
    if torch.version.cuda is None:
        found = f"a driver of NVIDIA is here, but PyTorch {torch.__version__} is built without CUDA"
        yield Check("devices", "cuda", "warning", found, f"Install the PyTorch for CUDA; {PAGE} has the line for it.")
        return
    reason = first_line(told[-1].message) if told else "no GPU answers"
    found = f"PyTorch for CUDA {torch.version.cuda} cannot use NVIDIA's driver: {reason}"
    yield Check("devices", "cuda", "warning", found, f"Update the driver and restart, or install from {PAGE}.")


def _gpu(number: int) -> Check:
    name = f"cuda:{number}"
    properties = torch.cuda.get_device_properties(number)
    capability = properties.major, properties.minor
    facts = {"name": properties.name, "bytes": properties.total_memory, "capability": list(capability)}
    found = f"{properties.name}, {properties.total_memory / machine.GIB:.1f} GiB"
    if torch.version.hip is None and not _is_built_for(capability, torch.cuda.get_arch_list()):
        advice = f"This PyTorch has no code for it: install one that has from {PAGE}, or choose --device cpu."
        return Check("devices", name, "failed", f"{found}, sm_{capability[0]}{capability[1]}", advice, facts)
    free, _ = torch.cuda.mem_get_info(number)
    facts |= {"free_bytes": free, "precisions": precisions(name)}
    found += f" ({free / machine.GIB:.1f} free), {', '.join(precisions(name))}"
    return Check("devices", name, "ok", found, facts=facts)


def _is_built_for(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Code for a GPU runs on later ones of the same generation, code for the virtual machine on all later ones."""
    for name in architectures:
        kind, _, digits = name.partition("_")
        found = re.match(r"(\d+)(\d)", digits)
        if not found:
            continue
        built = int(found[1]), int(found[2])
        if built == capability or (built < capability and (kind == "compute" or built[0] == capability[0])):
            return True
    return False
