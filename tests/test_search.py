"""The search over thresholds: exact from any guess, and within its bound of passes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradprune_jax._top_k.counts import Count
from gradprune_jax._top_k.keys import largest_key, magnitude_keys
from gradprune_jax._top_k.policies import along_line, around, thirds_then_line
from gradprune_jax._top_k.search import FREE_PASSES, Bracket, Groups, Probes, search

TOP = largest_key(jnp.float32) + 3  # as the selection starts: above what none reaches
BOUND = FREE_PASSES + math.ceil(math.log(TOP, 3))
coarse_first = thirds_then_line(np.full(1, TOP >> 8, np.uint32))
SIZE = 4_000


def difficult(name):
    """Weights whose keys are hard to search."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=SIZE)
    return {
        "normal": normal,
        "zeros": np.zeros(SIZE),
        "constant": np.ones(SIZE),
        "mostly zero": normal * (rng.random(SIZE) < 0.1),
        "heavy tails": rng.standard_t(1.1, size=SIZE),
        "log-normal": np.exp(8 * normal),
        "two clusters": np.where(rng.random(SIZE) < 0.5, 1e-30 * normal, 1 + normal),
        "denormal": 1e-42 * normal,
        "integers": np.round(3 * normal),
        "one outlier": np.append(1e-20 * normal[1:], 1e30),
    }[name].astype(np.float32)


def keys_of(weights):
    return np.asarray(magnitude_keys(jnp.asarray(weights), jnp.float32))


def counter(keys, calls=None):
    """Counts in plain NumPy, without tracing, and notes each pass."""
    ascending = np.sort(keys)

    def count(probes):
        if calls is not None:
            calls.append(np.asarray(probes))
        reached = len(keys) - np.searchsorted(ascending, np.asarray(probes))
        return jnp.asarray(reached.astype(np.uint32))

    return count


def start(size):
    zero, top = jnp.zeros(1, jnp.uint32), jnp.full(1, TOP, jnp.uint32)
    return Bracket(zero, top, jnp.full(1, size, jnp.uint32), jnp.zeros(1, jnp.uint32))


def run(keys, wanted, probe):
    """The threshold and the number of passes."""
    calls = []
    with jax.disable_jit():
        bracket = search(
            counter(keys, calls),
            start(len(keys)),
            Count.of([wanted]),
            Groups(1, False),
            probe,
        )
    return int(bracket.low[0]), len(calls), calls


def assert_threshold(keys, wanted, threshold):
    """It separates exactly the wanted keys, or is the wanted key itself."""
    exactly = int(np.sum(keys >= threshold)) == wanted
    assert exactly or threshold == np.sort(keys)[len(keys) - wanted]


@pytest.mark.parametrize("probe", [coarse_first, along_line])
@pytest.mark.parametrize(
    "name",
    [
        "normal",
        "zeros",
        "constant",
        "mostly zero",
        "heavy tails",
        "log-normal",
        "two clusters",
        "denormal",
        "integers",
        "one outlier",
    ],
)
def test_no_weights_take_more_passes_than_the_bound(name, probe):
    """Interpolation alone stalls: 20 to 76 passes were seen."""
    keys = keys_of(difficult(name))
    for wanted in (1, 2, 40, 399, 2_000, 3_600, 3_999):
        threshold, passes, _ = run(keys, wanted, probe)
        assert_threshold(keys, wanted, threshold)
        assert passes <= BOUND == 24


def test_sixteen_bits_take_fourteen_passes_at_most():
    keys = keys_of(difficult("log-normal")) >> 16
    top = jnp.full(1, (TOP >> 16) + 1, jnp.uint32)
    for wanted in (1, 7, 400, 3_999):
        calls = []
        with jax.disable_jit():
            search(
                counter(keys, calls),
                start(len(keys))._replace(high=top),
                Count.of([wanted]),
                Groups(1, False),
                along_line,
            )
        assert len(calls) <= 14


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
def test_a_good_guess_saves_most_passes(sparsity):
    rng = np.random.default_rng(1)
    keys = keys_of(rng.normal(size=100_000).astype(np.float32))
    wanted = round(100_000 * (1 - sparsity))
    ascending = np.sort(keys)
    low, high = (ascending[100_000 - wanted + step] for step in (-800, 800))
    guess = Probes(jnp.array([low]), jnp.array([high]))
    passes = run(keys, wanted, around(guess, start(len(keys))))[1]
    unguided = run(keys, wanted, coarse_first)[1]
    assert passes <= 8
    assert passes < unguided <= 16


@pytest.mark.parametrize("name", ["normal", "log-normal", "one outlier"])
@pytest.mark.parametrize("where", ["lowest", "highest"])
def test_a_policy_that_always_errs_is_exact_within_the_bound(name, where):
    """The bound is the search's own: no policy needs to know of it."""

    def probe(state):
        end = {"lowest": state.bracket.low, "highest": state.bracket.high}[where]
        return Probes(end, end)

    keys = keys_of(difficult(name))
    for wanted in (1, 399, 3_600):
        threshold, passes, _ = run(keys, wanted, probe)
        assert_threshold(keys, wanted, threshold)
        assert passes <= BOUND


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    wanted=st.integers(1, 299),
    guess=st.tuples(st.integers(0, TOP - 2), st.integers(1, 2**31)),
)
def test_any_guess_gives_the_exact_threshold(seed, wanted, guess):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-30, 30)
    keys = keys_of((rng.standard_t(2, size=300) * scale).astype(np.float32))
    low = guess[0]
    high = min(low + guess[1], TOP - 1)
    arrays = Probes(*(jnp.array([v], jnp.uint32) for v in (low, high)))
    threshold, passes, calls = run(keys, wanted, around(arrays, start(len(keys))))
    assert_threshold(keys, wanted, threshold)
    assert passes <= BOUND
    for probes in calls:
        assert 0 < probes.min() <= probes.max() < TOP
        assert probes[0, 0] <= probes[1, 0]


def test_groups_are_searched_together_and_end_apart():
    rng = np.random.default_rng(2)
    keys = [keys_of(rng.normal(size=500).astype(np.float32)) for _ in range(3)]
    counts = [counter(one) for one in keys]
    wanted = [1, 250, 500]

    def count(probes):
        return jnp.stack([f(probes[:, i]) for i, f in enumerate(counts)], axis=-1)

    first = Bracket(*(jnp.repeat(field, 3) for field in start(500)))
    with jax.disable_jit():
        bracket = search(count, first, Count.of(wanted), Groups(3, False), along_line)
    for one, k, threshold in zip(keys, wanted, np.asarray(bracket.low), strict=True):
        assert_threshold(one, k, threshold)
