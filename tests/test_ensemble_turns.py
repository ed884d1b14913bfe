"""Models that take turns say what they say together; of their spools nothing is left, whatever happens."""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytest import MonkeyPatch
from torch import Tensor, nn
from torch.testing import assert_close
from voices import BAND, OTHER, RATE, RECURRENT, SPEC, WAVE, Gains, Network, Recurrent, noise, soft

from vocalremover import checkpoint, machine
from vocalremover.audio import Encoding, Reader, read, write
from vocalremover.ensemble import Ensemble, Rule, Turns, fit_together, load_all, turns
from vocalremover.errors import AudioError, DeviceError, ModelError, UsageError
from vocalremover.models import ModelSpec
from vocalremover.separate import Inference

FLOAT = Encoding("wav", "32f")
MODELS: dict[str, tuple[ModelSpec, Callable[[], nn.Module]]] = {
    "plain": (replace(SPEC, name="plain"), lambda: soft(3)),
    "inverse": (replace(SPEC, name="inverse", target="instrumental", peak=True), lambda: soft(-2)),
    "recurrent": (RECURRENT, Recurrent),
    "other": (replace(OTHER, peak=True), lambda: soft(2)),
    "wave": (WAVE, lambda: Gains(0.6)),
    "band": (BAND, lambda: Gains(0.1, 0.2, 0.3, 0.4)),
    "drums": (replace(BAND, name="drums"), lambda: Gains(0.5, 0.2, 0.3, 0.2)),
}
MIXED = ["plain", "recurrent", "inverse", "wave", "other"]


@pytest.fixture
def alive(monkeypatch: MonkeyPatch) -> list[int]:
    """The models are there by name; the list tells how many networks were in memory whenever one was loaded."""
    networks: list[weakref.ref] = []
    counts: list[int] = []

    def load(name: str, device: torch.device, config: Path | None = None) -> tuple[ModelSpec, nn.Module]:
        if name not in MODELS:
            raise ModelError(f"{name} is no model")
        network = MODELS[name][1]()
        networks.append(weakref.ref(network))
        counts.append(sum(reference() is not None for reference in networks))
        return MODELS[name][0], network

    monkeypatch.setattr(checkpoint, "load", load)
    monkeypatch.setattr(checkpoint, "find", Path)
    monkeypatch.setattr(checkpoint, "sha256", lambda path: f"that of {path}")
    return counts


@pytest.fixture
def songs(tmp_path: Path) -> list[Path]:
    """Several lengths, rates and numbers of channels."""
    paths = []
    for number, (samples, channels, rate) in enumerate(
        [(9001, 2, RATE), (5000, 1, 11025), (100, 2, RATE), (6000, 6, RATE)]
    ):
        paths.append(tmp_path / f"{number}.wav")
        write(paths[-1], noise(channels, samples, number), rate, FLOAT)
    return paths


def stems_of(ensemble: Ensemble, song: Path) -> dict[str, Tensor]:
    with Reader(song) as reader:
        stems = list(ensemble.stream(reader.blocks(), reader.rate, layout=reader.layout))
    return {stem: torch.cat([block[stem] for block in stems], dim=-1) for stem in ensemble.stems}


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if any(part.startswith(".") for part in path.parts)]


@pytest.mark.parametrize("rule", ["min", "avg", "median", "min_wave", "original"])
@pytest.mark.parametrize("names", [["plain", "inverse", "recurrent"], MIXED, ["band", "drums", "band"], ["wave"]])
def test_in_turn_is_together(names: list[str], rule: str, alive: list[int], songs: list[Path], tmp_path: Path) -> None:
    together = Ensemble.load(names, "cpu", rule)
    models = Turns(names, "cpu", rule)
    with models.spooling(tmp_path / "out"):
        assert models.stems == together.stems and models.describe() == together.describe()
        models.hear(songs)
        for song in songs:
            audio, rate = read(song)
            with Reader(song) as reader:
                expected = together.separate(audio, rate, reader.layout)
            played = models.play(song)
            assert not played.measures
            assert_close(stems_of(played, song), expected, rtol=0, atol=3e-6)
            models.forget(song)
            assert len(list((tmp_path / "out").rglob("*.wav"))) % len(set(names)) == 0
        assert not list((tmp_path / "out").rglob("*.wav"))
    assert not hidden(tmp_path)


