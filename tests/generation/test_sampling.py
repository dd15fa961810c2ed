"""The sampling chain: each step, then all of it, against plain versions of their definitions."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rwkv_core import OptionError, RWKVError, Sampling
from rwkv_core.generation import sampling_filters as steps
from rwkv_core.generation.sampling import TokenCounts, sample

# Few distinct values among many tokens: ties are common.
LOGITS = st.one_of(
    arrays.arrays(np.float64, st.integers(1, 300), elements=st.sampled_from([-2.0, 0.0, 1.0, 3.0])),
    arrays.arrays(np.float64, st.integers(1, 300), elements=st.floats(-30, 30)),
    st.integers(0, 99).map(lambda seed: np.random.default_rng(seed).normal(0, 3, 1500)),
    st.integers(0, 9).map(lambda seed: np.random.default_rng(seed).normal(0, 0.1, 1500)),
)
FRACTION = st.floats(0.001, 0.9999)


def scaled(logits: np.ndarray) -> np.ndarray:
    return logits - logits.max()


def surprise_key(logits: np.ndarray) -> np.ndarray:
    """Return each token's distance of surprise from the entropy, in units of 2**-52."""
    logs, weights = np.maximum(logits, -745), np.exp(logits)
    away = np.abs(logs - (weights * logs).sum() / weights.sum())
    return np.floor(away * 2.0**52)


def plain_mass(key: np.ndarray, weights: np.ndarray, mass: float) -> list[int]:
    """The first tokens by key, then by number, until they have `mass` of the weights together."""
    ranked = np.lexsort((np.arange(len(key)), key))
    reached = np.cumsum(weights[ranked])
    return sorted(ranked[: np.searchsorted(reached, mass * reached[-1]) + 1].tolist())


def kept(weights: np.ndarray) -> list[int]:
    return np.flatnonzero(weights).tolist()


@given(logits=LOGITS, mass=FRACTION)
def test_top_p_keeps_what_sorting_everything_keeps(logits: np.ndarray, mass: float) -> None:
    weights = np.exp(scaled(logits))
    assert kept(steps.top_p(weights, mass)) == plain_mass(-weights, weights, mass)


@given(logits=LOGITS, mass=FRACTION)
def test_typical_keeps_what_sorting_everything_keeps(logits: np.ndarray, mass: float) -> None:
    logits = scaled(logits)
    weights = np.exp(logits)
    expected = plain_mass(surprise_key(logits), weights, mass)
    assert kept(steps.typical(logits, weights, mass)) == expected


@given(logits=LOGITS, k=st.integers(1, 400))
def test_top_k_keeps_what_sorting_everything_keeps(logits: np.ndarray, k: int) -> None:
    k = min(k, len(logits))
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    assert steps.top_k(logits, k).tolist() == sorted(ranked[:k])


@given(logits=LOGITS, fraction=FRACTION)
def test_min_p_keeps_tokens_by_their_share_of_the_likeliest(
    logits: np.ndarray, fraction: float
) -> None:
    weights = np.exp(scaled(logits))
    left = steps.min_p(weights, fraction) > 0
    assert left[weights > fraction * (1 + 1e-9)].all()
    assert not left[weights < fraction * (1 - 1e-9)].any()


@given(logits=LOGITS, mass=FRACTION, fraction=FRACTION)
def test_filters_compose_and_leave_weights_of_kept_tokens_alone(
    logits: np.ndarray, mass: float, fraction: float
) -> None:
    logits = scaled(logits)
    weights = np.exp(logits)
    before = weights.copy()
    left = steps.min_p(steps.top_p(steps.typical(logits, weights, mass), mass), fraction)
    assert kept(left)
    assert np.array_equal(left[kept(left)], weights[kept(left)])
    assert np.array_equal(weights, before)


N_VOCAB = 20_000


