"""Samplers: started once per generation, with options; mirostat and DRY against known values."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_core import RWKV, OptionError, Sampling, plugins
from rwkv_core.generation.samplers import find_sampler, started
from rwkv_core.generation.sampling import sample

COUNTING = """
import rwkv_core
from rwkv_core import Option, Sampler

def start(options):
    print("start", sorted(options.items()))
    seen = []
    def process(logits, tokens):
        seen.append(len(tokens))
        if options["fail"] == len(seen):
            return BAD
        if seen != list(range(len(seen))):
            raise RuntimeError(f"streams are mixed: {seen}")
        return logits
    return process

@rwkv_core.hookimpl
def rwkv_samplers():
    options = (Option("fail", int, 0, "at this call"), Option("words", list, ["a"], "words"))
    return [Sampler("counting", "counts", start, options)]
"""


@pytest.fixture
def counting(install_plugin: Callable[..., Path]) -> Callable[[str], None]:
    return lambda bad="None": install_plugin("counting", COUNTING.replace("BAD", bad)) and None


@pytest.mark.needs_backend
def test_a_sampler_is_started_once_for_each_generation(
    backend: str, counting: Callable[..., None], small_model: Path, capsys: pytest.CaptureFixture
) -> None:
    counting()
    rwkv = RWKV(small_model, backend)
    for _ in range(2):
        rwkv.generate(3, seed=1, ignore_eos=True, processors=["counting:words=b,c"])
    assert (
        capsys.readouterr().out.splitlines() == ["start [('fail', 0), ('words', ['b', 'c'])]"] * 2
    )


def test_streams_at_the_same_time_have_samplers_of_their_own(counting: Callable[..., None]) -> None:
    counting()
    (one,), (other,) = started(["counting"]), started(["counting"])
    for tokens in ([], [1], [1, 2]):
        one(np.zeros(3), tokens)
        other(np.zeros(3), tokens)


def test_a_plugin_that_failed_is_named_where_its_sampler_is_missing(
    install_plugin: Callable[..., Path],
) -> None:
    install_plugin("boom", "raise ImportError('no such library')")
    with pytest.raises(OptionError, match=r"no sampler 'boom' .*boom failed: rwkv-core list-plug"):
        started(["boom"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("countin", "no sampler 'countin' is installed .*did you mean counting"),
        ("counting:fial=1", "sampler counting has no option 'fial'; did you mean fail"),
        ("counting:fail=x", "sampler counting:fail=x: option fail: found 'x', expected int"),
        ("counting:fail", "found 'fail', expected KEY=VALUE"),
        ("counting:=1", "found '=1', expected KEY=VALUE"),
        ("counting:fail=1,fail=2", "found fail twice"),
        ("mirostat:tau=0", "tau: found 0.0, expected a number > 0"),
        ("mirostat:tau=nan", "tau: found nan"),
        ("mirostat:eta=1.5", "eta: found 1.5, expected a number from 0 to 1"),
        ("dry:multiplier=-1", "multiplier: found -1.0"),
        ("dry:base=inf", "base: found inf"),
        ("dry:allowed_length=0", "allowed_length: found 0"),
        ("dry:breakers=1,two", r"breakers: found \['1', 'two'\], expected token numbers"),
    ],
)
def test_a_bad_sampler_is_one_line(counting: Callable[..., None], text: str, message: str) -> None:
    counting()
    with pytest.raises(OptionError, match=message) as error:
        started([text])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("None", r"found logits of shape \[\], expected \[3\] .*sampler counting"),
        ("'text'", "found a str from sampler counting, expected logits"),
        ("logits * float('nan')", "processors gave nan.*sampler counting"),
    ],
)
def test_what_a_sampler_returns_is_refused_by_its_name(
    counting: Callable[..., None], bad: str, message: str
) -> None:
    counting(bad)
    rng = np.random.default_rng(0)
    with pytest.raises(Exception, match=message):
        sample(np.zeros(3), Sampling(), [], rng, started(["counting:fail=1"]))


def test_our_own_samplers_stay_without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_PLUGINS", "")
    plugins.registry.cache_clear()
    try:
        assert list(plugins.offered("rwkv_samplers")) == ["mirostat", "dry"]
        assert find_sampler("mirostat: tau = 3")[1] == {"tau": 3.0, "eta": 0.1}
    finally:
        plugins.registry.cache_clear()


def test_mirostat_follows_its_algorithm() -> None:
    # Surprises of 1, 2, 3 and 3 bits; the limit begins at 2 tau = 2.2.
    logits = np.log([0.5, 0.25, 0.125, 0.125]) + 7
    (process,) = started(["mirostat:tau=1.1,eta=0.5"])

    def left(history: Sequence[int]) -> list[int]:
        return np.flatnonzero(np.isfinite(process(logits, history))).tolist()

    assert left([]) == [0, 1]
    assert left([1]) == [0]  # 2.2 - 0.5 * (2 - 1.1) = 1.75
    assert left([1, 0]) == [0]  # 1.75 - 0.5 * (1 - 1.1) = 1.8
    assert left([1, 0, 3]) == [0]  # 1.8 - 0.5 * (3 - 1.1) = 0.85: the likeliest stays
    (process,) = started(["mirostat:tau=1.6,eta=1"])
    assert left([]) == [0, 1, 2, 3]  # 2 tau = 3.2
    assert left([0]) == [0, 1, 2, 3]  # 3.2 - (1 - 1.6) = 3.8
    assert left([0, 2]) == [0, 1]  # 3.8 - (3 - 1.6) = 2.4


@pytest.mark.parametrize("tau", [3.5, 5.0])
def test_mirostat_keeps_the_mean_surprise_at_tau(tau: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 2000)
    bits = (np.log(np.exp(logits).sum()) - logits) / math.log(2)
    processors = started([f"mirostat:tau={tau},eta=0.1"])
    history: list[int] = []
    for _ in range(1500):
        history.append(sample(logits, Sampling(), history, rng, processors))
    assert bits[history].mean() == pytest.approx(tau, abs=0.15)


@pytest.mark.parametrize(
    ("history", "options", "penalties"),
    [
        ([1, 2, 3, 1, 2], "", {3: 0.8}),  # two tokens occur again: 0.8 * 1.75 ** 0
        ([5, 1, 2, 3, 5, 1, 2], "", {3: 0.8 * 1.75}),
        ([5, 1, 2, 3, 5, 1, 2], ":multiplier=2,base=3,allowed_length=1", {3: 2 * 3**2}),
        ([1, 2, 3, 4, 2], "", {}),  # one token only
        ([1, 2, 3, 1, 2, 4, 1, 2], "", {3: 0.8, 4: 0.8}),
        ([1, 2, 3, 1, 2], ":breakers=9,2", {}),
        ([5, 1, 2, 3, 5, 1, 2], ":breakers=5", {3: 0.8}),
        ([1, 2, 3, 1, 2], ":breakers=3", {}),
        ([7, 7, 7, 7], "", {7: 0.8 * 1.75}),
        ([], "", {}),
    ],
)
def test_dry_follows_its_formula(
    history: list[int], options: str, penalties: dict[int, float]
) -> None:
    (process,) = started([f"dry{options}"])
    logits = np.zeros(10)
    for end in range(len(history)):
        process(logits, history[:end])
    expected = -np.array([penalties.get(token, 0) for token in range(10)])
    assert process(logits, history) == pytest.approx(expected)
    assert not logits.any()


@given(st.lists(st.integers(0, 2), max_size=40))
def test_dry_finds_the_longest_repetition_of_each_token(history: list[int]) -> None:
    (process,) = started(["dry:multiplier=1,base=2,allowed_length=1"])
    expected = np.zeros(3)
    for i in range(len(history) - 1):
        length = 0
        while length <= i and history[i - length] == history[len(history) - 1 - length]:
            length += 1
        if length:
            token = history[i + 1]
            expected[token] = min(expected[token], -(2.0 ** (length - 1)))
    assert process(np.zeros(3), history) == pytest.approx(expected)


def test_dry_ends_a_loop() -> None:
    logits = np.array([3.0, 2.0, 1.0, 0.0])
    history: list[int] = []
    processors, rng = started(["dry"]), np.random.default_rng(0)
    for _ in range(60):
        history.append(sample(logits, Sampling(temperature=0), history, rng, processors))
    assert set(history) == {0, 1, 2, 3}
