"""Laws of training in pieces: what is packed comes out as it was, a chain of pieces is one run, nothing waits."""

import io
import json
import os
import shutil
import signal
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vocalremover.audio import Encoding, write
from vocalremover.dataset import Catalogue, Sources, Track, load, prepare
from vocalremover.dataset.cache import RATE, Cache, Entry, Recording, checksum, melody_name, write_entry
from vocalremover.dataset.catalogue import read_catalogue
from vocalremover.dataset.parcels import INDEX, pack, unpack
from vocalremover.errors import InputError
from vocalremover.training import piece as pieces
from vocalremover.training.ahead import run_ahead
from vocalremover.training.batches import load_batches
from vocalremover.training.distributed import World
from vocalremover.training.journal import read_journal
from vocalremover.training.recipe import Stage, read_recipe
from vocalremover.training.shelf import Shelf
from vocalremover.training.shipping import join, split
from vocalremover.training.state import save_state
from vocalremover.training.train import Run
from vocalremover.voxaug import OURS, Mixes, draw
from vocalremover.voxaug.plans import make_plan
from vocalremover.voxaug.rendering import Tapes, perform
from vocalremover.voxaug.strengths import Dose

CPU = World(0, 1, torch.device("cpu"))
TINY = [
    "stft={n_fft: 512, hop: 256}", "stages=[{frames: 32, batch: 2}]", "log_steps=1", "schedule={warm_up: 2, until: 6}",
    "network={n_fft: 512, channels: 2, num_heads: 2, expansion: 2, dropout: 0.1}",
]  # fmt: skip


def tone(seconds: float, hertz: float) -> Tensor:
    """A voice of sorts, whose place in time is heard from its rhythm."""
    time = torch.arange(int(seconds * RATE)) / RATE
    pitch = 2 * torch.pi * hertz * time + 3 * torch.sin(2 * torch.pi * 5 * time)
    return (0.3 * torch.sin(pitch) * (0.6 + 0.4 * torch.sin(2 * torch.pi * 1.3 * time)))[None]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Voices as WAV and as Opus, a song, an instrumental, and a melody that no file was decoded to."""
    root = tmp_path_factory.mktemp("pieces")
    noise = 0.1 * torch.randn(2, 3 * RATE, generator=torch.Generator().manual_seed(0))
    files = {
        "vocals/a.wav": tone(3, 220), "vocals/b.wav": tone(2.5, 330), "vocals/c.opus": tone(3, 440),
        "instrumentals/d.opus": noise, "pairs/song/vocals.opus": tone(3, 550).expand(2, -1),
        "pairs/song/instrumental.opus": noise.flip(-1),
    }  # fmt: skip
    for name, audio in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, audio, RATE, Encoding(path.suffix[1:]))
    prepare(Sources((root / "instrumentals",), (root / "vocals",), (root / "pairs",)), root / "cache", workers=0)
    path = write_entry(root / "cache", melody_name("vocals__a.wav"), tone(2, 700).numpy())
    status = path.stat()
    entry = Entry(path.stem, (), "", 1, 2 * RATE, status.st_size, status.st_mtime_ns, checksum(path))
    Cache(root / "cache").note(entry)
    return root / "cache"


@pytest.fixture(scope="module")
def parcels(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Each too small for two of the larger groups."""
    return pack(cache, tmp_path_factory.mktemp("parcels"), 180_000)


def relative(catalogue: Catalogue) -> Catalogue:
    """With the names of files instead of their paths."""

    def moved(track: Track) -> Track:
        return replace(track, path=Path(track.path.name))

    songs = tuple((moved(one), moved(other)) for one, other in catalogue.songs)
    voices, backings = (tuple(map(moved, tracks)) for tracks in (catalogue.voices, catalogue.backings))
    return replace(catalogue, voices=voices, backings=backings, songs=songs)


