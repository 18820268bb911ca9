"""SR-STE: sparse weights forward, dense gradients and a decay backward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradprune_jax as gp

DECAY = 0.25
SCHEDULE = gp.polynomial_schedule(0.75, begin_step=0, end_step=10, every=5)


def make_params(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        "hidden": {"kernel": rng.normal(size=(8, 12)).astype(dtype)},
        "out": {"kernel": rng.normal(size=(12, 4)).astype(dtype)},
        "bias": np.ones(4, dtype),
    }


@pytest.mark.parametrize("what", [gp.NM(2, 4), SCHEDULE, [gp.Rule(SCHEDULE)]], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_forward_is_pruned_and_backward_is_dense(what, dtype):
    params = make_params(dtype)
    is_pattern = isinstance(what, gp.NM)
    fields = dict(structure=what) if is_pattern else {}
    expected, masks = gp.prune(params, 0.5 if is_pattern else 0.75, **fields)
    slopes = jax.tree.map(lambda leaf: np.asarray(leaf * 2 + 1, leaf.dtype), params)

    def loss(params):
        sparse = gp.straight_through(params, what, decay=DECAY)
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), sparse, slopes)
        return sum(jax.tree.leaves(products)), sparse

    (_, sparse), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    jax.tree.map(np.testing.assert_array_equal, sparse, expected)
    for layer in ("hidden", "out"):
        mask = np.asarray(masks[layer]["kernel"])
        assert not np.signbit(np.asarray(sparse[layer]["kernel"])[~mask]).any()
        weights, slope = params[layer]["kernel"], slopes[layer]["kernel"]
        decayed = np.where(mask, 0, weights * np.asarray(DECAY, dtype)).astype(dtype)
        found = np.asarray(gradients[layer]["kernel"])
        np.testing.assert_array_equal(found, slope + decayed)
    np.testing.assert_array_equal(gradients["bias"], slopes["bias"])


def test_a_schedule_is_followed():
    params = make_params()
    sparse = jax.jit(lambda step: gp.straight_through(params, SCHEDULE, step=step))
    for step in (0, 3, 5, 9, 10, 20):
        expected = float(SCHEDULE.sparsity(step))
        found = gp.sparsity(sparse(step)["hidden"])["kernel"]
        assert float(found) == pytest.approx(expected, abs=1 / 96)
    steps = jnp.array([0, 5, 10])
    together = jax.vmap(lambda step: gp.straight_through(params, SCHEDULE, step=step))
    for own, step in zip(together(steps)["hidden"]["kernel"], steps, strict=True):
        np.testing.assert_array_equal(own, sparse(step)["hidden"]["kernel"])
    end = gp.straight_through(params, SCHEDULE)
    jax.tree.map(np.testing.assert_array_equal, end, sparse(10))


def test_weights_come_back_and_prune_ends_it():
    """A weight that is not kept goes on learning; plain pruning would lose it."""
    target = np.array([[1.0], [-2.0], [0.1], [3.0]], np.float32)
    params = {"kernel": np.array([[4.0], [0.5], [5.0], [0.4]], np.float32)}
    tx = optax.sgd(0.1)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        def loss(params):
            kernel = gp.straight_through(params, gp.NM(2, 4), decay=0.0)["kernel"]
            return jnp.sum((kernel - target) ** 2)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    before = gp.straight_through(params, gp.NM(2, 4))["kernel"].ravel()
    assert list(before != 0) == [True, False, True, False]
    for _ in range(50):
        params, state = step(params, state)
    sparse, masks = gp.prune(params, 0.5, structure=gp.NM(2, 4))
    assert list(masks["kernel"].ravel()) == [False, True, False, True]
    np.testing.assert_array_equal(
        sparse["kernel"], gp.straight_through(params, gp.NM(2, 4))["kernel"]
    )


def test_it_goes_into_the_loss_of_linen_and_nnx():
    inputs = np.ones((2, 8), np.float32)
    linen = nn.Dense(4)
    params = linen.init(jax.random.key(0), inputs)["params"]

    @jax.jit
    @jax.grad
    def linen_gradient(params):
        sparse = gp.straight_through(params, gp.NM(2, 4))
        return jnp.sum(linen.apply({"params": sparse}, inputs) ** 2)

    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    model.kernel[...] = params["kernel"]

    @nnx.jit
    @nnx.grad
    def nnx_gradient(model):
        graph, weights = nnx.split(model)
        sparse = nnx.merge(graph, gp.straight_through(weights, gp.NM(2, 4)))
        return jnp.sum(sparse(inputs) ** 2)

    gradients = nnx.to_pure_dict(nnx_gradient(model))
    expected = linen_gradient(params)
    np.testing.assert_allclose(gradients["kernel"], expected["kernel"], rtol=1e-5)
    assert (np.asarray(expected["kernel"]) != 0).all()


def test_wrong_arguments_are_refused():
    params = make_params()
    with pytest.raises(ValueError, match="no sparsity of its own; give a schedule"):
        gp.straight_through(params, gp.Unstructured())
    with pytest.raises(ValueError, match="has the parameters alone"):
        gp.straight_through(params, gp.Rule(SCHEDULE, score=gp.Saliency()))
    for decay in (-1.0, float("inf"), "much"):
        with pytest.raises(ValueError, match="decay is"):
            gp.straight_through(params, gp.NM(2, 4), decay=decay)
    with pytest.raises(ValueError, match="step is -1"):
        gp.straight_through(params, SCHEDULE, step=-1)
    with pytest.raises(ValueError, match="step has shape"):
        jax.jit(lambda step: gp.straight_through(params, SCHEDULE, step=step))(
            np.arange(2)
        )
    with pytest.raises(TypeError, match="the schedule is 'NM'"):
        gp.straight_through(params, "NM")
    with pytest.raises(ValueError, match="matches no"):
        gp.straight_through(params, gp.Rule(SCHEDULE, where="nothing"))