def test_one_model_at_a_time(alive: list[int], songs: list[Path], tmp_path: Path) -> None:
    """Each is loaded once for all songs, after the one before has left the memory; also one that is named twice."""
    models = Turns([*MIXED, "plain"], "cpu")
    with models.spooling(tmp_path):
        assert alive == [1] * len(MIXED)
        del alive[:]
        models.hear(songs)
        assert alive == [1] * len(MIXED)


def test_only_what_is_needed_is_kept(alive: list[int], songs: list[Path], tmp_path: Path) -> None:
    """Of a model of four stems the instrumental alone, where the other model has no more."""
    models = Turns(["band", "wave"], "cpu")
    with models.spooling(tmp_path):
        models.hear(songs[:1])
        samples = [read(path)[0].shape for path in hidden(tmp_path) if path.suffix == ".wav"]
        assert samples == [(2, 9001)] * 2
        assert models.play(songs[0]).stems == ("vocals", "instrumental")


def test_a_song_that_fails_stops_no_other(alive: list[int], songs: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no sound")
    models = Turns(["plain", "wave"], "cpu")
    with models.spooling(tmp_path):
        models.hear([songs[0], bad, tmp_path / "absent.wav", songs[1]])
        for song in (songs[0], songs[1]):
            stems_of(models.play(song), song)
        for song, word in ((bad, r"bad\.wav"), (tmp_path / "absent.wav", "no such file")):
            with pytest.raises(AudioError, match=word):
                models.play(song)
        assert len([path for path in hidden(tmp_path) if path.suffix == ".wav"]) == 4


def test_a_network_that_fails_leaves_the_memory(
    alive: list[int], songs: list[Path], tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """What it did wrong is kept for the song, the network is not."""

    def broken() -> Network:
        return Network(lambda x: x * float("nan"))

    monkeypatch.setitem(MODELS, "plain", (SPEC, broken))
    models = Turns(["plain", "other"], "cpu")
    with models.spooling(tmp_path):
        del alive[:]
        models.hear(songs[:1])
        assert alive == [1, 1]
        with pytest.raises(ModelError, match="not finite"):
            models.play(songs[0])


@pytest.mark.parametrize("moment", ["measuring", "separating"])
def test_an_interrupt_leaves_nothing(moment: str, alive: list[int], songs: list[Path], tmp_path: Path) -> None:
    def interrupt(blocks: Iterable[Tensor], song: Path, stage: str, samples: int | None) -> Iterator[Tensor]:
        for block in blocks:
            yield block
            if song == songs[1] and stage.startswith(moment):
                raise KeyboardInterrupt

    models = Turns(["inverse", "wave"], "cpu")
    with pytest.raises(KeyboardInterrupt), models.spooling(tmp_path):
        models.hear(songs, interrupt)
    gc.collect()
    assert not hidden(tmp_path)


def test_progress_names_the_model(alive: list[int], songs: list[Path], tmp_path: Path) -> None:
    """Each song is measured once per grid, and separated once per model, in the order of the models."""
    seen: list[tuple[str, str, int]] = []

    def counting(blocks: Iterable[Tensor], song: Path, stage: str, samples: int | None) -> Iterator[Tensor]:
        done = 0
        for block in blocks:
            done += block.shape[-1]
            yield block
        assert done == samples
        seen.append((song.name, stage, done))

    models = Turns(["inverse", "recurrent", "wave"], "cpu")
    with models.spooling(tmp_path):
        models.hear(songs[:2], counting)
    steps = ["measuring", "separating with inverse (1 of 3)"]
    later = ["separating with recurrent (2 of 3)", "separating with wave (3 of 3)"]
    expected = [(song, step) for song in ("0.wav", "1.wav") for step in steps]
    expected += [(song, step) for step in later for song in ("0.wav", "1.wav")]
    assert [(song, stage) for song, stage, _ in seen] == expected


def test_portions_fit_the_disk(
    alive: list[int], songs: list[Path], tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """Every song is in one portion, in order; a song for which there is no room has one of its own."""
    models = Turns(["plain", "wave"], "cpu")
    with models.spooling(tmp_path):
        models.hear(songs)
        sizes = [sum(path.stat().st_size for path in models._spools[song]) for song in songs]
        for free in (10**12, 2 * max(sizes), 1000):
            monkeypatch.setattr(turns.shutil, "disk_usage", lambda folder, free=free: type("Usage", (), {"free": free}))
            portions = list(models.portions([*songs, tmp_path / "absent.wav"]))
            assert [song for portion in portions for song in portion] == [*songs, tmp_path / "absent.wav"]
            kept = dict(zip(songs, sizes, strict=True))
            assert all(sum(kept.get(s, 0) for s in portion) <= free or len(portion) <= 2 for portion in portions)
        assert len(portions) == len(songs) + 1


def test_a_spool_that_ends_early_is_told(alive: list[int], songs: list[Path], tmp_path: Path) -> None:
    for name in ("plain", "wave"):
        models = Turns([name], "cpu")
        with models.spooling(tmp_path):
            models.hear(songs[:1])
            write(songs[0], noise(2, 20_000), RATE, FLOAT)
            with pytest.raises(AudioError, match="changed in the meantime"):
                stems_of(models.play(songs[0]), songs[0])
        write(songs[0], noise(2, 9001), RATE, FLOAT)


def test_what_is_refused_before_anything_runs(alive: list[int], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        Turns(["plain", "nowhere"], "cpu")
    with pytest.raises(UsageError, match="in common"):
        Turns(["plain", "band"], "cpu", stems=["drums"])
    with pytest.raises(UsageError, match="3 weights"):
        Turns(["plain", "band"], "cpu", Rule("avg", weights=(1, 1, 1)))
    with pytest.raises(DeviceError, match="no device"):
        Turns(["plain"], "gpu")
    (tmp_path / "file").write_text("")
    with pytest.raises(AudioError, match="cannot write into"), Turns(["plain"], "cpu").spooling(tmp_path / "file"):
        pass


def test_settings_that_a_model_lacks_are_told(alive: list[int]) -> None:
    models = Turns(["recurrent", "wave", "plain"], "cpu", inference=Inference(context=3))
    assert len(models.warnings) == 2 and "recurrent has no context" in models.warnings[0]


def test_what_was_heard_is_described_as_it_was_heard(alive: list[int], songs: list[Path], tmp_path: Path) -> None:
    models = Turns(MIXED, "cpu", inference=Inference(batch=3))
    with models.spooling(tmp_path):
        models.hear(songs[:1])
        assert models.play(songs[0]).describe() == models.describe() == Ensemble.load(
            MIXED, "cpu", inference=Inference(batch=3)
        ).describe()  # fmt: skip
        models.forget(songs[0])


def test_a_warning_is_kept_once(alive: list[int], songs: list[Path], tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    def narrow(x: Tensor) -> Tensor:
        if len(x) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return torch.sigmoid(x)

    monkeypatch.setitem(MODELS, "plain", (MODELS["plain"][0], lambda: Network(narrow)))
    models = Turns(["plain", "other"], "cpu", inference=Inference(batch=2))
    with models.spooling(tmp_path):
        for song in songs[:2]:
            models.hear([song])
            models.forget(song)
    assert models.warnings == ["plain: cpu ran out of memory: the batch size is now 1"]


def test_weights_that_fill_less_than_half_of_what_is_free(tiny_model: Path, monkeypatch: MonkeyPatch) -> None:
    small = tiny_model.with_name("second.safetensors")
    small.write_bytes(tiny_model.read_bytes())
    both = tiny_model.stat().st_size + small.stat().st_size
    for free, fits in [(3 * both, True), (1.5 * both, False), (None, True)]:
        monkeypatch.setattr(turns, "_free", lambda device, free=free: free)
        assert fit_together([tiny_model, small], "cpu") is fits
    assert fit_together([tiny_model], "cpu")


def test_who_decides(alive: list[int], monkeypatch: MonkeyPatch) -> None:
    """The sizes, the caller, or memory that runs out."""
    monkeypatch.setattr(turns, "fit_together", lambda names, device: "wave" not in names)
    assert isinstance(load_all(["plain", "other"], "cpu"), Ensemble)
    assert isinstance(load_all(["plain", "wave"], "cpu"), Turns)
    assert isinstance(load_all(["plain", "wave"], "cpu", in_turn=False), Ensemble)
    assert isinstance(load_all(["plain", "other"], "cpu", in_turn=True), Turns)

    def full(*words: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Ensemble, "load", full)
    assert isinstance(load_all(["plain", "other"], "cpu"), Turns)


def test_files_that_were_read_leave_a_container_its_memory(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    for name, told in [("max", "8000000"), ("current", "7000000"), ("stat", "anon 1000000\ninactive_file 6000000\n")]:
        (tmp_path / f"memory.{name}").write_text(told)
    assert machine.memory() == (8000000, 7000000)
    (tmp_path / "memory.stat").unlink()
    assert machine.memory() == (8000000, 1000000)


def test_free_memory_is_what_a_container_has(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (8, 4))
    assert turns._free(torch.device("cpu")) == 4