def large(kind: str) -> np.ndarray:
    """Logits of a real vocabulary's size."""
    rng = np.random.default_rng(len(kind))
    wide = rng.normal(0, 2.5, N_VOCAB)
    if kind == "peaked":
        wide[rng.integers(0, N_VOCAB, 20)] += rng.uniform(8, 16, 20)
    if kind == "ties":
        wide = np.round(wide)
    if kind == "mostly ruled out":
        wide[rng.random(N_VOCAB) < 0.9] = -np.inf
    if kind == "far apart":
        wide **= 5
    if kind == "one far below":
        wide[7] = -1e300
    scale = {"nearly flat": 0.04, "almost equal": 1e-8, "all equal": 0.0}
    return wide * scale.get(kind, 1.0)


KINDS = [
    "wide", "peaked", "ties", "mostly ruled out", "far apart", "one far below", "nearly flat",
    "almost equal", "all equal",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mass", [1e-9, 0.2, 0.8, 0.95, 1 - 1e-9])
def test_a_large_vocabulary_is_cut_where_sorting_it_cuts(kind: str, mass: float) -> None:
    logits = scaled(large(kind))
    weights = np.exp(logits)
    possible = set(kept(weights))
    likeliest = set(plain_mass(-weights, weights, mass))
    assert set(kept(steps.top_p(weights, mass))) == possible & likeliest
    most_typical = set(plain_mass(surprise_key(logits), weights, mass))
    assert set(kept(steps.typical(logits, weights, mass))) == possible & most_typical


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 40, 1000, 15_000, N_VOCAB])
def test_the_k_likeliest_of_a_large_vocabulary(kind: str, k: int) -> None:
    logits = large(kind)
    ranked = np.lexsort((np.arange(N_VOCAB), -logits))
    assert steps.top_k(logits, k).tolist() == sorted(ranked[:k].tolist())


def plain_sample(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """Compute the chain by its definition: all tokens sorted, one cumulative sum."""
    scores = (logits - logits.max()) / sampling.temperature
    if sampling.top_k:
        ruled_out = np.lexsort((np.arange(N_VOCAB), -scores))[sampling.top_k :]
        scores[ruled_out] = -np.inf
    weights = np.exp(scores)
    if sampling.typical_p < 1:
        left = plain_mass(surprise_key(scores), weights, sampling.typical_p)
        weights = np.where(np.isin(np.arange(N_VOCAB), left), weights, 0.0)
    if sampling.top_p < 1:
        left = plain_mass(-weights, weights, sampling.top_p)
        weights = np.where(np.isin(np.arange(N_VOCAB), left), weights, 0.0)
    weights[weights < sampling.min_p * weights.max()] = 0.0
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {}, {"temperature": 0.7}, {"top_k": 40}, {"top_p": 0.8}, {"typical_p": 0.2},
        {"typical_p": 0.9}, {"min_p": 0.05},
        {"temperature": 1.3, "top_k": 9000, "typical_p": 0.95, "top_p": 0.9, "min_p": 0.01},
    ],
)  # fmt: skip
def test_a_seed_gives_the_tokens_of_the_plain_chain(kind: str, options: dict[str, Any]) -> None:
    logits, sampling = large(kind), Sampling(**options)
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(4):
        assert sample(logits, sampling, [], rng) == plain_sample(logits, sampling, again)


def test_penalties_follow_their_formulas() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.5])
    tokens, counts = np.array([0, 1]), np.array([1, 2])
    assert steps.repetition_penalty(logits, tokens, 2.0).tolist() == [1.0, -4.0, 1.0, 0.5]
    assert steps.presence_penalty(logits, tokens, 0.5).tolist() == [1.5, -2.5, 1.0, 0.5]
    assert steps.frequency_penalty(logits, tokens, counts, 0.5).tolist() == [1.5, -3.0, 1.0, 0.5]
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.5]


def test_counts_kept_from_token_to_token_are_those_of_the_whole_history() -> None:
    counts, history = TokenCounts(), [5, 1]
    for token in (5, 5, 2):
        history.append(token)
        assert counts.of(history, 7).tolist() == np.bincount(history, minlength=7).tolist()
    logits, penalized = np.array([1.0, 5.0, 3.0, 2.0]), Sampling(temperature=0, frequency_penalty=2)
    counts, history, rng = TokenCounts(), [], np.random.default_rng(0)
    for _ in range(9):
        token = sample(logits, penalized, history, rng, counts=counts)
        assert token == sample(logits, penalized, history, rng)
        history.append(token)
    assert history[:6] == [1, 1, 2, 3, 0, 1]


