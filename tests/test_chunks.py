"""What is cut and blended again is what it was, whatever the numbers; a change per window leaves no seam."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from vocalremover.chunks import (
    Chunking,
    Queue,
    Window,
    blend,
    cut,
    group,
    join,
    overlapped,
    plan,
    split,
    trapezoid,
    weight,
)
from vocalremover.errors import UsageError

ROUNDING = 1e-5  # some hundred windows may reach one place, each with a product and a sum

lengths = st.one_of(st.sampled_from([0, 1, 100]), st.integers(0, 700), st.integers(5_000, 20_000))
block_sizes = st.one_of(st.integers(1, 50), st.integers(1000, 100_000))


@st.composite
def chunkings(draw: st.DrawFn, total: int = 700) -> Chunking:
    smallest = 1 + total // 500  # no more than some hundred windows
    multiple = draw(st.integers(1, 40))
    size = -(-draw(st.integers(smallest, 200 + smallest)) // multiple) * multiple
    context = draw(st.integers(0, 150))
    fade, flat = draw(
        st.sampled_from([(0, 0), (context, 0), (context // 2, 0), (context // 3, context // 2), (0, context)])
    )
    return Chunking(size, context, fade, multiple, flat)


def ramp(total: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`[2, total]`, every number different from all others and none of them zero."""
    return torch.arange(1, 2 * total + 1, dtype=dtype).reshape(2, total)


def identity(contents: Tensor) -> Tensor:
    return contents


def run(
    signal: Tensor, chunking: Chunking, block: int = 64, batch: int = 1, network: Callable[[Tensor], Tensor] = identity
) -> Tensor:
    """Cut, batch, do something to each batch, blend."""
    windows = (
        pair
        for places, contents in group(cut(signal.split(block, dim=-1), chunking), batch)
        for pair in zip(places, network(contents), strict=True)
    )
    return torch.cat([signal[..., :0], *blend(windows, chunking)], dim=-1)


@given(data=st.data(), total=lengths, block=block_sizes, batch=st.integers(1, 9))
@settings(deadline=None, max_examples=100)
def test_identity_returns_its_input(data: st.DataObject, total: int, block: int, batch: int) -> None:
    chunking = data.draw(chunkings(total))
    signal = ramp(total)
    if chunking.reach:
        # one product, one sum and one quotient for every window that reaches a place
        assert_close(run(signal, chunking, block, batch), signal, rtol=ROUNDING, atol=0)
    else:
        assert torch.equal(run(signal, chunking, block, batch), signal)


def test_identity_over_hours() -> None:
    """Two hours of frames (44.1 kHz, hop 1024), hard crop and overlap-add."""
    signal = ramp(310_078)[:1]
    assert torch.equal(run(signal, Chunking(1024, 256), block=64), signal)
    assert_close(run(signal, Chunking(1024, 256, fade=256), block=64, batch=4), signal, rtol=1e-6, atol=0)


@given(data=st.data(), total=lengths, batch=st.integers(1, 9))
@settings(deadline=None, max_examples=100)
def test_constant_has_no_seam(data: st.DataObject, total: int, batch: int) -> None:
    chunking = data.draw(chunkings(total))
    answer = run(ramp(total), chunking, batch=batch, network=lambda x: torch.full_like(x, 0.3))
    assert_close(answer, torch.full((2, total), 0.3), rtol=ROUNDING, atol=0)


