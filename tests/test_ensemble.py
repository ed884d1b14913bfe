"""Several models, one rule: what they agree on stays, stems sum to the song, and nothing depends on how it is cut."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from voices import (
    BAND,
    OTHER,
    RATE,
    RECURRENT,
    SLOW,
    SPEC,
    WAVE,
    Gains,
    Network,
    Recurrent,
    constant,
    noise,
    separator,
    soft,
)

from vocalremover import checkpoint
from vocalremover.chunks import Chunking, Queue, tap
from vocalremover.ensemble import METHODS, Ensemble, Rule
from vocalremover.ensemble.rules import common_grid
from vocalremover.errors import AudioError, ModelError, UsageError
from vocalremover.models import ModelSpec
from vocalremover.separate import Inference, Separator
from vocalremover.spectrogram import STFT

RULES = [Rule(method, domain) for method in METHODS if method != "original" for domain in ("spec", "wave")]


def assert_sum(stems: dict[str, Tensor], song: Tensor) -> None:
    assert stems["vocals"].shape == stems["instrumental"].shape == song.shape
    assert_close(stems["vocals"] + stems["instrumental"], song, rtol=0, atol=3e-7)


# Rules


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("min", Rule("min")),
        ("avg_wave", Rule("avg", "wave")),
        ("median_wave", Rule("median", "wave")),
        ("min_wave", Rule("min", "wave")),
        ("max_wave", Rule("max", "wave")),
        ("avg_fft", Rule("avg", "spec")),
        ("median_fft", Rule("median", "spec")),
        ("min_fft", Rule("min", "spec")),
        ("max_fft", Rule("max", "spec")),
        ("uvr_max_spec", Rule("max", "spec")),
        ("uvr-min-spec", Rule("min", "spec")),
        ("Mean", Rule("avg")),
        ("original", Rule("original")),
    ],
)
def test_joint_names(words: str, rule: Rule) -> None:
    assert Rule.parse(words) == rule == Rule.parse(rule.name)


@pytest.mark.parametrize(
    ("words", "domain", "weights"),
    [
        ("", None, None),
        ("uvr", None, None),
        ("best", None, None),
        ("min_mel", None, None),
        ("min_fft_wave", None, None),
        ("min_fft", "wave", None),
        ("min", "time", None),
        ("min", None, (1, 1)),
        ("avg", None, (0, 0)),
        ("avg", None, ()),
        ("avg", None, (1, -1)),
        ("avg", None, (1, float("nan"))),
        ("original", "wave", None),
    ],
)
def test_rules_that_are_none(words: str, domain: str | None, weights: tuple[float, ...] | None) -> None:
    with pytest.raises(UsageError):
        Rule.parse(words, domain, weights)


def test_a_domain_may_be_said_beside_the_method() -> None:
    assert Rule.parse("min", "fft") == Rule("min", "spec")
    assert Rule.parse("avg", "wave", [2, 1]) == Rule("avg", "wave", (2.0, 1.0))
    with pytest.raises(UsageError, match="2 models and 3 weights"):
        Ensemble([separator(constant(0))] * 2, Rule("avg", weights=(1, 1, 1)))


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5), st.complex_numbers(min_magnitude=0.1, max_magnitude=9)
)
@settings(deadline=None)
def test_of_multiples_the_factors_count(masks: list[float], number: complex) -> None:
    """A rule of masks and the same rule of what the masks leave are one, up to the rounding of a product."""
    factors = torch.tensor(masks)
    bins = factors * torch.tensor(number, dtype=torch.complex64)
    for method in METHODS:
        combined = Rule(method).combine(factors)
        assert min(masks) - 1e-6 <= combined <= max(masks) + 1e-6
        assert_close(Rule(method).combine(bins), combined * number, rtol=1e-5, atol=1e-5)


def test_a_combination_is_numpys() -> None:
    """Medians and weighted means of numbers of either sign; the smallest and largest magnitude keep their sign."""
    numbers = noise(4, 1000)
    array = numbers.numpy()
    assert_close(Rule("median").combine(numbers).numpy(), np.median(array, axis=0), rtol=0, atol=1e-7)
    mean = np.average(array, axis=0, weights=(1, 2, 0, 5))
    assert_close(Rule("avg", weights=(1, 2, 0, 5)).combine(numbers).double().numpy(), mean, rtol=0, atol=1e-7)
    columns = np.arange(1000)
    assert np.array_equal(Rule("min").combine(numbers), array[np.abs(array).argmin(0), columns])
    assert np.array_equal(Rule("max").combine(numbers), array[np.abs(array).argmax(0), columns])


@pytest.mark.parametrize(("rate", "n_fft"), [(44100, 2048), (48000, 2048), (96000, 4096), (192000, 8192), (8000, 512)])
def test_the_common_grid_lasts_as_long_at_every_rate(rate: int, n_fft: int) -> None:
    assert common_grid(rate) == STFT(n_fft, n_fft // 2)


# Laws


@given(
    samples=st.one_of(st.sampled_from([0, 1, 100]), st.integers(0, 9000)),
    channels=st.integers(1, 3),
    rule=st.sampled_from([*RULES, Rule("avg", weights=(1, 0, 2))]),
    specs=st.sampled_from(
        [(SPEC, SPEC, SPEC), (SPEC, OTHER, SPEC), (OTHER, SLOW, replace(SPEC, target="instrumental"))]
    ),
)
@settings(deadline=None, max_examples=30)
def test_stems_sum_to_the_song(samples: int, channels: int, rule: Rule, specs: tuple[ModelSpec, ...]) -> None:
    song = noise(channels, samples)
    voices = [separator(soft(slope), spec) for slope, spec in zip((3, -5, 1), specs, strict=True)]
    assert_sum(Ensemble(voices, rule).separate(song, RATE), song)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("others", [[], [SPEC], [replace(SPEC, chunking=Chunking(7, 3))]])
def test_equal_models_say_what_one_says(rule: Rule, others: list[ModelSpec]) -> None:
    song = noise(2, 7001)
    alone = separator(soft(4)).separate(song, RATE)
    together = Ensemble([separator(soft(4), spec) for spec in [SPEC, *others]], rule)
    assert_close(together.separate(song, RATE), alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_models_of_different_grids_that_agree(rule: Rule) -> None:
    """Half of every song, whatever the family, the grid and the rule."""
    voices = [separator(constant(0.5)), separator(constant(0.5), OTHER), separator(Gains(0.5), WAVE)]
    song = noise(2, 9000)
    assert_close(Ensemble(voices, rule).separate(song, RATE)["vocals"], song / 2, rtol=0, atol=3e-6)


@pytest.mark.parametrize("rule", [*RULES, Rule("original")], ids=lambda rule: rule.name)
@pytest.mark.parametrize("specs", [(SPEC, SPEC), (SPEC, SLOW), (replace(SPEC, peak=True), replace(OTHER, peak=True))])
def test_silence_stays_silent(rule: Rule, specs: tuple[ModelSpec, ...]) -> None:
    stems = Ensemble([separator(soft(4), spec) for spec in specs], rule).separate(torch.zeros(2, 5000), RATE)
    assert not stems["vocals"].any() and not stems["instrumental"].any()


@pytest.mark.parametrize(("method", "masks", "vocals"), [
    ("min", (0.1, 0.7, 0.4), 0.7),
    ("max", (0.1, 0.7, 0.4), 0.1),
    ("median", (0.1, 0.7, 0.5), 0.5),
    ("avg", (0.1, 0.7, 0.4), 0.4),
])  # fmt: skip
@pytest.mark.parametrize("specs", [(SPEC,) * 3, (SPEC, OTHER, SLOW), (OTHER, SPEC, OTHER)])
@pytest.mark.parametrize("domain", ["spec", "wave"])
def test_the_rule_is_one_of_instrumentals(
    method: str, masks: tuple[float, ...], vocals: float, specs: tuple[ModelSpec, ...], domain: str
) -> None:
    """Of constant masks the smallest instrumental is what the model with the most vocals leaves, in both domains."""
    song = 0.3 * torch.sin(2 * torch.pi * 440 / RATE * torch.arange(9000)).expand(2, -1)
    voices = [separator(constant(mask), spec) for mask, spec in zip(masks, specs, strict=True)]
    stems = Ensemble(voices, Rule(method, domain)).separate(song, RATE)
    inner = slice(800, -800)  # the resampler of the slow model rings at the ends
    assert_close(stems["vocals"][:, inner], vocals * song[:, inner], rtol=0, atol=1e-4)


def test_one_grid_is_the_rule_of_masks() -> None:
    """What is combined is masks: exactly the smallest instrumental's, whichever stem a network's mask keeps."""
    song = noise(2, 6000)
    slopes = (2.0, -3.0)
    inverse = replace(SPEC, target="instrumental")
    voices = [separator(soft(slopes[0])), separator(soft(slopes[1]), inverse)]

    def loudest_vocals(x: Tensor) -> Tensor:
        first, second = (torch.sigmoid(slope * (x - 0.5)) for slope in slopes)
        return torch.maximum(first, 1 - second)

    assert_close(
        Ensemble(voices).separate(song, RATE),
        separator(Network(loudest_vocals)).separate(song, RATE),
        rtol=0,
        atol=2e-6,
    )


def test_weights() -> None:
    song = noise(2, 6000)
    voices = [separator(constant(1.0)), separator(constant(0.0)), separator(constant(0.0), OTHER)]
    for weights, share in [((1, 1, 2), 0.25), ((3, 1, 0), 0.75), ((0, 1, 1), 0.0)]:
        vocals = Ensemble(voices, Rule("avg", weights=weights)).separate(song, RATE)["vocals"]
        assert_close(vocals, share * song, rtol=0, atol=2e-6)


def test_each_network_runs_once() -> None:
    """Even one that is there with others of its grid and of another."""
    networks = [soft(1), soft(2), soft(3)]
    song = noise(2, 128 * 24 * 5 - 1)
    Ensemble([separator(n, s) for n, s in zip(networks, (SPEC, SPEC, OTHER), strict=True)]).separate(song, RATE)
    assert [network.windows for network in networks] == [5, 5, 3]


@given(data=st.data(), samples=st.integers(1, 6000), batch=st.integers(1, 5))
@settings(deadline=None, max_examples=10)
def test_blocks_and_batches_change_nothing(data: st.DataObject, samples: int, batch: int) -> None:
    song = noise(2, samples)
    sizes = data.draw(st.lists(st.integers(50, 5000), min_size=1, max_size=4))
    blocks = [block for part in song.split(sum(sizes), dim=-1) for block in part.split(max(sizes), dim=-1)]
    whole = Ensemble([separator(soft(2)), separator(soft(-2), OTHER)]).separate(song, RATE)
    cut = Ensemble([separator(soft(2), batch=batch), separator(soft(-2), OTHER, batch=batch)])
    streamed = list(cut.stream(blocks, RATE))
    for stem, audio in whole.items():
        assert_close(torch.cat([block[stem] for block in streamed], dim=-1), audio, rtol=0, atol=1e-6)


def test_a_recurrent_model_takes_part() -> None:
    song = noise(2, 9000)
    alone = separator(Recurrent(), RECURRENT).separate(song, RATE)
    assert_close(Ensemble([separator(Recurrent(), RECURRENT)] * 2).separate(song, RATE), alone, rtol=0, atol=2e-6)
    mixed = Ensemble([separator(Recurrent(), RECURRENT), separator(constant(1.0)), separator(constant(0.0), OTHER)])
    assert_close(mixed.separate(song, RATE)["vocals"], song, rtol=0, atol=3e-6)


def test_the_peak_of_every_grid_in_one_pass() -> None:
    """Blocks that can be read once only; each grid has its own largest magnitude, as its models alone have it."""
    song = noise(2, 40000)
    specs = [replace(spec, peak=True) for spec in (SPEC, OTHER, SLOW, SPEC)]
    ensemble = Ensemble([separator(soft(3), spec) for spec in specs], Rule("median", "wave"))
    assert ensemble.measures
    peaks = ensemble.peak(iter(song.split(999, dim=-1)), RATE)
    expected = [separator(soft(3), spec).peak([song], RATE) for spec in specs]
    assert peaks == pytest.approx(expected, rel=1e-6)
    assert len({round(peak, 3) for peak in expected}) == 3
    assert Ensemble([separator(soft(3))]).peak(iter(()), RATE) is None
    plain = Ensemble([separator(soft(3)), separator(soft(3), specs[0])], Rule("max", "wave"))
    assert plain.peak([song], RATE) == pytest.approx((None, expected[0]))  # who needs none would divide by it
    with pytest.raises(UsageError, match="peak"):
        ensemble.stream([song], RATE)


def test_a_song_of_one_block_is_measured_in_pieces() -> None:
    wide = []

    class Heard(Separator):
        def levels(self, blocks: Iterable[Tensor], rate: int) -> Iterator[Tensor]:
            return super().levels(tap(blocks, wide), rate)

    class Widths(list):
        def push(self, block: Tensor) -> None:
            self.append(block.shape[-1])

    wide = Widths()
    voices = [Heard(replace(spec, peak=True), soft(3)) for spec in (SPEC, OTHER)]
    song = noise(2, 300_000).requires_grad_()
    stems = Ensemble(voices).separate(song, RATE)
    assert len(wide) == 2 * 5 and max(wide) == 1 << 16
    assert not any(stem.requires_grad for stem in stems.values())


@pytest.mark.parametrize("rule", [Rule("min"), Rule("median"), Rule("avg", "wave"), Rule("original")])
def test_little_is_held(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the song, the stems follow a few windows behind, no model runs ahead, and nothing piles up."""
    asked = given_back = 0
    queues: list[Queue] = []
    make = Queue.__init__
    monkeypatch.setattr(Queue, "__init__", lambda queue: (make(queue), queues.append(queue))[0])

    def blocks() -> Iterator[Tensor]:
        nonlocal asked
        for _ in range(250):
            asked += 1000
            yield torch.zeros(2, 1000)

    wide = replace(SLOW, chunking=Chunking(300, context=20))
    voices = [separator(soft(1), wide), separator(soft(2)), separator(soft(3), OTHER), separator(Gains(0.5), WAVE)]
    # The widest window and the core after it, what the resampler holds, frames of the common grid and a block.
    most = (340 + 300) * 64 * RATE // 5512 + 4 * 4096 + 2 * 512 + 1000
    for stems in Ensemble(voices, rule).stream(blocks(), RATE):
        given_back += stems["vocals"].shape[-1]
        assert asked - given_back <= most
        assert max(queue.held for queue in queues) <= most
    assert given_back == asked


