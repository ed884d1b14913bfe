"""What several tests share: small songs, a tiny untrained model, the command in this process, a fake separator."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vocalremover import checkpoint
from vocalremover.audio import Encoding, write
from vocalremover.cli import main
from vocalremover.models import MODELS

# The tests' networks are tiny: a second thread brings them nothing, and on a busy machine it waits for its turn.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def command(capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Outcome]:
    """The command line run in this process. Its answers are decoded as file names are: they may hold any bytes."""

    def run(*words: object) -> Outcome:
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        out, err = map(os.fsdecode, capsysbinary.readouterr())
        return Outcome(end.value.code, out, err)

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random compact network, small enough for a test and the same every time."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny.safetensors", seed=0)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny_model`, with other numbers."""
    return save_tiny(tmp_path_factory.mktemp("models") / "other.safetensors", seed=1)


def save_tiny(path: Path, seed: int) -> Path:
    """The file of a random compact network."""
    recipe = MODELS["default"]
    spec = replace(recipe, name=path.stem, args={"channels": (4, 4, 4, 4, 4), "maps": 4, "num_layers": 1})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = spec.build("cpu")
    checkpoint.save(path, spec, network)
    return path


def most_behind(answer: Callable[[Iterator[Tensor]], Iterable[Tensor]], samples: int = 1000) -> int:
    """How many samples of a stream lie at most between what was asked of it and its answer, which is as long.

    The stream is a hundred blocks `[2, samples]`.
    """
    asked = given_back = most = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal asked
        for _ in range(100):
            asked += samples
            yield torch.ones(2, samples)

    for block in answer(blocks()):
        given_back += block.shape[-1]
        most = max(most, asked - given_back)
    assert given_back == asked == 100 * samples
    return most


def check_wrong_usage(outcome: Outcome, song: Path) -> None:
    """A command about a song was refused in words, before it made anything."""
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err and "Traceback" not in outcome.err
    assert os.listdir(song.parent) == [song.name]


def noise(samples: int, channels: int = 2, seed: int = 0) -> Tensor:
    """`[channels, samples]`, well below full scale."""
    return (torch.rand(channels, samples, generator=torch.Generator().manual_seed(seed)) - 0.5) * 0.5


@pytest.fixture
def make_song(tmp_path: Path) -> Callable[..., Path]:
    """Writes a song of noise into the test's folder; the suffix decides the format."""

    def make(name: str = "song.wav", samples: int = 22050, rate: int = 44100, channels: int = 2, **kind: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        encoding = Encoding(kind.get("format", path.suffix[1:]), kind.get("bits"))
        write(path, noise(samples, channels), rate, encoding)
        return path

    return make


class FakeSeparator:
    """Stands where a Separator would: the vocals are `share` of the song, without any network."""

    def __init__(self, share: float = 0.25, needs_peak: bool = False) -> None:
        self.share = share
        self.measures = needs_peak
        self.stems = ("vocals", "instrumental")
        self.device = "cpu"
        self.warnings: list[str] = []
        self.measured: list[float | None] = []

    def peak(self, blocks: Iterable[Tensor], rate: int) -> float:
        return max(float(block.abs().max()) for block in blocks)

    def describe(self) -> dict[str, object]:
        return {"model": "fake", "share": self.share}

    def stream(
        self, blocks: Iterable[Tensor], rate: int, peak: float | None, layout: str
    ) -> Iterator[dict[str, Tensor]]:
        self.measured.append(peak)
        for block in blocks:
            yield {"vocals": block * self.share, "instrumental": block - block * self.share}


@pytest.fixture
def fake_separator() -> FakeSeparator:
    return FakeSeparator()
