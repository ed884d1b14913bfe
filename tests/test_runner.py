"""The ways a network is run fast give what the plain way gives, whatever fails, and nobody waits in between.

What needs a GPU has a stand-in here: recordings are functions called again, streams are none. The same bodies run on
the true thing where there is one.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from time import sleep
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from vocalremover import devices
from vocalremover.chunks import Chunking
from vocalremover.models import MODELS
from vocalremover.networks import compact, roformer
from vocalremover.separate.graphs import Graphs
from vocalremover.separate.regions import Regions
from vocalremover.separate.runner import Runner

CPU = torch.device("cpu")
CHUNKING = Chunking(8, 2)
EITHER = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def repeat(work: Callable[[], Tensor], pool: object) -> tuple[Callable[[], None], Tensor]:
    """As a recording: it reads the same place and fills the same place again."""
    answer = work()
    return lambda: answer.copy_(work()), answer


def always(device: torch.device) -> bool:
    return True


def windows(count: int, width: int = 12, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, width, generator=torch.Generator().manual_seed(seed))


class Counted(nn.Module):
    """A function of its input, with a log of what it is shown."""

    def __init__(self, answer: Callable[[Tensor], Tensor] = torch.sin) -> None:
        super().__init__()
        self.answer, self.log = answer, []

    def forward(self, x: Tensor, **keywords: object) -> Tensor:
        self.log.append(x.shape[0])
        return self.answer(x)


def runner(network: nn.Module, batch: int = 2, precision: str = "fp32", device: str = "cpu") -> Runner:
    """A runner that is ahead, and on the CPU, too, has recordings."""
    ours = Runner(network.to(device).eval(), torch.device(device), precision, batch, acceleration="auto")
    ours.ahead = True
    if device == "cpu":
        ours._full = ours._graphs = Graphs(ours._forward, CPU, repeat, always)
    return ours


def test_a_recording_is_used_from_the_third_time_on_and_its_answers_are_kept() -> None:
    network, recorded = Counted(), []

    def record(work: Callable[[], Tensor], pool: object) -> tuple[Callable[[], None], Tensor]:
        recorded.append(pool)
        return repeat(work, pool)

    graphs = Graphs(network, CPU, record, always)
    inputs = [windows(2, seed=seed) for seed in range(5)]
    answers = [graphs(one) for one in inputs]
    for one, answer in zip(inputs, answers, strict=True):
        assert torch.equal(answer, one.sin())
    assert len(recorded) == 1 and graphs.trouble is None
    for _ in range(2):  # each kind for itself
        assert torch.equal(graphs(inputs[0], stems=[1]), inputs[0].sin())
        assert torch.equal(graphs(inputs[0][:1]), inputs[0][:1].sin())
    assert len(recorded) == 3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("it waits\nfor the host")])
def test_what_cannot_be_recorded_runs_as_it_comes(error: RuntimeError) -> None:
    def fail(work: Callable[[], Tensor], pool: object) -> tuple[Callable[[], None], Tensor]:
        raise error

    graphs = Graphs(Counted(), CPU, fail, always)
    for seed in range(4):
        assert torch.equal(graphs(windows(2, seed=seed)), windows(2, seed=seed).sin())
    assert graphs.trouble == str(error).splitlines()[0] and not graphs.forget()
    ours = runner(Counted())
    ours._full = ours._graphs = graphs
    ours(windows(6), CHUNKING)
    assert len(ours.warnings) == 1 and "without CUDA graphs" in ours.warnings[0]


def test_one_thread_records_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch allows one recording in a process, whatever the device."""
    entered: list[str] = []

    @contextmanager
    def graph(*words: object, **keywords: object) -> Iterator[None]:
        entered.append("recording")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    other = Thread(target=lambda: devices.record(lambda: torch.ones(1), None))

    def work() -> Tensor:
        other.start()
        other.join(0.1)
        assert len(entered) == 1
        return torch.ones(1)

    devices.record(work, None)
    other.join()
    assert len(entered) == 2


