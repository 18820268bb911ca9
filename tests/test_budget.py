"""Budgets: the smallest sparsity that fits, and one for each layer by the loss."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradprune_jax as gp
from gradprune_jax._budget import layout_nbytes

PARAMS = {
    "conv": {"kernel": np.random.default_rng(0).normal(size=(3, 3, 8, 16))},
    "dense": {
        "bias": np.ones(10),
        "kernel": np.random.default_rng(1).normal(size=(64, 10)),
    },
    "steps": np.arange(3),
}
PARAMS = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float32 if x.dtype == float else None), PARAMS
)
SHAPES = jax.eval_shape(lambda: PARAMS)
SIZE = 3 * 3 * 8 * 16 + 64 * 10 + 10
SCHEDULE = gp.polynomial_schedule(0.5, begin_step=2, end_step=9)


def nonzeros(tree):
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return int(sum((np.asarray(x) != 0).sum() for x in leaves))


def below(sparsity):
    """The next smaller float32."""
    return float(np.nextafter(np.float32(sparsity), np.float32(0)))


@pytest.mark.parametrize("allocation", ["uniform", "erk", "global"])
@pytest.mark.parametrize("budget", [100, 733, SIZE - 1])
def test_the_smallest_sparsity_that_fits(allocation, budget):
    planned = gp.plan(SCHEDULE, SHAPES, budget=budget, allocation=allocation)
    assert planned.kept[0] + 10 <= budget
    sparsity = planned.rules[0].schedule.final_sparsity
    assert planned.rules[0].schedule.begin_step == 2
    denser = gp.polynomial_schedule(below(sparsity), 2, 9)
    assert gp.plan(denser, SHAPES, allocation=allocation).kept[0] + 10 > budget
    pruned, _ = gp.prune(PARAMS, budget=budget, allocation=allocation)
    again, _ = gp.prune(PARAMS, sparsity, allocation=allocation)
    assert nonzeros(pruned) == planned.kept[0] + 10
    for one, other in zip(*map(jax.tree.leaves, (pruned, again)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layout", ["bitmask", "csr", "coo"])
def test_bytes_are_those_of_the_storage_report(layout):
    export = pytest.importorskip("gradprune_jax.export")
    pytest.importorskip("safetensors")

    def size(params):
        return export.storage_report(params, compress=False).total[layout]

    dense = 4 * SIZE
    for nbytes in (dense // 4, dense // 2, dense - 1):
        budget = gp.Budget(nbytes=nbytes, layout=layout)
        pruned, masks = gp.prune(PARAMS, budget=budget)
        planned = gp.plan(SCHEDULE, SHAPES, budget=budget)
        sparsity = planned.rules[0].schedule.final_sparsity
        assert size(pruned) <= nbytes
        assert size(gp.prune(PARAMS, below(sparsity))[0]) > nbytes
        assert nonzeros(pruned) == planned.kept[0] + 10
        # Global: which leaf keeps what is known from the weights alone.
        assert size(gp.prune(PARAMS, budget=budget, allocation="global")[0]) <= nbytes


def test_the_layouts_are_those_of_files():
    bitmask = pytest.importorskip("gradprune_jax.export.bitmask")
    array = np.zeros((3, 5, 13), np.float32)
    array[0, :, 4] = 1
    parts = bitmask.compress(array)
    nbytes = sum(part.nbytes for part in parts)
    assert layout_nbytes("bitmask", array.shape, 4, 5) == nbytes


@pytest.mark.parametrize("structure", [gp.Channel(), gp.Block((3, 4))])
def test_structures_keep_the_budget(structure):
    """Blocks of (3, 4) are cut short at the edges: only masks say what they keep."""
    pruned, _ = gp.prune(PARAMS, budget=400, structure=structure)
    assert 0 < nonzeros(pruned) <= 400


def test_several_rules_get_one_sparsity():
    rules = [
        gp.Rule(SCHEDULE, where="conv/kernel"),
        gp.Rule(gp.polynomial_schedule(0.5, 0, 4), where="dense/kernel",
                structure=gp.NM(2, 4, axis=0)),
    ]  # fmt: skip
    planned = gp.plan(rules, SHAPES, budget=500)
    assert planned.kept == (170, 320)
    assert planned.rules[1] == rules[1]


def test_a_model_that_fits_stays_dense():
    pruned, masks = gp.prune(PARAMS, budget=SIZE)
    assert nonzeros(pruned) == SIZE
    planned = gp.plan(SCHEDULE, SHAPES, budget=10 * SIZE)
    assert planned.rules[0].schedule.final_sparsity == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gp.prune(PARAMS), "give one of them"),
        (lambda: gp.prune(PARAMS, 0.5, budget=3), "give one of them"),
        (lambda: gp.prune(PARAMS, budget=9), r"still has 10; dense stay dense/bias"),
        (lambda: gp.prune(PARAMS, budget=-1), "nonzeros is -1"),
        (lambda: gp.prune(PARAMS, budget=0.5), "nonzeros is 0.5"),
        (lambda: gp.prune(PARAMS, budget=True), "nonzeros is True"),
        (lambda: gp.prune(PARAMS, budget=99, structure=gp.NM(2, 4)), "own sparsity"),
        (lambda: jax.jit(lambda p: gp.prune(p, budget=99))(PARAMS), "outside of jit"),
        (lambda: gp.plan(SCHEDULE, SHAPES, budget=9), "still has 10"),
        (lambda: gp.Budget(), "give one"),
        (lambda: gp.Budget(3, nbytes=3), "give one"),
        (lambda: gp.Budget(nbytes=3, layout="dense"), "layout is 'dense'"),
        (
            lambda: gp.plan(
                gp.custom_schedule(lambda s: 0.5, 0, 9, 3), SHAPES, budget=99
            ),
            "is a function",
        ),
        (lambda: gp.plan([gp.Rule(None)], SHAPES, budget=99), "no rule"),
        (
            lambda: gp.plan(
                SCHEDULE, SHAPES, budget=gp.Budget(nbytes=999), allocation="global"
            ),
            "known only from the weights",
        ),
        (
            lambda: gp.plan(SCHEDULE, SHAPES, budget=99, structure=gp.Block((3, 4))),
            "known only from the weights",
        ),
    ],
)
def test_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def measure(seed, layers=3):
    """Three layers whose losses are any numbers, and their sizes."""
    rng = np.random.default_rng(seed)
    sparsities = (0.25, 0.5, 0.75, 1.0)
    sizes = rng.integers(4, 40, size=layers) * 4
    params = {f"l{i}": jnp.ones((4, n // 4)) for i, n in enumerate(sizes)}
    losses = rng.gamma(1.0, size=(layers, len(sparsities)))
    if seed % 2:
        losses = np.sort(losses, axis=1)
    kept = np.round(np.outer(sizes, 1 - np.array(sparsities))).astype(int)
    measured = gp.Sensitivity(
        tuple(params), sparsities, losses.astype(np.float32) + 1, 1.0, kept,
        gp.Rule(gp.one_shot_schedule(0.5, 0)),
    )  # fmt: skip
    return measured, params, losses, kept, sizes


def brute_force(losses, kept, sizes, budget):
    """The least rise of all choices that keep the budget."""
    choices = [
        [(n, 0.0), *zip(counts, rises, strict=True)]
        for n, counts, rises in zip(sizes, kept, losses, strict=True)
    ]
    return min(
        sum(rise for _, rise in choice)
        for choice in itertools.product(*choices)
        if sum(count for count, _ in choice) <= budget
    )


@pytest.mark.parametrize("seed", range(8))
def test_greedy_against_brute_force(seed):
    measured, params, losses, kept, sizes = measure(seed)
    best = []
    for budget in range(0, int(sizes.sum()) + 1, 7):
        allocated = gp.allocate_sparsity(measured, params, budget)
        assert allocated.cost == sum(allocated.kept) <= budget
        rise = allocated.estimate - 1.0
        least = brute_force(losses, kept, sizes, budget)
        assert rise > least - 1e-5
        # At most one step of one layer is lost.
        assert rise <= least + losses.max() + 1e-5
        best.append(rise < least + 1e-5)
    assert np.mean(best) > 0.5
    # A budget that the last step meets exactly: the best choice of all.
    exact = gp.allocate_sparsity(measured, params, allocated.cost)
    assert exact.estimate == pytest.approx(
        1 + brute_force(losses, kept, sizes, allocated.cost), abs=1e-5
    )


def test_greedy_is_the_best_where_losses_are_convex():
    """At every budget that the steps of the layers meet exactly."""
    rng = np.random.default_rng(3)
    sparsities = (0.25, 0.5, 0.75, 1.0)
    sizes = np.array([40, 40, 40])
    rises = np.cumsum(np.sort(rng.gamma(1.0, size=(3, 4)), axis=1), axis=1)
    kept = np.round(np.outer(sizes, 1 - np.array(sparsities))).astype(int)
    params = {f"l{i}": jnp.ones((4, 10)) for i in range(3)}
    measured = gp.Sensitivity(
        tuple(params), sparsities, rises.astype(np.float32), 0.0, kept,
        gp.Rule(gp.one_shot_schedule(0.5, 0)),
    )  # fmt: skip
    for budget in range(0, 121, 10):
        allocated = gp.allocate_sparsity(measured, params, budget)
        least = brute_force(rises, kept, sizes, budget)
        assert allocated.estimate == pytest.approx(least, rel=1e-5)


def test_allocated_sparsities_are_trained_to():
    """From the losses to masks: the rules keep what was allocated, and no more."""
    inputs = jax.random.normal(jax.random.key(0), (16, 8))
    params = {
        name: {"kernel": jax.random.normal(jax.random.key(i), (8, 8)) * scale}
        for i, (name, scale) in enumerate([("a", 1.0), ("b", 0.1), ("c+", 1.0)])
    }

    def loss_fn(params):
        hidden = inputs
        for name in params:
            hidden = jnp.tanh(hidden @ params[name]["kernel"])
        return jnp.mean((hidden - targets) ** 2)

    targets = jnp.zeros(())
    targets = jax.lax.stop_gradient(
        jnp.tanh(jnp.tanh(jnp.tanh(inputs @ params["a"]["kernel"])
                          @ params["b"]["kernel"]) @ params["c+"]["kernel"])
    )  # fmt: skip
    measured = gp.sensitivity(loss_fn, params, [0.25, 0.5, 0.75])
    allocated = gp.allocate_sparsity(measured, params, 96, loss_fn)
    assert sum(allocated.kept) == allocated.cost <= 96
    tx = gp.gradual_prune(allocated.rules(gp.polynomial_schedule(0.1, 0, 2, every=1)))
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert nonzeros(params) == allocated.cost
    assert float(loss_fn(params)) == pytest.approx(allocated.loss, rel=1e-5)
    assert "measured" in str(allocated)
    with pytest.raises(ValueError, match="measure higher ones"):
        gp.allocate_sparsity(measured, params, 10)
    with pytest.raises(ValueError, match="have no 'a/kernel'"):
        gp.allocate_sparsity(measured, {"x": jnp.ones((2, 2))}, 10)
    wider = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), params)
    with pytest.raises(ValueError, match="'a/kernel' has .* weights, and had"):
        gp.allocate_sparsity(measured, wider, 10_000)
    with pytest.raises(ValueError, match="is a function"):
        allocated.rules(gp.custom_schedule(lambda s: 0.5, 0, 9, 3))


def test_losses_that_are_nan_are_never_chosen():
    measured, params, *_ = measure(0)
    losses = measured.losses.copy()
    losses[0, 2:] = np.nan
    losses[1, 0] = np.inf
    measured = gp.Sensitivity(
        measured.paths, measured.sparsities, losses, 1.0, measured.kept, measured.rule
    )
    least = int(measured.kept[0, 1])
    allocated = gp.allocate_sparsity(measured, params, least)
    assert allocated.kept == (least, 0, 0)
    losses[0] = np.nan
    with pytest.raises(ValueError, match="measure higher.* No loss is finite with '"):
        gp.allocate_sparsity(measured, params, least - 1)


def test_a_choice_that_saves_nothing_but_lowers_the_loss():
    """In bytes a little sparsity costs as much as none."""
    rises = np.array([[-1.0, 0.25], [2.0, 0.5]], np.float32)
    kept = np.array([[2, 0], [5, 2]])
    params = {"a": jnp.ones((2, 1)), "b": jnp.ones((5, 1))}
    measured = gp.Sensitivity(
        ("a", "b"), (0.25, 0.6), rises, 0.0, kept, gp.Rule(gp.one_shot_schedule(0.5, 0))
    )
    allocated = gp.allocate_sparsity(measured, params, 6)
    assert allocated.estimate == pytest.approx(-0.5)
    assert allocated.sparsities == (0.25, 0.6)