def test_what_was_packed_comes_out_as_it_was(cache: Path, parcels: list[Path], tmp_path: Path) -> None:
    """The same names, order and lengths, so that a number is the same example; the same samples where files travel."""
    assert len(parcels) > 1 and all(path.stat().st_size <= 180_000 for path in parcels)
    done = unpack(parcels[0].parent, tmp_path / "cache", workers=0)
    assert (done.entries, done.missing, done.problems) == (done.of, (), ())
    before, after = load(cache), load(tmp_path / "cache")
    assert relative(after) == relative(before)
    for path in cache.glob("*.npy"):
        was, now = (np.load(folder / path.name).astype(np.float64) for folder in (cache, tmp_path / "cache"))
        assert was.shape == now.shape, path.name
        if path.stem.endswith(".wav"):  # a tone as Opus; a shift by a single sample leaves 25 dB at 440 Hz, less above
            assert 10 * np.log10(np.square(was).sum() / np.square(was - now).sum()) > 20, path.name
        else:
            assert np.array_equal(was, now), path.name
    assert unpack(parcels[0].parent, tmp_path / "cache", workers=0) == done, "nothing is decoded twice"


def test_a_melody_that_the_catalogue_lists_is_packed_once(cache: Path, tmp_path: Path) -> None:
    other = shutil.copytree(cache, tmp_path / "cache")
    page = read_catalogue(other)
    melody = Recording(melody_name("vocals__a.wav"), "melody/vocals/a.wav", "melody", (), True)
    page["recordings"].append({key: value for key, value in asdict(melody).items() if key != "parts"})
    (other / "catalogue.json").write_text(json.dumps(page))
    pack(other, tmp_path / "parcels", 1 << 20)
    done = unpack(tmp_path / "parcels", tmp_path / "again", workers=0)
    assert done.entries == done.of == len(list(cache.glob("*.npy")))


def test_parcels_may_come_one_after_the_other(parcels: list[Path], cache: Path, tmp_path: Path) -> None:
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for number, path in enumerate(parcels, start=1):
        shutil.copy(path, arrived)
        done = unpack(arrived, tmp_path / "cache", workers=0)
        assert done.missing == tuple(range(number + 1, len(parcels) + 1))
        told = load(tmp_path / "cache").problems
        assert len(told) == (number < len(parcels)), "one sentence about all that is missing"
    assert done.entries == done.of and relative(load(tmp_path / "cache")) == relative(load(cache))


def test_a_parcel_that_was_unpacked_may_go(parcels: list[Path], tmp_path: Path) -> None:
    for path in parcels:
        arrived = tmp_path / path.stem
        arrived.mkdir()
        shutil.copy(path, arrived)
        done = unpack(arrived, tmp_path / "cache", workers=0)
    assert (done.entries, done.missing) == (done.of, ()) and not load(tmp_path / "cache").problems


def test_damage_is_told_and_the_rest_is_used(parcels: list[Path], tmp_path: Path) -> None:
    arrived = shutil.copytree(parcels[0].parent, tmp_path / "arrived")
    content = bytearray((arrived / parcels[0].name).read_bytes())
    content[-30_000] ^= 0xFF  # within the last recording
    (arrived / parcels[0].name).write_bytes(content)
    done = unpack(arrived, tmp_path / "cache", workers=0)
    assert done.entries == done.of - 1 and "is damaged: bring this parcel again" in done.problems[0]
    (arrived / parcels[0].name).write_bytes(content[:500])
    with pytest.raises(InputError, match="no parcel, or it is cut short"):
        unpack(arrived, tmp_path / "cache", workers=0)


