"""Counts of weights are exact, with x64 off, up to 2^48."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradprune_jax._mask_update import rounding
from gradprune_jax._mask_update.floors import density_floors
from gradprune_jax._mask_update.means import leading_quotient
from gradprune_jax._mask_update.slices import Slice
from gradprune_jax._top_k import counts
from gradprune_jax._top_k.counts import Count
from tests import oracle

sizes = st.lists(st.integers(0, 2**48), min_size=8, max_size=8)
integers = st.lists(st.integers(0, 2**63), min_size=8, max_size=8)
sparsities = st.one_of(
    st.floats(0, 1, width=32),
    st.sampled_from([0.0, 0.5, 0.9, 0.25, 1.0, 1 - 2**-24, 2**-24, 2**-40, 1e-38]),
)


@given(sizes, sparsities)
def test_kept_counts_are_exact(sizes, sparsity):
    expected = [oracle.kept_count(size, sparsity) for size in sizes]
    for number in (jnp.float32(sparsity), np.float32(sparsity)):
        kept = rounding.kept_count(sizes, number)
        assert isinstance(kept.low, jax.Array) == isinstance(number, jax.Array)
        assert list(kept.integers()) == expected


@given(st.integers(0, 2**20), st.integers(0, 2**10))
def test_halves_go_to_even(odd, numerator):
    size = 2 * odd + 1
    sparsity = np.float32((2 * numerator + 1) / 2**11)
    kept = rounding.kept_count([size * 2**10], sparsity).integers()[0]
    product = Fraction(float(sparsity)) * size * 2**10
    assert product.denominator == 2
    assert (size * 2**10 - int(kept)) % 2 == 0 or kept == 1


def test_more_weights_than_float32_or_uint32_can_count():
    """A float32 count is wrong by two at n = 100,000,001."""
    for size in (100_000_001, 6_738_149_376, 2**48):
        for sparsity in (0.9, 0.5, 0.999):
            kept = rounding.kept_count([size], jnp.float32(sparsity))
            expected = oracle.kept_count(size, sparsity)
            assert kept.integers()[0] == expected


def floors_of(sizes, density):
    return density_floors(density, [Slice(size, (size,)) for size in sizes]).integers()


@given(sizes, sparsities)
def test_floors_are_exact(sizes, fraction):
    decimal = Fraction(str(fraction))
    assert list(floors_of(sizes, fraction)) == [
        -(-size * decimal // 1) for size in sizes
    ]
    float32 = np.float32(fraction)
    if float32 > 1e-37 or float32 == 0:  # below that XLA may flush to zero
        mantissa, exponent = np.frexp(float32.astype(np.float64))
        lowest = Fraction(float(mantissa)) - Fraction(1, 2**25) * (float32 > 0)
        lowest = Fraction(1) if float32 == 1 else lowest * Fraction(2) ** int(exponent)
        floors = rounding.ceiling_count(sizes, float32)
        expected = [-(-size * lowest // 1) for size in sizes]
        assert list(floors.integers()) == expected


@pytest.mark.parametrize("density", [0.1, 0.2, 0.3, 0.07, 0.01, 0.5, 1.0])
def test_a_tenth_of_a_thousand_is_a_hundred_traced_or_not(density):
    """The float nearest to 0.1 is larger, and its exact ceiling would be 101."""
    sizes = [1_000, 50, 10, 7, 3, 0]
    expected = [-(-size * Fraction(str(density)) // 1) for size in sizes]
    traced = jax.jit(lambda d: rounding.ceiling_count(sizes, d))(density)
    assert list(traced.integers()) == expected
    assert list(floors_of(sizes, density)) == expected


@given(integers, integers)
def test_two_lanes_are_integers(a, b):
    one, other = Count.of(a), Count.of(b)
    pairs = list(zip(a, b, strict=True))
    larger = counts.maximum(one, other)
    smaller = counts.minimum(one, other)
    assert list((one + other).integers()) == [x + y for x, y in pairs]
    assert list(larger.integers()) == [max(pair) for pair in pairs]
    assert list(smaller.integers()) == [min(pair) for pair in pairs]
    assert list(one.equals(other)) == [x == y for x, y in pairs]
    difference = (larger - smaller).integers()
    assert list(difference) == [abs(x - y) for x, y in pairs]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8))
def test_sums_pass_32_bits(numbers):
    running = counts.cumulative_sum(jnp.asarray(np.array(numbers, np.uint32)))
    assert list(running.integers()) == list(np.cumsum(np.array(numbers, object)))
    total = counts.total(Count.of([n * 2**8 for n in numbers]))
    assert list(total.integers()) == [sum(numbers) * 2**8]


def test_the_leaves_of_seven_billion_weights_add_up():
    """Those of benchmarks/scale.py, under one global threshold."""
    layer = [4_096 * 4_096] * 4 + [4_096 * 11_008] * 3
    sizes = [32_000 * 4_096, *layer * 32, 4_096 * 32_000]
    running = counts.cumulative_sum(jnp.asarray(np.array(sizes, np.uint32)))
    assert len(sizes) == 226
    assert running.integers()[-1] == sum(sizes) == 6_738_149_376
    for sparsity in (0.5, 0.9, 0.98, 0.999):
        kept = rounding.kept_count([sum(sizes)], jnp.float32(sparsity))
        assert list(kept.integers()) == [oracle.kept_count(sum(sizes), sparsity)]


def test_nonsense_sparsities_of_tracers_do_no_harm():
    for sparsity, expected in [(-1.0, 10), (2.0, 0), (float("nan"), 10)]:
        kept = jax.jit(lambda s: rounding.kept_count([10], s))(sparsity)
        assert kept.integers()[0] == expected


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=8, max_size=8),
    st.lists(st.integers(1, 2**32 - 1), min_size=8, max_size=8),
    st.integers(0, 63),
)
def test_the_leading_bits_of_quotients_are_exact(numerators, divisors, shift):
    numerators = [numerator >> shift for numerator in numerators]
    bits, exponents = compiled_quotient(
        Count.of(numerators), np.array(divisors, np.uint32)
    )
    for n, d, found, e in zip(numerators, divisors, bits, exponents, strict=True):
        if n == 0:
            assert int(found) == 0
            continue
        exact = Fraction(n, d)
        value = Fraction(int(found)) * Fraction(2) ** (int(e) - 31)
        assert int(found) >> 31 == 1
        assert value <= exact < value + Fraction(2) ** (int(e) - 30)


compiled_quotient = jax.jit(leading_quotient)