def test_the_callers_song_is_left_alone() -> None:
    song = noise(2, 5000)
    before = song.clone()
    for voices in ([SPEC, SPEC], [SPEC, OTHER]):
        for stems in Ensemble([separator(constant(0.0), spec) for spec in voices]).stream([song], RATE):
            for audio in stems.values():
                audio.mul_(0)
        assert torch.equal(song, before)


@pytest.mark.parametrize("specs", [(SPEC, SPEC), (SPEC, OTHER)])
def test_not_finite_song(specs: tuple[ModelSpec, ...]) -> None:
    song = noise(2, 5000)
    song[1, 4321] = float("nan")
    with pytest.raises(AudioError, match="not finite"):
        Ensemble([separator(constant(1.0), spec) for spec in specs]).separate(song, RATE)


def test_warnings_are_told_once_and_name_the_model() -> None:
    voices = [separator(soft(1)), separator(soft(1), OTHER)]
    ensemble = Ensemble(voices)
    voices[1].warnings.append("second")
    assert ensemble.warnings == ["other: second"]
    voices[0].warnings.append("first")
    assert ensemble.warnings == ["other: second", "toy: first"] == ensemble.warnings
    assert Ensemble([voices[0]] * 2).warnings == ["toy: first"]


# Stems of several models


def test_common_stems() -> None:
    song = noise(2, 4000)
    band, second = separator(Gains(0.1, 0.2, 0.3, 0.4), BAND), separator(Gains(0.5, 0.2, 0.3, 0.2), BAND)
    with_vocals = Ensemble([band, separator(constant(0.3))])
    assert with_vocals.stems == ("vocals", "instrumental")
    stems = with_vocals.separate(song, RATE)
    assert_close(stems["vocals"], 0.4 * song, rtol=0, atol=2e-6)
    assert_sum(stems, song)

    both = Ensemble([band, second])
    assert both.stems == ("drums", "bass", "other", "vocals", "instrumental")
    stems = both.separate(song, RATE)
    assert_sum(stems, song)
    for stem, share in {"drums": 0.5, "bass": 0.2, "vocals": 0.4, "instrumental": 0.6}.items():
        assert_close(stems[stem], share * song, rtol=0, atol=2e-6)  # the rest is the smallest: the stem the largest
    assert set(Ensemble([band, second], stems=["bass"]).separate(song, RATE)) == {"bass"}
    assert set(Ensemble([band, separator(constant(0))], stems=["instrumental"]).separate(song, RATE)) == {
        "instrumental"
    }