def forge(parcel: Path, change: Callable[[dict], object]) -> None:
    """Put what `change` makes of a parcel's index into its place."""
    with tarfile.open(parcel) as file:
        members = {member.name: file.extractfile(member).read() for member in file}
    members[INDEX] = json.dumps(change(json.loads(members[INDEX]))).encode()
    with tarfile.open(parcel, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def renamed(index: dict) -> dict:
    index["entries"][0]["entry"]["name"] = "../outside/evil"
    return index


@pytest.mark.parametrize(
    "change",
    [
        renamed,
        lambda index: {},
        lambda index: [index],
        lambda index: index | {"entries": [{}]},
        lambda index: index | {"recordings": [{"name": "/evil"}]},
    ],
)
def test_a_parcel_whose_index_cannot_be_right_is_refused(
    parcels: list[Path], tmp_path: Path, change: Callable[[dict], object]
) -> None:
    (tmp_path / "outside").mkdir()
    arrived = shutil.copytree(parcels[0].parent, tmp_path / "arrived")
    forge(arrived / parcels[0].name, change)
    with pytest.raises(InputError, match=f"{parcels[0].name} is no parcel"):
        unpack(arrived, tmp_path / "cache", workers=0)
    assert not list((tmp_path / "outside").iterdir())


def test_parcels_of_two_packings_are_not_mixed(parcels: list[Path], tmp_path: Path, cache: Path) -> None:
    arrived = shutil.copytree(parcels[0].parent, tmp_path / "arrived")
    other = shutil.copytree(cache, tmp_path / "other")
    (other / "vocals__c.opus.npy").unlink()
    shutil.copy(pack(other, tmp_path / "again", 1 << 20)[0], arrived)
    with pytest.raises(InputError, match="different packings"):
        unpack(arrived, tmp_path / "cache", workers=0)
    with pytest.raises(InputError, match="holds parcels already"):
        pack(other, tmp_path / "again", 1 << 20)
    with pytest.raises(InputError, match="make larger parcels"):
        pack(other, tmp_path / "small", 60_000)


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=300), st.integers(1, 100))
def test_parts_make_the_whole(tmp_path_factory: pytest.TempPathFactory, content: bytes, limit: int) -> None:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "last.pt").write_bytes(content)
    parts = split(folder / "last.pt", folder / "out", limit)
    assert all(part.stat().st_size <= limit for part in parts)
    assert join(folder / "out", folder / "joined" / "last.pt") is True
    assert (folder / "joined" / "last.pt").read_bytes() == content
    assert join(folder / "out", folder / "joined" / "best.safetensors") is False


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    state, out = tmp_path / "last.pt", tmp_path / "out"
    state.write_bytes(b"first state")
    stale = split(state, tmp_path / "old", 4)
    state.write_bytes(b"other state")
    split(state, out, 4)
    parts = split(state, out, 4)
    assert sorted(out.iterdir()) == sorted(parts), "a new state takes the place of the last one"
    held = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(InputError, match="parts 2 of 3 are missing"):
        join(out, state)
    parts[1].write_bytes(b"????")
    with pytest.raises(InputError, match="damaged"):
        join(out, state)
    parts[1].write_bytes(held)
    shutil.copy(stale[0], out)
    with pytest.raises(InputError, match="several states"):
        join(out, state)


def words(cache: Path, out: Path, steps: int, *more: object) -> list[object]:
    sets = [word for change in (*TINY, f"steps={steps}") for word in ("--set", change)]
    return ["train", "piece", "--cache", cache, "--out", out, "--recipe", "thin", "-d", "cpu", "--workers", 0,
            "--minutes", 5, "--measure", 0, "--mixing", "device", *sets, *more]  # fmt: skip


def test_a_chain_of_pieces_is_one_run(command: Callable, parcels: list[Path], tmp_path: Path) -> None:
    """Unpack, train, ship in parts, join elsewhere and go on: bit for bit what one run is, on a CPU."""
    cache, shipped = tmp_path / "cache", tmp_path / "shipped"
    first = command(
        *words(cache, tmp_path / "first", 2, "--unpack", parcels[0].parent, "--ship", shipped, "--part-mib", 0.05)
    )
    assert first.code == 0 and json.loads(first.out)["steps"] == 2
    assert all(path.stat().st_size <= 0.05 * 2**20 for path in shipped.iterdir())
    assert command(*words(cache, tmp_path / "second", 4, "--join", shipped)).code == 0
    assert command(*words(cache, tmp_path / "whole", 4)).code == 0
    assert [line["step"] for line in read_journal(tmp_path / "second" / "log.jsonl")] == [1, 2, 3, 4]
    one, other = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "second"))
    for held, found in ((one["averaged"], other["averaged"]), *zip(*map(moving, (one, other)), strict=True)):
        assert all(torch.equal(value, found[name]) for name, value in held.items())


def moving(state: dict) -> tuple[dict, dict]:
    """The weights and the optimiser's memory of the first of them."""
    player = state["players"]["network"]
    return player["network"], player["optimizer"]["state"][0]