@given(fade=st.integers(1, 100), more=st.integers(0, 60), total=st.integers(2, 2000), batch=st.integers(1, 9))
@settings(deadline=None, max_examples=150)
def test_alternating_windows_join_without_a_step(fade: int, more: int, total: int, batch: int) -> None:
    """+1 and -1 in turn: no two neighbours differ by more than the slope of the fade, at any batch size."""
    chunking = Chunking(size=2 * fade + more, context=fade + more // 2, fade=fade)
    answers = 0

    def alternating(contents: Tensor) -> Tensor:
        nonlocal answers
        signs = torch.tensor([(-1.0) ** (answers + number) for number in range(len(contents))])
        answers += len(contents)
        return torch.ones_like(contents) * signs[:, None, None]

    joined = run(ramp(total), chunking, batch=batch, network=alternating)
    assert joined.abs().max() <= 1 + 1e-6
    assert joined.diff(dim=-1).abs().max() <= 2 / (fade + 1) + 1e-5  # from +1 to -1 over a ramp of fade + 1 steps
    assert_close(joined[:, 0], torch.ones(2))


@given(data=st.data(), total=st.integers(0, 700), block=st.integers(1, 200), batch=st.integers(1, 5))
@settings(deadline=None, max_examples=150)
def test_streaming_is_the_whole(data: st.DataObject, total: int, block: int, batch: int) -> None:
    """The same windows, bit for bit, as from one slice of the padded signal each, and in the same places as planned."""
    chunking = data.draw(chunkings())
    signal, c = ramp(total), chunking.context
    padded = torch.nn.functional.pad(signal, (c, c + chunking.size))
    windows = list(cut(signal.split(block, dim=-1), chunking))
    assert [window for window, _ in windows] == plan(total, chunking)
    for window, content in windows:
        assert torch.equal(content, padded[..., window.start : window.start + window.padded + 2 * c])

    def reversing(contents: Tensor) -> Tensor:
        return contents.flip(-1)

    streamed = run(signal, chunking, block, batch, reversing)
    assert_close(streamed, run(signal, chunking, max(total, 1), 1, reversing), rtol=ROUNDING, atol=1e-5)


@given(data=st.data(), total=st.integers(1, 3000))
@settings(deadline=None, max_examples=100)
def test_cores_tile_the_axis(data: st.DataObject, total: int) -> None:
    chunking = data.draw(chunkings(total))
    windows = plan(total, chunking)
    assert windows[0].start == 0 and windows[-1].stop == total
    assert all(left.stop == right.start for left, right in pairwise(windows))
    assert all(window.size == window.padded == chunking.size for window in windows[:-1])
    assert 0 <= windows[-1].padded - windows[-1].size < chunking.multiple
    assert windows[-1].padded % chunking.multiple == 0


@given(data=st.data(), total=st.integers(1, 700))
@settings(deadline=None, max_examples=50)
def test_weight(data: st.DataObject, total: int) -> None:
    chunking = data.draw(chunkings())
    for window in plan(total, chunking):
        weights = weight(window, chunking, torch.float64)
        core = slice(chunking.context, chunking.context + window.size)
        assert weights.shape == (window.padded + 2 * chunking.context,)
        assert (weights[core] == 1).all() and (weights >= 0).all()
        assert (weights > 0).sum() == window.size + 2 * chunking.reach
        assert (weights == 1).sum() == window.size + 2 * chunking.flat
        assert_close(weights.diff().abs().max().item() * (chunking.fade + 1), 1.0) if chunking.fade else None


def test_original_crops() -> None:
    """Crop i is frames [i * size - context, (i + 1) * size + context), the last one filled up with zeros."""
    windows = list(cut([ramp(130)], Chunking(size=50, context=25, multiple=50)))
    assert [content.shape[-1] for _, content in windows] == [100, 100, 100]
    assert torch.equal(windows[1][1], ramp(130)[:, 25:125])
    assert windows[2][0] == Window(100, 30, 50)
    assert torch.equal(windows[2][1], torch.nn.functional.pad(ramp(130)[:, 75:], (0, 45)))


def test_little_is_held() -> None:
    """A window comes as soon as its context has, and goes as soon as its core is done."""
    chunking, asked = Chunking(100, 20, 20), 0

    def blocks() -> Iterator[Tensor]:
        nonlocal asked
        for _ in range(500):
            asked += 10
            yield torch.ones(1, 10)

    given_back = 0
    for block in blend(cut(blocks(), chunking), chunking):
        given_back += block.shape[-1]
        assert asked - given_back <= 2 * chunking.context + 10 and block.shape[-1] <= 120
    assert given_back == 5000


@given(batch=st.integers(1, 6), total=st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_only_equal_windows_are_batched(batch: int, total: int) -> None:
    groups = list(group(cut([ramp(total)], Chunking(64, 8)), batch))
    assert [window for windows, _ in groups for window in windows] == plan(total, Chunking(64, 8))
    for windows, contents in groups:
        assert len(windows) == contents.shape[0] <= batch
        assert {window.padded + 16 for window in windows} == {contents.shape[-1]}


@given(core=st.integers(1, 30), context=st.integers(0, 20), multiple=st.integers(1, 4))
def test_halves_keep_their_context(core: int, context: int, multiple: int) -> None:
    chunking = Chunking(1000 * multiple, context, multiple=multiple)
    content = ramp(core * multiple + 2 * context)
    halves = split(content, chunking)
    if core == 1:
        assert halves is None
        return
    cores = [half.shape[-1] - 2 * context for half in halves]
    assert sum(cores) == core * multiple and all(part > 0 and part % multiple == 0 for part in cores)
    assert abs(cores[0] - cores[1]) <= multiple
    assert torch.equal(join(*halves, chunking), content)


def test_queue_keeps_order() -> None:
    queue = Queue()
    for block in ramp(100).split(7, dim=-1):
        queue.push(block)
    assert torch.equal(queue.peek(30), ramp(100)[:, :30]) and queue.held == 100
    assert torch.equal(torch.cat(queue.take(33), dim=-1), ramp(100)[:, :33]) and queue.held == 67
    assert torch.equal(torch.cat(queue.take(1000), dim=-1), ramp(100)[:, 33:]) and queue.held == 0
    assert queue.take(1) == []


def test_queue_gives_one_piece() -> None:
    """Copied only where it lies in several blocks."""
    queue, blocks = Queue(), ramp(100).split(40, dim=-1)
    for block in blocks:
        queue.push(block)
    assert queue.piece(30).data_ptr() == blocks[0].data_ptr() and queue.held == 70
    assert torch.equal(queue.piece(60), ramp(100)[:, 30:90])
    assert torch.equal(queue.piece(1000), ramp(100)[:, 90:]) and queue.held == 0


def test_windows_lie_in_memory_as_the_blocks_do() -> None:
    # An STFT's blocks have the bins of a frame side by side; turning windows round took as long as their FFT.
    whole = torch.rand(2, 60, 9).mT
    windows = [content for _, content in cut(whole.split(7, dim=-1), Chunking(size=16, context=4))]
    assert all(content.stride(-2) == 1 for content in windows[:-1])
    padded = torch.nn.functional.pad(whole, (4, 4))
    for number, content in enumerate(windows[:-1]):
        assert torch.equal(content, padded[..., 16 * number : 16 * number + 24])


@given(more=st.integers(0, 60), context=st.integers(1, 20), data=st.data())
def test_halves_are_crossed_over_without_a_step(more: int, context: int, data: st.DataObject) -> None:
    """0 in the left half and 1 in the right: no step is larger than the fade's, and both cores keep their far ends."""
    fade = data.draw(st.integers(1, context))
    chunking, core = Chunking(1000, context, fade), 2 * fade + more
    left, right = split(torch.zeros(core + 2 * context), chunking)
    joined = join(left, right + 1, chunking)
    assert joined.shape == (core + 2 * context,) and joined.diff().min() >= 0
    assert joined.diff().max() <= 1 / (fade + 1) + 1e-6
    assert not joined[:context].any() and (joined[-context:] == 1).all()


@given(whole=st.integers(100, 5000), fraction=st.floats(0, 0.95), multiple=st.integers(1, 4), equal=st.booleans())
def test_overlap_keeps_the_window(whole: int, fraction: float, multiple: int, equal: bool) -> None:
    hard = Chunking(whole * multiple, multiple=whole * multiple if equal else multiple)
    other = overlapped(hard, fraction)
    assert 0 <= hard.whole - other.whole <= 1 and other.equal == hard.equal and not other.reach
    assert abs(other.size - (1 - fraction) * hard.whole) <= 2 + multiple * (not equal)
    faded = trapezoid(whole, fraction)
    assert (faded.whole, overlapped(faded, fraction).whole) == (whole, whole)
    assert abs(faded.size - (1 - fraction) * whole) <= 2 and faded.reach <= faded.context
    if faded.reach:
        assert overlapped(faded, fraction) == faded and abs(faded.overlap - fraction) * whole <= 2


@pytest.mark.parametrize(("whole", "parts"), [(4096, 2), (4000, 4), (352800, 2), (352800, 8)])
def test_the_weights_of_the_reference(whole: int, parts: int) -> None:
    """MSST's window, written out: ones with linspace(0, 1, fade) at the start and its mirror image at the end."""
    expected = torch.ones(whole)
    expected[: whole // 10] = torch.linspace(0, 1, whole // 10)
    expected[-(whole // 10) :] = torch.linspace(1, 0, whole // 10)
    chunking = trapezoid(whole, 1 - 1 / parts)
    assert chunking.size == whole // parts
    assert_close(weight(Window(0, chunking.size, chunking.size), chunking), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fraction", [-0.01, 0.951, float("nan")])
def test_no_overlap_at_all(fraction: float) -> None:
    for cut_so in (lambda: overlapped(Chunking(100), fraction), lambda: trapezoid(100, fraction)):
        with pytest.raises(UsageError, match="share of a window"):
            cut_so()


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": 8, "context": -1},
        {"size": 8, "context": 2, "fade": 3},
        {"size": 8, "multiple": 3},
        {"size": 8, "context": 4, "fade": 3, "flat": 2},
        {"size": 8, "context": 2, "flat": -1},
    ],
)
def test_numbers_that_cannot_cut(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Chunking(**wrong)
