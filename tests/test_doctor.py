"""`vocalremover doctor`: what is broken is told with the way out and an exit code, and never as a traceback."""

import configparser
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome
from torch import Tensor, nn
from voices import SPEC

from vocalremover import checkpoint
from vocalremover.checkpoint import neighbours
from vocalremover.cli import commands
from vocalremover.doctor import Check, Wanted, devices, disks, examine, libraries, models, probe, selftest, sound
from vocalremover.doctor.checks import GROUPS
from vocalremover.doctor.libraries import LIBRARIES, TRAINING, Library
from vocalremover.errors import AudioError

Command = Callable[..., Outcome]
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models of a user who has none yet."""
    monkeypatch.setenv("VOCALREMOVER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(neighbours, "folders", lambda: ())
    return tmp_path / "home" / "models"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One library to ask about, the rest taken for whole: each costs a process."""
    monkeypatch.setattr(libraries, "LIBRARIES", (Library("soxr", "soxr", "0.3.3"),))


def found(outcome: Outcome) -> dict[tuple[str, str], dict]:
    return {(check["group"], check["name"]): check for check in json.loads(outcome.out)["checks"]}


# All is well


def test_a_whole_installation_is_well(command: Command, tiny_model: Path) -> None:
    outcome = command("doctor", "--json", "-m", tiny_model, "-d", "cpu")
    checks = found(outcome)
    bad = [check for check in checks.values() if check["state"] == "failed"]
    assert (outcome.code, bad) == (0, [])
    assert [group for group, _ in checks] == sorted((group for group, _ in checks), key=list(GROUPS).index)
    assert {group for group, _ in checks} == set(GROUPS)
    assert {name for group, name in checks if group == "sound"} == {"wav", "flac", "mp3", "ogg", "opus", "m4a"}
    assert checks["libraries", "torch"]["facts"]["version"] == torch.__version__
    for library, part in (("av", "libavcodec"), ("soundfile", "libsndfile"), ("soxr", "libsoxr")):
        assert part in checks["libraries", library]["found"]
    assert checks["selftest", "cpu fp32"]["facts"]["sdr"] > 100  # float32 has 24 bits: 144 dB, less what sums lose


@pytest.mark.usefixtures("few")
def test_lines_fit_a_terminal_and_end_in_a_sentence(command: Command, tiny_model: Path) -> None:
    lines = command("doctor", "-m", tiny_model, "-d", "cpu").out.splitlines()
    heads = [line for line in lines if re.fullmatch(r"[a-z]+", line)]
    assert heads == list(GROUPS)
    assert all(len(line) <= 80 or "/" in line for line in lines)  # a path is not torn
    assert lines[-1].endswith(("are well.", "gave a warning."))


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from vocalremover.cli import main\n"
        "for word in ('doctor', 'bench'):\n"
        "    try: main([word, '--help'])\n"
        "    except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'librosa', 'numpy', 'av', 'soundfile', 'soxr', 'scipy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# Libraries


def test_the_table_is_that_of_the_package() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = parser["options"]["install_requires"].split()
    spare = parser["options.extras_require"]["train"].split()
    told = [f"{library.distribution}>={library.least}" for library in LIBRARIES if library.spare != TRAINING]
    trained = [f"{library.distribution}>={library.least}" for library in LIBRARIES if library.spare == TRAINING]
    assert (sorted(told), sorted(trained)) == (sorted(needed), sorted(spare))