def choose(logits: Any, history: Sequence[int] = (), seed: int = 0, **options: Any) -> int:
    rng = np.random.default_rng(seed)
    return sample(np.array(logits, np.float32), Sampling(**options), history, rng)


def test_temperature_zero_takes_the_likeliest_and_the_lowest_of_equals() -> None:
    assert choose([1, 3, 2, 3], temperature=0) == 1
    # The likeliest token need not be typical; greedy means greedy.
    assert choose([2, 1.9, 1.9, 1.9], temperature=0, typical_p=0.1) == 0


def test_bias_and_bans_reach_greedy_choice() -> None:
    assert choose([1, 3, 2], temperature=0, banned_tokens=[1]) == 2
    assert choose([1, 3, 2], temperature=0, logit_bias={0: 5}) == 0
    assert choose([1, 3, 2], temperature=0, logit_bias={1: -math.inf}) == 2


def test_penalties_reach_the_choice() -> None:
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        assert choose([1, 3, 2], [1], temperature=0, **{name: 2.5}) == 2


@pytest.mark.parametrize("value", [1e-320, 1e-9, 1e300])
def test_extreme_temperatures_neither_warn_nor_fail(value: float) -> None:
    with np.errstate(invalid="raise", divide="raise"):
        token = choose([-80, 80, 3], temperature=value)
    assert token == 1 or value == 1e300


def test_frequencies_match_the_distribution() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    rng = np.random.default_rng(0)
    drawn = [sample(logits, Sampling(), [], rng) for _ in range(20_000)]
    assert np.bincount(drawn) / 20_000 == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)


@given(seed=st.integers(0, 1000), noise=st.integers(0, 1000))
def test_logits_that_agree_to_rounding_give_the_same_token(seed: int, noise: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, 500)
    other = logits * (1 + 1e-12 * np.random.default_rng(noise).normal(size=500))
    rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
    sampling = Sampling(temperature=0.8, top_k=100)
    assert sample(logits, sampling, [], rng) == sample(other, sampling, [], again)


def test_one_random_number_is_drawn_a_token() -> None:
    rng, again = np.random.default_rng(5), np.random.default_rng(5)
    sample(np.zeros(1000), Sampling(top_p=0.5), [], rng)
    again.random()
    assert rng.random() == again.random()


def test_tokens_of_no_probability_are_never_drawn() -> None:
    class Zero(np.random.Generator):
        def random(self) -> float:  # type: ignore[override]
            return 0.0

    rng = Zero(np.random.PCG64(0))
    assert sample(np.array([-np.inf, -1e4, 0.0]), Sampling(), [], rng) == 2


def test_processor_sees_penalized_logits_and_decides() -> None:
    seen = []

    def only_last(logits: np.ndarray, history: Sequence[int]) -> np.ndarray:
        seen.append((logits.dtype, logits.tolist(), list(history)))
        return np.where(np.arange(len(logits)) == len(logits) - 1, 0.0, -np.inf)

    rng = np.random.default_rng(0)
    sampling = Sampling(temperature=0.5, presence_penalty=1.0)
    assert sample(np.array([1.0, 2.0, 3.0]), sampling, [0], rng, [only_last]) == 2
    assert seen == [(np.float64, [0.0, 2.0, 3.0], [0])]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_refused(bad: float) -> None:
    with pytest.raises(RWKVError, match=f"the model's logits hold {bad}"):
        choose([1, bad, 2])
    rng = np.random.default_rng(0)
    with pytest.raises(RWKVError, match=f"processors gave {bad}"):
        sample(np.zeros(3), Sampling(), [], rng, [lambda logits, history: logits + bad])