def test_models_of_one_other_stem() -> None:
    """The drums of two models: what they leave is the rule's, whatever it is called."""
    song = noise(2, 4000)
    drums = replace(WAVE, target="drums")
    ensemble = Ensemble([separator(Gains(0.1), drums), separator(Gains(0.5), drums)])
    stems = ensemble.separate(song, RATE)
    assert tuple(stems) == ensemble.stems == ("drums", "no_drums")
    assert_close(stems["no_drums"], 0.5 * song, rtol=0, atol=2e-6)
    assert_close(stems["drums"] + stems["no_drums"], song, rtol=0, atol=3e-7)


def test_stems_that_are_not_common() -> None:
    drums = separator(Gains(0.5), replace(WAVE, name="drummer", target="drums"))
    with pytest.raises(UsageError, match=r"no stem in common \(drummer: drums, no_drums; toy"):
        Ensemble([drums, separator(constant(1.0))])
    with pytest.raises(UsageError, match="but no bass"):
        Ensemble([separator(Gains(1, 1, 1, 1), BAND), separator(constant(1.0))], stems=["bass"])
    with pytest.raises(UsageError, match="at least one"):
        Ensemble([])


# The original


class WithoutNyquist(nn.Module):
    """The original gives the bin that its networks do not see to the vocals, ours keep it in the instrumental."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, magnitudes: Tensor) -> Tensor:
        return F.pad(self.network(magnitudes)[:, :, :-1], (0, 0, 0, 1))


@pytest.mark.parametrize("name", ["inference_ensemble_v10a_v10b", "inference_ensemble_v8_v10"])
def test_the_original_ensemble(name: str) -> None:
    """From samples to samples, as far as the original gives any; and without its slip the stems are a whole."""
    path = Path(__file__).parent / "fixtures" / f"{name}.json"
    fixture = json.loads(path.read_text())
    case, arrays = fixture["case"], np.load(path.with_suffix(".npz"))
    size, context = case["cropsize"], case["padding"]
    spec = ModelSpec(
        "v",
        "v",
        {},
        stft=STFT(case["n_fft"], case["hop"]),
        rate=case["sr"],
        chunking=Chunking(size, context, multiple=size),
    )
    voices, loose = [], 1e-4
    for family, ctor, seed in case["models"]:
        network = parity.build(parity.FAMILIES[family], ctor, seed, fixture["gain"])
        voices.append(separator(WithoutNyquist(network), spec))
        loose = max(loose, (parity.FAMILIES[family].tolerance or 0) / 4)
    song = parity.signal(case)
    with torch.inference_mode():
        stems = Ensemble(voices, Rule("original")).separate(song, case["sr"])
        whole = Ensemble(voices).separate(song, case["sr"])
    for stem, key in {"instrumental": "y_wav", "vocals": "v_wav"}.items():
        start, stop, step = fixture["outputs"][key]["slices"][1]
        kept = slice(start, stop - case["hop"], step)  # the original's last frame knows nothing of the end
        ours = stems[stem][:, kept]
        stored = torch.from_numpy(arrays[key])[:, : ours.shape[-1]]
        assert_close(ours, stored, rtol=0, atol=loose * stored.abs().max().item())
    assert_close(stems["instrumental"], whole["instrumental"], rtol=0, atol=1e-6)
    assert_sum(whole, song)
    assert (stems["vocals"] + stems["instrumental"] - song).abs().max() > 0.01


# Loading


def test_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and paths mixed; one that is named twice is loaded once; a setting that a family lacks is left out."""
    loaded = []

    def load(name: str, device: torch.device, config: Path | None = None) -> tuple[ModelSpec, nn.Module]:
        loaded.append((name, config))
        return {"r": (RECURRENT, Recurrent())}.get(name, (replace(SPEC, name=str(name)), constant(0.5)))

    monkeypatch.setattr(checkpoint, "load", load)
    monkeypatch.setattr(checkpoint, "find", Path)
    monkeypatch.setattr(checkpoint, "sha256", lambda path: f"that of {path}")
    ensemble = Ensemble.load(
        ["a", "r", Path("b.pt"), "a"], "cpu", "avg_wave", Inference(context=7), [None, None, Path("b.yaml"), None]
    )
    assert loaded == [("a", None), ("r", None), (Path("b.pt"), Path("b.yaml"))]
    assert [voice.spec.name for voice in ensemble.separators] == ["a", "recurrent", "b.pt", "a"]
    assert [voice.chunking.context for voice in ensemble.separators] == [7, 0, 7, 7]
    assert len(ensemble.warnings) == 1 and "recurrent has no context" in ensemble.warnings[0]
    described = json.loads(json.dumps(ensemble.describe()))
    assert described["model"] == "a+recurrent+b.pt+a" and described["rule"]["domain"] == "wave"
    with pytest.raises(UsageError, match="2 models and 1 configs"):
        Ensemble.load(["a", "b"], "cpu", configs=[None])
    with pytest.raises(UsageError, match="no ensemble rule"):
        Ensemble.load(["a", "b"], "cpu", "best")