def broken(folder: Path, name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of this name that does this when it is imported, before any other of the name."""
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ImportError('DLL load failed\\nand pages more')", "ImportError: DLL load failed"),
        ("raise RuntimeError('odd')", "RuntimeError: odd"),
        ("import os; os._exit(3)", "ends Python with code 3"),
        pytest.param(
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)", "crashes (SIGILL)",
            marks=pytest.mark.skipif(os.name != "posix", reason="signals are POSIX"),
        ),
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
    ],
)  # fmt: skip
def test_a_library_may_break_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str) -> None:
    broken(tmp_path, "soxr", code, monkeypatch)
    library = Library("soxr", "soxr", "0.3.3")
    check = libraries.judged(library, libraries.asked(library))
    assert check.state == "failed" and told in check.found and "pages" not in check.found
    assert "pip install" in check.advice and "soxr" in check.advice


def test_a_library_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(tmp_path, "soxr", "import time; time.sleep(600)", monkeypatch)
    monkeypatch.setattr(libraries, "SECONDS", 0.5)
    assert "did not come to an end" in libraries.asked(Library("soxr", "soxr", "0"))["error"]


@pytest.mark.usefixtures("few")
def test_what_needs_a_broken_library_is_not_checked(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(tmp_path, "soxr", "raise ImportError('gone')", monkeypatch)
    outcome = command("doctor", "--json")
    checks = found(outcome)
    assert outcome.code == 1 and checks["libraries", "soxr"]["state"] == "failed"
    for group in ("sound", "selftest"):
        assert checks[group, group]["found"] == "not checked" and "soxr" in checks[group, group]["advice"]
    assert ("devices", "cpu") in checks and ("disks", "stems") in checks


def test_without_torch_and_av_the_story_is_told(tmp_path: Path) -> None:
    for name in ("torch", "av"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('its library is not for this system')")
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", "vocalremover", "doctor"], env={**os.environ, "PYTHONPATH": path, "COLUMNS": "100"},
        capture_output=True, text=True, check=False, cwd=tmp_path.parent,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr == ""
    assert re.search(r"failed +torch +ImportError: its library is not for this system", done.stdout)
    assert re.search(r"failed +av ", done.stdout) and re.search(r"ok +numpy ", done.stdout)
    assert "pytorch.org" in done.stdout and re.search(r"warning +sound +not checked", done.stdout)
    assert "checks failed" in done.stdout.splitlines()[-1]


def test_what_only_training_needs_may_be_absent() -> None:
    world = Library("pyworld", "pyworld", "0.3.4", TRAINING)
    absent = libraries.judged(world, {"error": "ModuleNotFoundError: No module named 'pyworld'"})
    crooked = libraries.judged(world, {"error": "ImportError: odd"})
    assert (absent.state, crooked.state) == ("ok", "warning") and TRAINING in absent.found


def test_versions_and_a_torch_for_another_numpy() -> None:
    torch_of = Library("torch", "torch", "2.1")
    assert libraries.judged(torch_of, {"version": "2.13.0+cpu"}).state == "ok"
    assert libraries.judged(torch_of, {"version": "2.0.1"}).state == "warning"
    check = libraries.judged(torch_of, {"error": "RuntimeError: Numpy is not available"})
    assert check.state == "failed" and "numpy<2" in check.advice
    assert [libraries.older(version, "1.10") for version in ("1.9", "1.10", "2", "unknown", "1.10rc1")] == [
        True, False, False, False, False,
    ]  # fmt: skip


def test_the_probe_notices_a_torch_that_cannot_reach_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(tensor: Tensor) -> None:
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(Tensor, "numpy", unavailable)
    assert probe.facts("torch", "torch") == {"error": "RuntimeError: Numpy is not available"}


def test_groups_name_what_their_modules_load() -> None:
    """What a group is the first to load it has to need; else its absence would be told as something odd."""
    script = (
        "import sys\n"
        "from vocalremover.doctor.checks import GROUPS\n"
        "from vocalremover.doctor.libraries import LIBRARIES\n"
        "before = set()\n"
        "for group, needs in GROUPS.items():\n"
        "    __import__('vocalremover.doctor.' + group)\n"
        "    loaded = {library.module for library in LIBRARIES} & set(sys.modules)\n"
        "    assert loaded - before <= set(needs), (group, loaded - before)\n"
        "    before = loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# Sound


@pytest.mark.parametrize("how", ["refuses", "silent", "short"])
@pytest.mark.usefixtures("few")
def test_a_broken_decoder_fails(command: Command, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    read = sound.read

    def crooked(path: Path) -> tuple[Tensor, int]:
        audio, rate = read(path)
        if path.suffix != ".mp3":
            return audio, rate
        if how == "refuses":
            raise AudioError(f"{path}: cannot be decoded")
        return (audio * 0 if how == "silent" else audio[:, 100:]), rate

    monkeypatch.setattr(sound, "read", crooked)
    outcome = command("doctor", "--json", "-m", tiny_model, "-d", "cpu")
    states = {name: check["state"] for (group, name), check in found(outcome).items() if group == "sound"}
    assert outcome.code == 1 and json.loads(outcome.out)["state"] == "failed"
    assert states == dict.fromkeys(("wav", "flac", "mp3", "ogg", "opus", "m4a"), "ok") | {"mp3": "failed"}
    assert "av" in found(outcome)["sound", "mp3"]["advice"]


# Devices


def test_a_driver_without_a_torch_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(devices, "has_nvidia", lambda: False)
    assert [check.name for check in devices.look(Wanted(device="cpu"))] == ["cpu", "chosen"]
    monkeypatch.setattr(devices, "has_nvidia", lambda: True)
    (check,) = [check for check in devices.look(Wanted(device="cpu")) if check.name == "cuda"]
    assert check.state == "warning" and "without CUDA" in check.found and "pytorch.org" in check.advice
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    (check,) = [check for check in devices.look(Wanted(device="cpu")) if check.name == "cuda"]
    assert check.state == "warning" and "driver" in check.advice


def test_threads_beyond_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.machine, "processors", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for threads, asked, state in ((8, None, "ok"), (64, None, "warning"), (1, "1", "warning"), (4, "4", "ok")):
        monkeypatch.setattr(torch, "get_num_threads", lambda it=threads: it)
        if asked:
            monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert next(iter(devices.look(Wanted(device="cpu")))).state == state, threads


def test_code_for_a_gpu() -> None:
    """Of one generation for later ones of it, of the virtual machine for all later ones (CUDA's compatibility)."""
    built = ["sm_70", "sm_80", "sm_90a", "compute_90"]
    runs = {(7, 5): True, (8, 6): True, (9, 0): True, (12, 0): True, (6, 1): False, (7, 0): True}
    assert {gpu: devices._is_built_for(gpu, built) for gpu in runs} == runs
    assert not devices._is_built_for((12, 0), built[:3])


@pytest.mark.usefixtures("few")
def test_a_device_that_is_not_there(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = command("doctor", "--json", "-d", "cuda:3")
    check = found(outcome)["devices", "chosen"]
    assert (outcome.code, check["state"]) == (1, "failed") and "--device cpu" in check["advice"]


# Models and disks


def test_a_file_that_cannot_be_read_is_named(home: Path, tiny_model: Path) -> None:
    home.mkdir(parents=True)
    whole = tiny_model.read_bytes()
    (home / "v10.safetensors").write_bytes(whole[: len(whole) // 2])
    (home / "mine.safetensors").write_bytes(whole)
    (home / "notes.txt").write_text("no weights")
    (check,) = [check for check in models.look(Wanted()) if check.facts["folder"] == str(home)]
    assert (check.state, check.facts["files"], check.facts["unreadable"]) == (
        "warning", ["mine.safetensors"], ["v10.safetensors"],
    )  # fmt: skip
    assert "v10.safetensors" in check.found and check.advice


@pytest.mark.usefixtures("few")
def test_a_model_that_is_not_here_fails_the_self_test(command: Command) -> None:
    outcome = command("doctor", "--json", "-m", "v10", "-d", "cpu")
    check = found(outcome)["selftest", "v10"]
    assert (outcome.code, check["state"]) == (1, "failed") and "missing" in check["found"]


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.state for check in disks.look(Wanted(out=tmp_path / "new" / "stems"))] == ["ok", "ok"]
    (tmp_path / "file").touch()
    assert next(disks.look(Wanted(out=tmp_path / "file" / "stems"))).state == "failed"
    assert next(disks.look(Wanted(out=tmp_path / ("x" * 300)))).name == "stems"  # for which Path.exists raises
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(disks.shutil, "disk_usage", lambda folder: usage)
    full = next(disks.look(Wanted(out=tmp_path)))
    assert full.state == "warning" and "room" in full.advice


# The self-test


class Moody(nn.Module):
    """Answers otherwise where the fast kernels are on."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = error

    def forward(self, magnitudes: Tensor) -> Tensor:
        return torch.full_like(magnitudes, 0.5 + self.error if torch.backends.mkldnn.enabled else 0.5)


@pytest.mark.parametrize(("error", "state"), [(0.0, "ok"), (1e-4, "ok"), (0.05, "failed"), (float("nan"), "failed")])
def test_a_network_that_answers_otherwise_on_the_device_fails(
    monkeypatch: pytest.MonkeyPatch, error: float, state: str
) -> None:
    """A mask of 0.5 that is 1e-4 wrong leaves 74 dB, one that is 0.05 wrong 20."""
    monkeypatch.setattr(checkpoint, "load", lambda name, device, config: (SPEC, Moody(error)))
    check = next(iter(selftest.look(Wanted(device="cpu"))))
    assert (check.name, check.state) == ("cpu fp32", state)


def test_almost_silent_stems_are_no_reason_to_fail() -> None:
    song = sound.chord(8000, 0.5)
    reference = {"vocals": song * 1e-5, "instrumental": song * (1 - 1e-5)}
    assert selftest.difference({**reference, "vocals": song * 2e-5}, reference) == float("inf")
    assert selftest.difference({"vocals": song, "instrumental": song * 0}, reference) < 1


def test_whatever_a_check_raises_becomes_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(wanted: Wanted) -> None:
        raise KeyError("odd")

    for module in (libraries, devices, sound, models, selftest):
        monkeypatch.setattr(module, "look", lambda wanted: iter(()))
    monkeypatch.setattr(disks, "look", odd)
    checks = list(examine(Wanted()))
    assert checks[-1] == Check("disks", "disks", "failed", "KeyError: 'odd'", checks[-1].advice)


def test_readme_names_every_option() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("### Whether it works here\n")[1].split("\n##")[0]
    for option in commands.commands["doctor"].params:
        assert any(f"`{word}" in section for word in option.opts), option.name
