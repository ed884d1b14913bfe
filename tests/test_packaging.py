"""The package as it is built and described: metadata, wheel, face, and README's promises."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest

import vocalremover
from vocalremover.cli import commands

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def listed(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_dependencies_are_the_known_ones_with_lower_bounds_only(setup_cfg: configparser.ConfigParser) -> None:
    needed = listed(setup_cfg["options"]["install_requires"])
    assert all(re.fullmatch(r"[a-z]+>=[\d.]+", line) for line in needed)
    names = "av click einops numpy platformdirs pyyaml rich safetensors soundfile soxr torch"
    assert [line.split(">=")[0] for line in needed] == names.split()
    assert setup_cfg["options"]["python_requires"] == ">=3.10"


def test_imports_are_dependencies_and_no_dependency_is_for_nothing(setup_cfg: configparser.ConfigParser) -> None:
    extras = setup_cfg["options.extras_require"]
    names = {
        which: {re.split("[>=]", line)[0].replace("pyyaml", "yaml") for line in listed(text)}
        for which, text in (("core", setup_cfg["options"]["install_requires"]), ("train", extras["train"]))
    }
    imported = set()
    for path in (ROOT / "vocalremover").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
    assert names["core"] <= imported <= names["core"] | names["train"] | {"vocalremover"}


def test_every_folder_of_modules_is_packed(setup_cfg: configparser.ConfigParser) -> None:
    folders = {path.parent for path in (ROOT / "vocalremover").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(listed(setup_cfg["options"]["packages"])) == names | {"vocalremover.checkpoints"}


def test_the_settings_files_hold_no_metadata() -> None:
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings.keys() == {"build-system", "tool"}
    assert len((ROOT / "setup.py").read_text(encoding="utf-8").splitlines()) == 4


def test_the_wheel_carries_weights_licences_and_the_command(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    for folder in ("vocalremover", "checkpoints"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"vocalremover-{vocalremover.__version__}-py3-none-any")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "vocalremover = vocalremover.cli:main" in archive.read(points).decode()
    assert "vocalremover/checkpoints/default.safetensors" in names
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in names}
    assert "vocalremover/audio/__init__.py" in names
    assert "vocalremover/report.html" in names
    assert not any(name.startswith("tests") for name in names)


def test_the_face_shows_its_names_and_no_others() -> None:
    from vocalremover import MODELS, Separator, read, write

    assert MODELS["default"] is not None
    assert Separator.__module__.startswith("vocalremover.separate")
    assert read.__module__.startswith("vocalremover.audio")
    assert write.__module__.startswith("vocalremover.audio")
    assert set(vocalremover.__all__) <= set(dir(vocalremover))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = vocalremover.nothing_like_it


def test_readme_begins_with_two_commands() -> None:
    block = re.search(r"```\n(.*?)```", README, re.DOTALL)[1].splitlines()
    assert len(block) == 2
    assert block[0].endswith("vocalremover separate song.mp3")
    assert block[1].endswith("pytest")


def options(command: click.Command) -> set[str]:
    return {name for option in command.params for name in option.opts if name.startswith("-")}


def told(table: str) -> set[str]:
    """The options that a table of README tells of; those of an example do not count."""
    plain = re.sub(r"`-[gdo] [^`]*`|`-vv`|`--overlap [^`]*`", "", table)
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z0-9-]*", plain))


# Second names, and what is told in one row with another.
UNTOLD = {"--output", "--quiet", "--verbose", "--clip-mode", "--batchsize", "--format"}


def test_readme_names_every_option_and_no_other() -> None:
    section = README.split("## The command")[1].split("\n## ")[0]
    names = told(section.split("| option |")[1].split("\n\n")[0])
    known = options(commands.commands["separate"])
    assert names <= known
    assert known - names <= UNTOLD


def test_readme_names_every_option_that_only_ensembles_have() -> None:
    section = README.split("## Ensembles")[1].split("\n## ")[0]
    names = told(section.split("| option |")[1].split("\n\n")[0])
    own = options(commands.commands["ensemble"]) - options(commands.commands["separate"])
    assert own <= names
    assert names <= options(commands.commands["ensemble"])


def test_readme_names_every_model() -> None:
    from vocalremover import MODELS

    section = README.split("| name | what it is |")[1].split("\n\n")[0]
    names = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert set(re.findall(r"\w+", " ".join(names))) == set(MODELS)