@pytest.mark.parametrize("penalty", [1e308, 1e300, 1e-300])
def test_extreme_penalties_neither_warn_nor_fail(penalty: float) -> None:
    history = [0, 1, 1, 1]
    assert choose([-800, -5, 3], history, temperature=0, repetition_penalty=penalty) in (1, 2)
    assert choose([-800, -5, 3], history, frequency_penalty=penalty, presence_penalty=penalty) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": -1.7e308, "frequency_penalty": -1e308},
        {"frequency_penalty": -1e308},
        {"frequency_penalty": -1e308, "banned_tokens": [1]},
        {"repetition_penalty": 1e-308},
    ],
)
def test_penalties_that_overflow_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"^bias and penalties gave (inf|nan)") as error:
        choose([-1, 30, 3], [1, 1, 1], **options)
    assert "\n" not in str(error.value)


def test_processor_that_works_in_place_leaves_the_callers_logits_alone() -> None:
    def rule_out_the_first(logits: np.ndarray, history: Sequence[int]) -> np.ndarray:
        logits[0] = -np.inf
        return logits

    logits = np.zeros(3)
    sample(logits, Sampling(), [], np.random.default_rng(0), [rule_out_the_first])
    assert logits.tolist() == [0, 0, 0]


def test_processor_that_changes_the_shape_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(OptionError, match=r"processors: found logits of shape \[2\], expected"):
        sample(np.zeros(3), Sampling(), [], rng, [lambda logits, history: logits[:2]])


def test_everything_banned_is_refused() -> None:
    with pytest.raises(OptionError, match="every token is banned"):
        choose([1, 2], banned_tokens=[0, 1])


@pytest.mark.parametrize("option", [{"logit_bias": {3: 1.0}}, {"banned_tokens": [3]}])
def test_token_outside_the_vocabulary_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="found token 3, expected 0 to 2"):
        choose([1, 2, 3], **option)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in (
            "temperature", "top_p", "typical_p", "min_p", "repetition_penalty",
            "presence_penalty", "frequency_penalty",
        ) for value in (math.nan, math.inf, 10**400, "1", None, True, [1.0])),
        ("temperature", -0.1), ("top_p", 0), ("top_p", 1.01), ("top_p", -1), ("typical_p", 0),
        ("typical_p", 2), ("min_p", -0.1), ("min_p", 1.1), ("repetition_penalty", 0),
        ("top_k", -1), ("top_k", 1.5), ("top_k", True), ("top_k", "3"),
        ("logit_bias", [1]), ("logit_bias", {"a": 1}), ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.nan}), ("logit_bias", {1: math.inf}), ("logit_bias", {1: "x"}),
        ("logit_bias", {1: 10**400}),
        ("banned_tokens", 3), ("banned_tokens", "3"), ("banned_tokens", [-1]),
        ("banned_tokens", [1.5]),
    ],
)  # fmt: skip
def test_option_of_a_wrong_type_or_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"^{name}.*: found ") as error:
        Sampling(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(0,), (1, 3), ()])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"logits: found shape .*, expected \[V\]"):
        choose(np.ones(shape))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": Fraction(1, 2)},
        {"top_k": np.uint8(40)},
        {"presence_penalty": Fraction(1, 2)},
        {"frequency_penalty": 10**20},
        {"logit_bias": {0: Fraction(1, 2)}},
    ],
    ids=str,
)
def test_numbers_of_any_type_are_numbers(options: dict[str, Any]) -> None:
    as_usual = {
        name: value if name == "logit_bias" else int(value) if name == "top_k" else float(value)
        for name, value in options.items()
    }
    logits = np.linspace(0, 3, 300)
    expected = choose(logits, [299, 7], **as_usual)
    assert choose(logits, [299, 7], **options) == expected


def test_logits_at_both_ends_of_the_range_do_not_warn() -> None:
    rng = np.random.default_rng(0)
    assert sample(np.array([1e308, -1e308]), Sampling(), [], rng) == 0


def test_numpy_numbers_are_numbers() -> None:
    sampling = Sampling(temperature=np.float32(0.5), top_k=np.int64(2), banned_tokens=np.arange(1))
    assert choose([9, 2, 1], temperature=0, banned_tokens=sampling.banned_tokens) == 1