def test_a_missing_model_is_named() -> None:
    with pytest.raises(ModelError, match=r"nowhere\.ckpt"):
        Ensemble.load(["default", "nowhere.ckpt"], "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("rule", [*RULES, Rule("original")], ids=lambda rule: rule.name)
def test_gpu_gives_what_the_cpu_gives(rule: Rule) -> None:
    def voices(device: str) -> list[Separator]:
        models = [(soft(2), SPEC), (soft(-3), replace(SPEC, peak=True)), (soft(1), OTHER), (Gains(0.6), WAVE)]
        return [Separator(spec, network, device, Inference("fp32")) for network, spec in models]

    song = noise(2, 100_000)
    expected = Ensemble(voices("cpu"), rule).separate(song, RATE)
    # Where two models are equally loud, rounding chooses between them, and either choice is right.
    assert_close(Ensemble(voices("cuda"), rule).separate(song, RATE), expected, rtol=0, atol=1e-4)


def test_a_model_without_weight_asks_for_no_peak() -> None:
    song = noise(2, 5000)
    voices = [separator(soft(2), replace(SPEC, peak=True)), separator(soft(3))]
    for weights, measures in [((1, 0), True), ((0, 1), False)]:
        ensemble = Ensemble(voices, Rule("avg", weights=weights))
        assert ensemble.measures is measures
        heard = voices[weights.index(1)].separate(song, RATE)
        assert_close(ensemble.separate(song, RATE)["vocals"], heard["vocals"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("stem", ["vocals", "instrumental"])
def test_one_model_gives_the_stems_that_are_asked_for(stem: str) -> None:
    song, voice = noise(2, 5000), separator(soft(2))
    stems = Ensemble([voice], stems=[stem]).separate(song, RATE)
    assert list(stems) == [stem]
    assert torch.equal(stems[stem], voice.separate(song, RATE)[stem])
