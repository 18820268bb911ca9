"""N:M: gradual from dense, exactly N of M in the end, along the axis that it names."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradprune_jax as gp
from gradprune_jax._mask_update import group_kept
from tests import oracle
from tests.helpers import update_to
from tests.test_selection import seeds
from tests.test_structures import draw

PATTERNS = [
    (keep, of) for of in (*range(2, 11), 32) for keep in range(1, of, 1 + of // 8)
]
LEAVES = {
    "dense": (gp.NM(2, 4), [(8, 5), (4, 1)]),
    "convolution": (gp.NM(1, 3), [(2, 2, 6, 4)]),
    "output axis": (gp.NM(3, 5, axis=-1), [(3, 10), (10,)]),
    "query": (gp.NM(4, 8, axis=-3), [(8, 2, 3)]),
    "longest": (gp.NM(15, 32, axis=0), [(64, 3)]),
    "beyond a sum of neighbours": (gp.NM(20, 70, axis=0), [(140, 2)]),
    "empty": (gp.NM(2, 4, axis=0), [(0, 3), (4, 0)]),
}


def kept_at(structure, sparsity):
    """The number by a count of the fractions that a sparsity reaches."""
    pruned = range(1, structure.of - structure.keep + 1)
    reached = [np.float32(sparsity) >= np.float32(i / structure.of) for i in pruned]
    return structure.of - sum(reached)


@pytest.mark.parametrize(("structure", "shapes"), LEAVES.values(), ids=LEAVES)
@settings(max_examples=15)
@given(seed=seeds, part=st.floats(0, 1, width=32))
def test_groups_agree_with_a_stable_sort(structure, shapes, seed, part):
    final = 1 - structure.keep / structure.of
    weights, masks = draw(seed, shapes)
    kept = kept_at(structure, final * part)
    new = _updated(structure)(final * part, weights, masks)
    expected = oracle.next_masks(weights, masks, 0.0, structure=structure, kept=kept)
    for mask, wanted in zip(new, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(mask), wanted)


@functools.cache
def _updated(structure):
    """One update at an initial sparsity on the way to the pattern's own."""
    final = 1 - structure.keep / structure.of

    def update(initial, weights, masks):
        schedule = gp.polynomial_schedule(final, 0, 2, initial_sparsity=initial)
        rule = gp.Rule(schedule, structure=structure)
        return update_to(rule, None, weights, masks)

    return jax.jit(update)


@functools.cache
def jitted_kept(structure):
    return jax.jit(functools.partial(group_kept, structure))


@settings(max_examples=200)
@given(
    pattern=st.sampled_from([(2, 4), (1, 6), (3, 10), (15, 32), (1, 256)]),
    sparsity=st.floats(0, 1, width=32),
)
def test_the_kept_count_is_exact(pattern, sparsity):
    """The contract's number, wherever its product is not within an ulp of one more."""
    structure = gp.NM(*pattern)
    final = jnp.float32(1 - structure.keep / structure.of)
    kept = int(jitted_kept(structure)(jnp.float32(sparsity), final))
    assert kept == kept_at(structure, sparsity)
    exact = Fraction(sparsity) * structure.of
    pruned = min(int(exact), structure.of - structure.keep)
    ulp = Fraction(float(np.spacing(np.float32(sparsity)))) * structure.of
    assert structure.of - kept in {pruned, min(int(exact + ulp), structure.of)}


def test_a_linear_schedule_prunes_one_more_weight_at_each_update():
    """By s / s_f of two float32, 2:5 kept 5, 5, 4, 2."""
    for keep, of in PATTERNS:
        pruned = of - keep
        schedule = gp.polynomial_schedule(pruned / of, 0, pruned, every=1, power=1)
        sparsities = np.asarray(schedule.sparsity(np.arange(pruned + 1)))
        kept = group_kept(gp.NM(keep, of), sparsities, sparsities[-1])
        assert kept.tolist() == list(range(of, keep - 1, -1))
        # One ulp below the end, one more weight is kept.
        below = np.nextafter(sparsities[-1], np.float32(0))
        assert int(group_kept(gp.NM(keep, of), below, sparsities[-1])) == keep + 1


def test_a_schedule_within_rounding_of_the_pattern_ends_at_exactly_keep():
    for final in np.float32([2 / 3 - 1e-6, 2 / 3, 2 / 3 + 1e-6]):
        assert int(group_kept(gp.NM(1, 3), final, final)) == 1