def at_once(work: Callable[[Tensor], Tensor], count: int = 40) -> list[bool]:
    """Whether each answer to inputs of its own is right, when two threads ask one after the other's shoulder."""
    right: list[bool] = []

    def ask(first: int) -> None:
        for number in range(first, count, 2):
            x = torch.full((1, 4), float(number))
            right.append(torch.equal(work(x), x + 1))

    threads = [Thread(target=ask, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return right


def test_two_threads_share_a_recording() -> None:
    def slow(work: Callable[[], Tensor], pool: object) -> tuple[Callable[[], None], Tensor]:
        answer = work()

        def replay() -> None:
            sleep(0.001)  # time for the other thread to write into the place that is read here
            answer.copy_(work())
            sleep(0.001)

        return replay, answer

    assert at_once(Graphs(lambda x: x + 1, CPU, slow, always)) == [True] * 40


def test_nothing_is_recorded_where_memory_is_short() -> None:
    graphs = Graphs(Counted(), CPU, lambda work, pool: pytest.fail("it was recorded"), lambda device: False)
    for seed in range(4):
        assert torch.equal(graphs(windows(2, seed=seed)), windows(2, seed=seed).sin())
    assert graphs.trouble is None


def test_memory_of_recordings_is_given_back_first() -> None:
    """Before the batch shrinks: the same batch fits where no recording holds as much again."""

    def hungry(x: Tensor) -> Tensor:
        if any(ours._graphs._kinds.values()) and x.shape[-1] > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.sin()

    ours = runner(Counted(hungry))
    ours(windows(6), CHUNKING)
    assert any(ours._graphs._kinds.values())
    wide = windows(4, 20)
    assert_close(ours(wide, Chunking(16, 2)), wide.sin())
    assert ours.batch == 2 and not any(ours._graphs._kinds.values())
    assert any("out of memory" in warning for warning in ours.warnings)


class Blocks(nn.Module):
    """Two blocks of a network, between other things."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(compact.FrameAttention(16, 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) * 0.5
        return x


def test_blocks_run_compiled_inside_and_plain_outside() -> None:
    network, x = Blocks().eval(), torch.randn(2, 12, 16)
    calls = []

    def compiler(forward: Callable) -> Callable:
        return lambda *words: calls.append(forward.__self__) or forward(*words)

    with torch.inference_mode():
        expected = network(x)
        regions = Regions(network, network, compiler)
        assert torch.equal(regions(x), expected) and calls == list(network.blocks)
        assert torch.equal(network(x), expected) and len(calls) == 2


def test_two_threads_share_compiled_blocks() -> None:
    class Late(compact.FrameAttention):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    def compiler(forward: Callable) -> Callable:
        return lambda x: (sleep(0.001), forward(x))[1]

    network = nn.Sequential(Late(4, 1))
    assert at_once(Regions(network, network, compiler)) == [True] * 40


@pytest.mark.parametrize("name", MODELS)
def test_every_known_network_has_blocks_to_compile(name: str) -> None:
    network = MODELS[name].build()
    assert Regions(network, network, lambda forward: forward)._blocks


def test_blocks_of_one_shape_are_compiled_once() -> None:
    """By torch's own front end, whose answers are the same bits as long as nothing is fused."""
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        compiled.append(graph)
        return graph.forward

    def compiler(forward: Callable) -> Callable:
        return torch.compile(forward, dynamic=False, backend=backend)

    network = Blocks().eval()
    with torch.inference_mode():
        x = torch.randn(2, 12, 16)
        regions = Regions(network, network, compiler)
        for _ in range(2):
            assert torch.equal(regions(x), network(x))
    assert regions.trouble is None
    assert len(compiled) == 1


def test_a_lack_of_memory_is_no_lack_of_a_compiler() -> None:
    def compiler(forward: Callable) -> Callable:
        def fail(*words: object) -> Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        return fail

    network = Blocks().eval()
    regions = Regions(network, network, compiler)
    with pytest.raises(RuntimeError, match="allocate"):
        regions(torch.randn(2, 12, 16))
    assert regions.trouble is None


def test_without_a_compiler_blocks_run_as_they_are() -> None:
    def compiler(forward: Callable) -> Callable:
        def fail(*words: object) -> Tensor:
            raise RuntimeError("there is no compiler\nand more")

        return fail

    network, x = Blocks().eval(), torch.randn(2, 12, 16)
    regions = Regions(network, network, compiler)
    for _ in range(2):
        assert torch.equal(regions(x), network(x))
    assert regions.trouble == "there is no compiler"


def test_an_error_of_the_network_is_no_lack_of_a_compiler() -> None:
    network, x = Blocks().eval(), torch.randn(2, 12, 16)
    regions = Regions(network, network, lambda forward: forward)
    regions(x)
    with pytest.raises(RuntimeError):
        regions(torch.randn(2, 12, 7))
    assert regions.trouble is None


class Waits(TorchFunctionMode):
    """Writes down when Python reads a number from a tensor, for which a GPU would be waited for."""

    def __init__(self, log: list[object]) -> None:
        super().__init__()
        self.log = log

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if getattr(func, "__name__", "") in ("__bool__", "__int__", "__float__", "item", "tolist", "numpy", "nonzero"):
            self.log.append("wait")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_is_under_way_before_the_one_before_it_is_awaited(precision: str) -> None:
    """The network is asked once ahead, and one flag is waited for with each answer: nothing else."""
    network = Counted()
    ours = runner(network, precision=precision)
    ours._full = ours._forward

    def batches() -> Iterator[tuple[int, Tensor]]:
        for number in range(4):
            yield number, windows(2, seed=number)

    with Waits(network.log):
        for number, _ in ours.stream(batches(), CHUNKING):
            network.log.append(f"used {number}")
    steps = [2, 2]
    for number in range(4):
        waits = ["wait"] if precision == "fp32" else ["wait"] * 2  # the second asks the flag again, which is there
        steps += [*waits, f"used {number}", *([2] if number < 2 else [])]
    assert network.log == steps


@pytest.mark.parametrize("device", EITHER)
@pytest.mark.parametrize("counts", [[2, 2, 2, 2, 1], [4, 4, 3], [1], []])
def test_a_stream_is_its_calls(counts: list[int], device: str) -> None:
    """Bit for bit: batches of pairs larger than a batch, partial ones, and the ways through recordings."""
    batches = [(number, windows(count, seed=number).to(device)) for number, count in enumerate(counts)]
    ours = runner(Counted(), device=device)
    for (number, answer), (expected, content) in zip(ours.stream(batches, CHUNKING), batches, strict=True):
        assert number == expected
        assert torch.equal(answer, Runner(Counted(), torch.device(device))(content, CHUNKING))
    assert not ours.warnings


def test_out_of_memory_under_way() -> None:
    """What does not fit beside another batch takes its turn alone; what does not fit alone shrinks."""
    batches = [(number, windows(4, seed=number)) for number in range(5)]
    for most in (4, 3, 1):

        def hungry(x: Tensor, most: int = most) -> Tensor:
            if x.shape[0] > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return x.sin()

        ours = runner(Counted(hungry), batch=4)
        for (_, answer), (_, content) in zip(ours.stream(batches, CHUNKING), batches, strict=True):
            assert torch.equal(answer, content.sin())
        assert ours.batch == {4: 4, 3: 2, 1: 1}[most]


def test_out_of_memory_on_a_cpu() -> None:
    """It says so in words only; what the failed try held is free by the next, and no other error is taken for it."""
    held: list[weakref.ref] = []

    def hungry(x: Tensor) -> Tensor:
        assert not any(one() is not None for one in held)
        answer = x.sin()
        if len(x) > 1:
            held.append(weakref.ref(answer))
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return answer

    ours = Runner(Counted(hungry), CPU, batch=4)
    assert torch.equal(ours(windows(4), CHUNKING), windows(4).sin())
    assert ours.batch == 1 and len(ours.warnings) == len(held) == 2

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        Runner(Counted(broken), CPU, batch=4)(windows(4), CHUNKING)


def test_overflow_under_way_is_mended_in_its_own_window() -> None:
    def fragile(x: Tensor) -> Tensor:
        overflown = torch.is_autocast_enabled("cpu") & (x.amax((1, 2), keepdim=True) > 100)
        return torch.where(overflown, torch.inf, x.sin())

    batches = [(number, windows(2, seed=number)) for number in range(4)]
    batches[1][1][0] *= 200
    ours = runner(Counted(fragile), precision="bf16")
    for (_, answer), (_, content) in zip(ours.stream(batches, CHUNKING), batches, strict=True):
        assert torch.equal(answer, content.sin())
    assert len(ours.warnings) == 1 and "fp32" in ours.warnings[0]


class Event:
    def __init__(self, log: list[str], number: int) -> None:
        self.log, self.number = log, number

    def synchronize(self) -> None:
        self.log.append(f"wait {self.number}")


def test_a_block_is_fetched_while_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Block:
        device = torch.device("cuda")

        def __init__(self, number: int) -> None:
            self.number = number

        def record_stream(self, stream: None) -> None:
            log.append(f"kept {self.number}")

    def made() -> Iterator[Block]:
        for number in range(3):
            log.append(f"make {number}")
            yield Block(number)

    monkeypatch.setattr(devices, "_way", lambda device, direction: None)
    monkeypatch.setattr(devices, "copied", lambda block: block.number)
    monkeypatch.setattr(devices, "mark", lambda block: Event(log, block.number))
    for number in devices.fetch(made()):
        log.append(f"use {number}")
    expected = "make 0, kept 0, make 1, kept 1, wait 0, use 0, make 2, kept 2, wait 1, use 1, wait 2, use 2"
    assert ", ".join(log) == expected


@pytest.mark.gpu
def test_copies_and_work_on_their_streams_keep_order() -> None:
    """Much slower work than copies, in the network's stream and in the current one: a missing wait would show."""

    def slow(x: Tensor) -> Tensor:
        torch.cuda._sleep(10_000_000)
        return x.sin()

    device = torch.device("cuda")
    ours = Runner(Counted(slow), device, batch=4)
    songs = [windows(4, seed=number) for number in range(8)]

    def answers() -> Iterator[Tensor]:
        batches = ((None, devices.send(song, device)) for song in songs)
        for _, answer in ours.stream(batches, CHUNKING):
            torch.cuda._sleep(10_000_000)
            yield answer + 1

    for song, answer in zip(songs, devices.fetch(answers()), strict=True):
        assert_close(answer, song.sin() + 1)


def tiny(name: str) -> nn.Module:
    """A small network of each kind, with random weights."""
    torch.manual_seed(0)
    if name == "compact":
        return compact.CompactFrameTransformer(512, ((256, 4),), (4, 4, 4, 4, 4), 2, 1, 2).eval()
    return Rows(roformer.Transformer(16, 1, lambda: roformer.Attention(16, 2, 8))).eval()


class Rows(nn.Module):
    """A transformer over `[rows, features, tokens]`."""

    def __init__(self, transformer: roformer.Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(x.mT.contiguous(), roformer.Rotation.of(x.shape[-1], 8, x))[0].mT


SHAPES = {"compact": (2, 257, 24), "roformer": (16, 24)}


@pytest.mark.parametrize("device", EITHER)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_recordings_of_networks_are_the_network(name: str, precision: str, device: str) -> None:
    """Bit for bit: the same kernels run, only started differently."""
    batches = [(number, torch.rand(2, *SHAPES[name]).to(device)) for number in range(5)]
    ours, plain = runner(tiny(name), precision=precision, device=device), Runner(
        tiny(name).to(device), torch.device(device), precision, 2
    )  # fmt: skip
    for (_, answer), (_, content) in zip(ours.stream(batches, Chunking(20, 2)), batches, strict=True):
        assert torch.equal(answer, plain(content, Chunking(20, 2)))
    assert not ours.warnings and any(ours._graphs._kinds.values())


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHAPES)
def test_compiled_blocks_are_the_network(name: str) -> None:
    """To the rounding of other orders of sums."""
    content = torch.rand(2, *SHAPES[name]).cuda()
    compiled = Runner(tiny(name).cuda(), torch.device("cuda"), batch=2, acceleration="compile")
    plain = Runner(tiny(name).cuda(), torch.device("cuda"), batch=2)
    for _ in range(3):
        assert_close(compiled(content, Chunking(20, 2)), plain(content, Chunking(20, 2)), rtol=0, atol=1e-4)
    assert not compiled.warnings
