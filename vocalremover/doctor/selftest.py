"""One window of a model on each wanted device in each precision, against the plain kernels of the CPU."""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vocalremover import checkpoint
from vocalremover.devices import choose_devices
from vocalremover.doctor.checks import Check, Wanted, first_line
from vocalremover.doctor.devices import has_bf16, precisions
from vocalremover.doctor.sound import chord, ratio
from vocalremover.errors import DeviceError, ModelError, UsageError, VocalRemoverError
from vocalremover.models import ModelSpec
from vocalremover.separate import Inference, Separator

SECONDS = 4.0  # of the window; V10 takes half a minute for it on two cores
# dB. A GPU may multiply with 11 of the 24 bits (TF32), which leaves 60 and more; fp16 has as many, bf16 has 8. Many
# layers take some of that, hence 10 to 15 dB less. What is wrong gives 20 and less.
BOUNDS = {"fp32": 50.0, "fp16": 40.0, "bf16": 25.0}


def look(wanted: Wanted) -> Iterator[Check]:
    """A check for each device and precision."""
    try:
        devices = choose_devices(wanted.device)
    except DeviceError:
        return  # told among the devices
    try:
        spec, network = checkpoint.load(wanted.model, "cpu", wanted.config)
        reference = plain(spec, network)
    except (ModelError, UsageError) as error:
        advice = "Choose a model that is here; `vocalremover models list` shows which are."
        yield Check("selftest", wanted.model, "failed", f"{error}", advice)
        return
    for device in map(str, devices):
        for precision in precisions(device):
            if (device, precision) == ("cpu", "bf16") and has_bf16() is False:
                continue  # nobody wants it there: it takes ten times as long as fp32
            yield _compared(spec, network, reference, device, precision)


def plain(spec: ModelSpec, network: nn.Module) -> Tensor:
    """The window's stems by PyTorch's plain code for the CPU, without the library of fast kernels that is oneDNN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions speak of other vendors' GPUs when it is switched
        with torch.backends.mkldnn.flags(enabled=False):
            return answered(spec, network, "cpu", "fp32")


def answered(spec: ModelSpec, network: nn.Module, device: str, precision: str) -> Tensor:
    """All stems of one window, `[stems * channels, samples]`."""
    separator = Separator(spec, network, device, Inference(precision=precision, segment=SECONDS, quality="fast"))
    stems = separator.separate(chord(spec.rate, SECONDS / 2), spec.rate)
    for warning in separator.warnings:
        if "overflowed" in warning or "memory" in warning:
            raise DeviceError(warning)
    return torch.cat(list(stems.values()))


def _compared(spec: ModelSpec, network: nn.Module, reference: Tensor, device: str, precision: str) -> Check:
    name, bound = f"{device} {precision}", BOUNDS[precision]
    instead = "--precision fp32" if precision != "fp32" else "--device cpu" if device != "cpu" else ""
    advice = f"Use {instead}, and update the driver and PyTorch." if instead else "Install PyTorch anew."
    facts: dict[str, object] = {"device": device, "precision": precision, "bound": bound}
    # What a person did not ask for may fail without the rest being broken.
    failed = "failed" if precision == "fp32" else "warning"
    try:
        sdr = ratio(reference, answered(spec, network, device, precision))
    except (VocalRemoverError, RuntimeError, MemoryError) as error:
        return Check("selftest", name, failed, first_line(error), advice, facts)
    facts["sdr"] = sdr
    found = "the same numbers as the CPU's plain code" if sdr is None else f"SDR {sdr:.0f} dB against plain code"
    if sdr is not None and sdr < bound:
        return Check("selftest", name, failed, f"{found}, below {bound:.0f}", advice, facts)
    return Check("selftest", name, "ok", f"{spec.name}: {found} (at least {bound:.0f})", facts=facts)
