"""One window of a model on each wanted device in each precision, against the plain kernels of the CPU."""

import math
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from vocalremover import checkpoint, machine
from vocalremover.devices import choose_devices, choose_precision
from vocalremover.doctor.checks import Check, Wanted, first_line
from vocalremover.doctor.devices import precisions
from vocalremover.doctor.sound import chord
from vocalremover.errors import DeviceError, ModelError, UsageError, VocalRemoverError
from vocalremover.evaluate import sdr
from vocalremover.models import ModelSpec
from vocalremover.separate import Inference, Separator, Stems

SECONDS = 4.0  # of the window; V10 takes half a minute for it on two cores
HEARD = 1e-3  # of the energy of all stems
LEAST = -100.0  # dB, in place of minus infinity, which JSON does not know
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
            if (device, precision) == ("cpu", "bf16") and machine.has_bf16() is False:
                continue  # nobody wants it there: it takes ten times as long as fp32
            yield _compared(spec, network, reference, device, precision)


def plain(spec: ModelSpec, network: nn.Module) -> Stems:
    """The window's stems by PyTorch's plain code for the CPU, without the library of fast kernels that is oneDNN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions speak of other vendors' GPUs when it is switched
        with torch.backends.mkldnn.flags(enabled=False):
            return answered(spec, network, "cpu", "fp32")


def answered(spec: ModelSpec, network: nn.Module, device: str, precision: str) -> Stems:
    """The stems of one window."""
    separator = Separator(spec, network, device, Inference(precision=precision, segment=SECONDS, quality="fast"))
    return separator.separate(chord(spec.rate, SECONDS / 2), spec.rate)


def difference(stems: Stems, reference: Stems) -> float:
    """The least SDR of all stems in dB, but for those that are all but silent: there the others' tells it, too."""
    energies = {stem: audio.square().sum().item() for stem, audio in reference.items()}
    heard = [stem for stem, energy in energies.items() if energy >= HEARD * sum(energies.values())]
    return min(sdr(stems[stem], reference[stem]) for stem in heard)


def _compared(spec: ModelSpec, network: nn.Module, reference: Stems, device: str, precision: str) -> Check:
    name, bound = f"{device} {precision}", BOUNDS[precision]
    instead = "--precision fp32" if precision != "fp32" else "--device cpu" if device != "cpu" else ""
    advice = f"Use {instead}, and update the driver and PyTorch." if instead else "Install PyTorch anew."
    facts: dict[str, object] = {"device": device, "precision": precision, "bound": bound}
    # A precision that nobody gets without asking for it may fail, and the rest is whole.
    usual = ("fp32", choose_precision("auto", torch.device(device), spec.coarsest))
    failed = "failed" if precision in usual else "warning"
    try:
        found = difference(answered(spec, network, device, precision), reference)
    except (VocalRemoverError, RuntimeError, MemoryError) as error:
        return Check("selftest", name, failed, first_line(error), advice, facts)
    if not found >= bound:
        facts["sdr"] = found if math.isfinite(found) else LEAST
        told = f"SDR {facts['sdr']:.0f} dB against plain code, at least {bound:.0f} are expected"
        return Check("selftest", name, failed, told, advice, facts)
    facts["sdr"] = found if math.isfinite(found) else None
    same = "the same numbers as plain code" if facts["sdr"] is None else f"SDR {found:.0f} dB against plain code"
    return Check("selftest", name, "ok", f"{spec.name}: {same} (at least {bound:.0f})", facts=facts)