def test_a_piece_measures_ends_and_goes_on(
    command: Callable, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its time is over, it saves: there the next one begins."""
    told = []
    for steps in (1, 2):
        left = iter([False] * steps)
        monkeypatch.setattr(pieces.Deadline, "passed", lambda self, left=left: next(left, True))
        done = command(
            *words(cache, tmp_path / "run", 1000), "--measure", 0.01, "--batch", 2, "--batch", 1,
            "--compile-limit", 0, "--ship", tmp_path / "shipped",
        )  # fmt: skip
        assert done.code == 0
        told.append(json.loads(done.out))
    for report in told:
        assert [speed["batch"] for speed in report["speeds"]] == [1, 2], "the run's own comes last"
        assert all(speed["mixing"] > 0 and speed["learning"] > 0 for speed in report["speeds"])
        assert report["left_behind"] == [] and not report["compiled"]
    assert [report["steps"] for report in told] == [1, 3]
    names = {path.name.split(".")[0] for path in (tmp_path / "shipped").iterdir()}
    assert names == {"last", "best", "log", "report"}


def test_a_piece_without_time_saves_where_it_stands(command: Callable, cache: Path, tmp_path: Path) -> None:
    done = command(*words(cache, tmp_path / "run", 1000), "--minutes", 0.05)
    assert done.code == 0 and json.loads(done.out)["steps"] == 0
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 0


def test_a_size_that_memory_has_no_room_for_costs_nothing_else(
    command: Callable, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(piece: pieces.Piece, world: object, batch: int) -> pieces.Speed:
        return pieces.Speed(batch, 1.0, 1.0) if batch < 64 else torch.empty(1 << 60)

    monkeypatch.setattr(pieces, "measure", measured)
    done = command(*words(cache, tmp_path / "run", 2), "--measure", 0.01, "--batch", 64, "--compile-limit", 0)
    report = json.loads(done.out)
    assert done.code == 0 and report["steps"] == 2
    assert [speed["batch"] for speed in report["speeds"]] == [2] and report["too_large"] == [64]


def test_a_state_is_joined_whole_or_again(command: Callable, cache: Path, tmp_path: Path) -> None:
    shipped, out = tmp_path / "shipped", tmp_path / "second"
    assert command(*words(cache, tmp_path / "first", 1, "--ship", shipped)).code == 0
    part = next(shipped.glob("best.safetensors*"))
    held = part.read_bytes()
    part.write_bytes(held[:-1])
    assert command(*words(cache, out, 2, "--join", shipped)).code != 0
    assert not (out / "last.pt").exists(), "or nothing more would be joined"
    part.write_bytes(held)
    assert "best.safetensors" in command(*words(cache, out, 2, "--join", shipped)).err


def test_a_state_that_is_too_large_to_travel_leaves_its_weights(
    command: Callable, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, shipped, out = (tmp_path / name for name in ("first", "shipped", "second"))
    assert command(*words(cache, first, 1)).code == 0
    sizes = {name: (first / name).stat().st_size for name in ("last.pt", "last.safetensors")}
    monkeypatch.setattr(pieces, "TOGETHER", sizes["last.pt"] - 1)
    done = command(*words(cache, first, 1, "--ship", shipped))
    assert json.loads(done.out)["left_behind"] == ["last.pt"]
    done = command(*words(cache, out, 1, "--join", shipped, "--start", "default"))
    assert done.code == 0 and "with its averaged weights" in done.err
    states = [torch.load(folder / "last.pt", weights_only=True)["averaged"] for folder in (first, out)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    shutil.rmtree(out)
    assert command(*words(cache, out, 3, "--join", shipped)).code == 0
    log = [(line["step"], line["drawn"]) for line in read_journal(out / "log.jsonl")]
    assert log == [(1, 2), (2, 4), (3, 6)], "no example is heard again, and nothing of the log is lost"


def test_a_cache_without_a_backing_is_refused(command: Callable, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "cache")
    for track in load(cache).backings:
        (tmp_path / "cache" / track.path.name).unlink(missing_ok=True)
    failed = command(*words(tmp_path / "cache", tmp_path / "run", 1))
    assert failed.code != 0 and "no usable backing" in failed.err


def test_a_piece_that_is_stopped_ships_and_tells_so(
    command: Callable, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def passed(deadline: pieces.Deadline) -> bool:
        signal.raise_signal(signal.SIGTERM)
        return False

    monkeypatch.setattr(pieces.Deadline, "passed", passed)
    done = command(*words(cache, tmp_path / "run", 1000), "--ship", tmp_path / "shipped")
    assert done.code == 143 and "goes on" in done.err
    steps = json.loads(done.out)["steps"]
    join(tmp_path / "shipped", tmp_path / "last.pt")
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == steps == 1


@pytest.mark.parametrize("size", ["inf", "nan", "1e300"])
def test_parts_without_a_size_are_refused(command: Callable, cache: Path, tmp_path: Path, size: str) -> None:
    packing = ["train", "pack", cache, tmp_path / "out", "--piece-mib", size]
    for call in (packing, words(cache, tmp_path, 1, "--part-mib", size)):
        failed = command(*call)
        assert failed.code == 2 and "is no size" in failed.err


def test_a_piece_is_for_one_process(
    command: Callable, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    failed = command(*words(cache, tmp_path / "run", 1))
    assert failed.code == 2 and "without torchrun" in failed.err and not (tmp_path / "run").exists()


def test_a_save_that_takes_long_is_begun_in_time(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a state that is too large to ship, so that shipping tells nothing."""
    kept: list[float] = []

    def passed(deadline: pieces.Deadline) -> bool:
        kept.append(deadline.saving)
        return False

    monkeypatch.setattr(Shelf, "store", lambda shelf, state: save_state(state, shelf.folder / "last.pt") or 20.0)
    monkeypatch.setattr(pieces.Deadline, "passed", passed)
    run = Run(read_recipe("thin", changes=TINY, steps=4, save_steps=1), tmp_path / "run", load(cache), workers=0)
    list(pieces.run_piece(pieces.Piece(run, time.monotonic() + 100, tmp_path / "ship", 10, seconds=0), CPU))
    assert kept[0] == pieces.RESERVE and kept[-1] >= 2 * 20


def test_only_the_batch_of_the_run_is_compiled_and_only_in_time(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    for measurement in ("_rate", "speed_of_learning"):
        monkeypatch.setattr(pieces, measurement, lambda *given: 1.0)
    monkeypatch.setattr(pieces, "try_compiled", lambda recipe, device, seconds, limit: limits.append(limit))
    run = Run(read_recipe("thin", changes=TINY, steps=1), tmp_path / "run", load(cache), workers=0)
    for left in (1000, 30, 5):
        piece = pieces.Piece(run, time.monotonic() + left, seconds=0.01)
        for batch in (1, 2):
            pieces.measure(piece, CPU, batch)
    assert limits[0] == 90 and 0 < limits[1] < 20 and len(limits) == 2


def test_a_compiler_that_takes_too_long_is_left() -> None:
    assert pieces.try_compiled(read_recipe("thin", changes=TINY, steps=1), CPU.device, 0.1, limit=0.1) is None


def test_what_windows_lacks_is_not_needed(parcels: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of processes, and files that are open twice."""
    for place, name in ((os, "killpg"), (os, "setsid"), (tempfile, "NamedTemporaryFile")):
        monkeypatch.delattr(place, name)
    monkeypatch.setattr(pieces, "speed_of_learning", lambda *given: 1.0)
    recipe = read_recipe("thin", changes=TINY, steps=1)
    assert pieces.try_compiled(recipe, CPU.device, 0.1, limit=0.1) is None
    ours, theirs = get_context("spawn").Pipe(duplex=False)
    pieces._try(recipe, "cpu", 0.1, theirs)
    assert ours.recv() == 1.0
    done = unpack(parcels[0].parent, tmp_path / "cache", workers=0)
    assert done.entries == done.of and not done.problems


def test_what_is_too_large_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "TOGETHER", 100)
    for name, size in (("log.jsonl", 10), ("last.safetensors", 30), ("last.pt", 100), ("best.safetensors", 30)):
        (tmp_path / name).write_bytes(bytes(size))
    assert pieces.ship(tmp_path, tmp_path / "out", 20) == ["last.pt"]
    assert len(list((tmp_path / "out").iterdir())) == 5 <= pieces.FILES - 1
    monkeypatch.setattr(pieces, "TOGETHER", 200)
    assert pieces.ship(tmp_path, tmp_path / "out", 50) == []
    (tmp_path / "last.pt").write_bytes(bytes(300))
    assert pieces.ship(tmp_path, tmp_path / "out", 50) == ["last.pt"]
    assert not list((tmp_path / "out").glob("last.pt*")), "an earlier state would be joined with later weights"


@dataclass(frozen=True)
class Numbered:
    number: int
    content: Tensor


def numbered() -> Iterator[Numbered]:
    return (Numbered(number, torch.tensor(number)) for number in count())


def test_batches_made_ahead_are_the_same_in_the_same_order() -> None:
    batches = run_ahead(numbered(), CPU.device)
    assert [batch.number for batch in islice(batches, 20)] == list(range(20))
    batches.close()  # returns: the thread has ended


def test_what_goes_wrong_ahead_is_raised_where_the_batch_is_awaited() -> None:
    def broken() -> Iterator[Numbered]:
        yield from islice(numbered(), 3)
        raise InputError("the cache is gone")

    batches = run_ahead(broken(), CPU.device)
    assert [next(batches).number for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="the cache is gone"):
        next(batches)


def test_batches_rendered_on_the_device_are_those_of_any_number_of_workers(cache: Path) -> None:
    recipe = read_recipe("thin", changes=TINY, steps=1)
    spec, stage = recipe.spec(), Stage(frames=32, batch=3)
    mixes = Mixes(load(cache), 3, 31 * 256)
    heard = []
    for workers in (0, 2):
        batches = load_batches(mixes, recipe, stage, spec, CPU, 30, workers, on_device=True)
        heard.append(list(islice(batches, 4)))
        batches.close()
    for one, other in zip(*heard, strict=True):
        assert one.numbers == other.numbers
        assert torch.equal(one.mixture, other.mixture) and torch.equal(one.peak, other.peak)


def test_the_host_is_never_asked_while_a_batch_is_rendered(cache: Path) -> None:
    """An operation that returns a number to Python would make a GPU wait for the host and the host for the GPU."""
    catalogue = load(cache)
    tapes = Tapes(catalogue, "cpu")
    mixes = [draw(catalogue, 5, epoch, 0) for epoch in range(16)]
    plan = make_plan(mixes, RATE // 8, tapes.places.__getitem__)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        perform(plan, CPU.device, tapes)
    asked = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}
    assert not asked & {event.name for event in watched.events()}
    small = make_plan(mixes[:8], RATE // 8, tapes.places.__getitem__)
    with profile(activities=[ProfilerActivity.CPU]) as half:
        perform(small, CPU.device, tapes)
    steps = [sum(event.cpu_parent is None for event in each.events()) for each in (half, watched)]
    assert steps[1] < 1.6 * steps[0], "twice the examples take far from twice the operations"


@pytest.mark.gpu
def test_a_gpu_renders_what_a_cpu_renders(cache: Path) -> None:
    """All but noise, which is another there, and the coder, whose thresholds rounding may cross."""
    still = {"roughness": Dose(), "phase": Dose()}
    ours = replace(OURS, voice=replace(OURS.voice, **still), backing=replace(OURS.backing, **still), codec=Dose())
    catalogue, gpu = load(cache), torch.device("cuda")
    tapes = Tapes(catalogue, gpu)
    mixes = [draw(catalogue, 5, epoch, 0, ours) for epoch in range(32)]
    found = perform(make_plan(mixes, RATE, tapes.places.__getitem__), gpu, tapes)
    torch.testing.assert_close(found.cpu(), perform(make_plan(mixes, RATE), CPU.device), atol=1e-3, rtol=0)


@pytest.mark.gpu
def test_a_gpu_is_handed_the_batches_that_were_made_ahead(cache: Path) -> None:
    recipe = read_recipe("thin", changes=TINY, steps=1)
    mixes, stage = Mixes(load(cache), 3, 31 * 256), Stage(frames=32, batch=3)
    world = World(0, 1, torch.device("cuda"))
    heard = []
    for _ in range(2):
        batches = load_batches(mixes, recipe, stage, recipe.spec(), world, 30, 2, on_device=True)
        heard.append([batch.mixture.clone() for batch in islice(batches, 20)])
        batches.close()
    assert all(torch.equal(one, other) for one, other in zip(*heard, strict=True))