def test_gradual_training_to_two_of_four():
    """ "2:4" is what is kept, and the axis is the one that a product sums over."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(16, 6)), jnp.float32)}
    schedule = gp.polynomial_schedule(0.5, begin_step=1, end_step=9, every=2)
    tx = gp.gradual_prune(schedule, structure=gp.NM(2, 4))
    state, kept = tx.init(params), []
    step = jax.jit(tx.update)
    for _ in range(11):
        updates = {"kernel": jnp.asarray(rng.normal(size=(16, 6)), jnp.float32)}
        updates, state = step(updates, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        mask = np.asarray(state.masks["kernel"])
        groups = mask.reshape(4, 4, 6).sum(1)
        assert len(np.unique(groups)) == 1
        kept.append(int(groups[0, 0]))
        assert not np.asarray(params["kernel"])[~mask].any()
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 4
    assert kept[-1] == 2
    assert 3 in kept


@pytest.mark.parametrize(
    ("shape", "structure", "message"),
    [
        ((6, 8), gp.NM(2, 4), r"'a/kernel' has shape \(6, 8\).*length 6; .*of=3"),
        ((7, 8), gp.NM(2, 4), "length 7.*of=7"),
        ((1, 8), gp.NM(2, 4), "no group does"),
        ((8, 6), gp.NM(2, 4, axis=-1), "length 6.*of=3"),
        ((8, 6), gp.NM(2, 4, axis=2), "no axis 2"),
        ((8, 6), gp.Block((9, 2)), "a block of 9x2 is larger than the 8x6 weights"),
        ((8, 6), gp.Block((1, 4, 4)), "a block of 1x4x4 is larger"),
        ((8, 6), gp.Channel(-3), "no axis -3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_before_training(shape, structure, message):
    params = {"a": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}}
    schedule = gp.one_shot_schedule(0.5, 3)
    with pytest.raises(ValueError, match=message):
        gp.plan(schedule, params, structure=structure)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(gp.gradual_prune(schedule, structure=structure).init, params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gp.NM(4, 4), r"keep is 4.*\[1, 3\]"),
        (lambda: gp.NM(0, 4), "keep is 0"),
        (lambda: gp.NM(1, 1), "of is 1"),
        (lambda: gp.NM(2.5, 4), "keep is 2.5; it must be an integer"),
        (lambda: gp.Block(()), "positive"),
        (lambda: gp.Block((4, 0)), "positive"),
        (lambda: gp.Block(4), "tuple of positive integers"),
        (lambda: gp.Block((4, 4), "sum"), "pool is 'sum'"),
        (lambda: gp.Channel("out"), "axis is 'out'"),
        (lambda: gp.Channel(pool="median"), "pool is 'median'"),
    ],
)
def test_structures_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(allocation="global"), "allocation is 'global' with NM"),
        (dict(allocation="erk"), "allocation is 'erk' with NM"),
        (dict(schedule=gp.polynomial_schedule(0.0, 0, 9)), "final_sparsity is 0 with"),
        (
            dict(schedule=gp.polynomial_schedule(0.9, 0, 9)),
            r"final_sparsity is 0.9 with NM\(keep=2, of=4, axis=-2\), whose sparsity "
            "is 1 - 2/4 = 0.5; give 0.5, or a pattern of sparsity 0.9",
        ),
        (
            dict(schedule=gp.one_shot_schedule(0.500002, 9)),
            "final_sparsity is 0.500002",
        ),
        (
            dict(schedule=gp.custom_schedule(lambda step: step / 20, 0, 9)),
            "final_sparsity is 0.45 .* = 0.5",
        ),
    ],
)
def test_rules_that_give_a_pattern_another_sparsity_are_refused(fields, message):
    rule = dict(schedule=gp.one_shot_schedule(0.5, 3), structure=gp.NM()) | fields
    with pytest.raises(ValueError, match=message):
        gp.Rule(**rule)
    if "schedule" in fields:
        with pytest.raises(ValueError, match=message):
            gp.gradual_prune(fields["schedule"], structure=gp.NM())
        with pytest.raises(ValueError, match=message):
            gp.plan(fields["schedule"], {"kernel": np.ones((4, 4))}, structure=gp.NM())


def test_a_pattern_takes_its_own_sparsity_as_people_write_it():
    for sparsity in (0.333333, 1 / 3, np.float32(1 / 3), jnp.float32(1 - 2 / 3)):
        assert gp.Rule(gp.one_shot_schedule(sparsity, 0), structure=gp.NM(2, 3))
    assert gp.Rule(None, structure=gp.NM())

    def trace(final):
        gp.Rule(gp.one_shot_schedule(final, 0), structure=gp.NM())
        return final

    jax.eval_shape(trace, 0.9)  # a tracer has no value to compare
