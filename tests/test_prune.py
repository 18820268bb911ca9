"""Pruning once, and how much each parameter can bear."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import gradprune_jax as gp
from gradprune_jax import report
from tests.helpers import enable_x64

STRUCTURES = [None, gp.Block((2, 2)), gp.Channel(), gp.NM(1, 4)]


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": {"kernel": (8, 6), "bias": (6,)}, "b": {"kernel": (12, 4)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_it_is_the_selection_of_a_mask_update(structure):
    params = make_params()
    tx = gp.gradual_prune(gp.one_shot_schedule(0.75, 0), structure=structure)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    pruned, masks = gp.prune(params, 0.75, structure=structure)
    chex.assert_trees_all_equal(masks, state.masks)
    np.testing.assert_array_equal(
        pruned["a"]["kernel"],
        np.where(masks["a"]["kernel"], params["a"]["kernel"], 0.0),
    )
    assert pruned["a"]["bias"] is params["a"]["bias"]
    assert isinstance(masks["a"]["bias"], optax.MaskedNode)


def test_it_runs_under_jit_with_a_traced_sparsity():
    params = make_params()
    prune = jax.jit(lambda s, p: gp.prune(p, s, allocation="global", min_density=0.1))
    for sparsity in (0.3, 0.8):
        pruned, masks = prune(jnp.float32(sparsity), params)
        expected = gp.prune(params, sparsity, allocation="global", min_density=0.1)
        chex.assert_trees_all_equal((pruned, masks), expected)


@pytest.mark.parametrize("dtype", [float, np.float32, jnp.float32])
def test_numbers_may_be_of_any_kind(dtype):
    fields = dict(allocation="global", where="a/kernel")
    _, masks = gp.prune(make_params(), dtype(0.9), min_density=dtype(0.25), **fields)
    assert masks["a"]["kernel"].sum() == 12


def test_a_pattern_and_another_sparsity_are_a_contradiction():
    """It was pruned to the pattern's own, without a word."""
    params = {"kernel": jnp.array([[1.0, -2.0, 3.0, -4.0]])}
    pattern = gp.NM(2, 4, axis=-1)
    pruned, _ = gp.prune(params, 0.5, structure=pattern)
    np.testing.assert_array_equal(pruned["kernel"], [[0.0, 0.0, 3.0, -4.0]])
    for sparsity in (0.0, 0.9):
        message = rf"^sparsity is {sparsity:.2g} with NM\(.*1 - 2/4 = 0.5"
        with pytest.raises(ValueError, match=message):
            gp.prune(params, sparsity, structure=pattern)


@pytest.mark.parametrize("structure", [None, gp.Block((1, 2)), gp.NM(2, 4, axis=-1)])
def test_numpy_arrays_of_float64_stay_what_they_are(structure):
    """They were narrowed to float32, in which these two weights tie."""
    kernel = np.array([[1.0, 1.0, 1.0 + 2**-26, 1.0 + 2**-26]])
    params = {"a": {"kernel": kernel}, "b": {"kernel": kernel.astype(np.float32)}}
    pruned, masks = gp.prune(params, 0.5, structure=structure)
    assert pruned["a"]["kernel"].dtype == np.float64
    np.testing.assert_array_equal(pruned["a"]["kernel"], kernel * [0, 0, 1, 1])
    assert not np.signbit(pruned["a"]["kernel"]).any()
    assert masks["a"]["kernel"].dtype == bool
    assert pruned["b"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(masks["b"]["kernel"], [[1, 1, 0, 0]])
    pruned, _ = gp.prune(params, 0.5, where="b/kernel")
    assert pruned["a"]["kernel"] is kernel


def test_numpy_arrays_of_float64_under_jit_are_what_jax_makes_of_them():
    kernel = np.array([[1.0, 3.0, -2.0, -4.0]])
    pruned, _ = jax.jit(lambda s: gp.prune({"kernel": kernel}, s))(0.5)
    np.testing.assert_array_equal(pruned["kernel"], [[0.0, 3.0, 0.0, -4.0]])


def test_boxed_parameters_stay_boxed():
    module = nn.Dense(4, kernel_init=nn.with_partitioning(nn.ones, (None, None)))
    boxed = module.init(jax.random.key(0), jnp.ones((1, 6)))["params"]
    pruned, _ = gp.prune(boxed, 0.5)
    assert isinstance(pruned["kernel"], nn.Partitioned)
    assert float(gp.sparsity(pruned)["kernel"]) == 0.5
    state = nnx.state(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Param)
    pruned, _ = gp.prune(state, 0.5)
    assert float(gp.sparsity(pruned)["kernel"]) == 0.5


def test_bad_arguments_are_refused():
    for arguments, message in [
        (dict(sparsity=1.5), "^sparsity is 1.5; it must be"),
        (dict(sparsity=1.5, structure=gp.NM()), "^sparsity is 1.5; it must be"),
        (dict(sparsity=0.5, where="none"), "matches no parameter"),
        (dict(sparsity=0.5, structure=gp.NM(4, 8), where="b/.*"), "groups of 8 do not"),
    ]:
        with pytest.raises(ValueError, match=message):
            gp.prune(make_params(), **arguments)


@pytest.mark.parametrize("where", [None, ".*", "kernel/0/0", lambda path, leaf: True])
def test_python_numbers_in_place_of_an_array_are_named(where):
    with pytest.raises(ValueError, match="matches no parameter") as error:
        gp.prune({"kernel": [[1.0, 2.0]]}, 0.5, where=where)
    assert "'kernel/0/0' is a Python float and no array" in str(error.value)
    assert "jnp.asarray" in str(error.value)
    assert "whole path" not in str(error.value)
    with pytest.raises(ValueError, match="whole path"):
        gp.prune({"kernel": np.ones((2, 2)), "epsilon": 1e-6}, 0.5, where="none")


def test_dead_channels_are_named():
    params = {"kernel": np.ones((3, 4, 5), np.float32), "scale": np.zeros(5)}
    params["kernel"][..., 2] = -0.0
    params["kernel"][:, 1] = 0.0
    assert {k: v.tolist() for k, v in gp.dead_channels(params).items()} == {
        "kernel": [2]
    }
    assert gp.dead_channels(params, axis=-2)["kernel"].tolist() == [1]
    pruned, masks = gp.prune(make_params(), 0.5, structure=gp.Channel())
    dead = gp.dead_channels(masks)
    assert {path: len(channels) for path, channels in dead.items()} == {
        "a/kernel": 3,
        "b/kernel": 2,
    }
    assert str(dead) == str(gp.dead_channels(pruned))
    with pytest.raises(ValueError, match="under jit"):
        jax.jit(gp.dead_channels)(params)


def loss_fn(params):
    hidden = jnp.tanh(jnp.ones((3, 8)) @ params["a"]["kernel"] + params["a"]["bias"])
    return jnp.sum(hidden**2) + 10 * jnp.sum(jnp.abs(params["b"]["kernel"]))


@pytest.mark.parametrize("structure", [None, gp.Block((2, 2)), gp.NM()], ids=str)
def test_sensitivity_is_the_loss_with_one_parameter_pruned(structure):
    params = make_params()
    sparsities = [0.5] if isinstance(structure, gp.NM) else [0.0, 0.5, 0.9]
    traces = []

    def traced_loss(params):
        traces.append(None)
        return loss_fn(params)

    class IsKernel:
        __hash__ = None  # as of any dataclass with a __call__

        def __call__(self, path, leaf):
            return path[-1] == "kernel"

    result = gp.sensitivity(
        traced_loss, params, sparsities, where=IsKernel(), structure=structure
    )
    assert len(traces) == 2  # once for all sparsities, once for the baseline
    assert result.paths == ("a/kernel", "b/kernel")
    assert result.baseline == pytest.approx(float(loss_fn(params)), rel=1e-6)
    if sparsities[0] == 0:
        np.testing.assert_allclose(result.losses[:, 0], result.baseline, rtol=1e-6)
    for sparsity, losses in zip(sparsities, result.losses.T, strict=True):
        pruned, _ = gp.prune(params, sparsity, structure=structure)
        for name, loss in zip("ab", losses, strict=True):
            np.testing.assert_allclose(
                loss, loss_fn(params | {name: pruned[name]}), rtol=1e-6
            )
    assert "a/kernel" in str(result)
    assert f"{100 * sparsities[-1]:.0f} %" in str(result)


def test_sensitivity_shows_its_progress(capsys):
    pytest.importorskip("rich")
    gp.sensitivity(loss_fn, make_params(), [0.5], progress=True)
    assert "sensitivity" in capsys.readouterr().out


def test_sensitivity_in_64_bits():
    """A small rise of a large loss is none in float32."""

    def loss(params):
        return 1e8 + jnp.sum(params["kernel"])

    with enable_x64():
        params = {"kernel": jnp.full((2, 2), -1 / 3)}
        measured = gp.sensitivity(loss, params, [0.5])
    assert measured.losses.dtype == np.float64
    assert measured.losses[0, 0] - measured.baseline == pytest.approx(2 / 3)


def test_sensitivity_of_nonsense_is_refused():
    params = make_params()
    for arguments, message in [
        (dict(sparsities=[]), "sparsities is empty"),
        (dict(sparsities=0.5), "sparsities is 0.5; it must be a list"),
        (dict(sparsities=[0.5, 90]), r"^sparsities\[1\] is 90; it must be one number"),
        (
            dict(sparsities=[0.5, 0.9], structure=gp.NM()),
            r"^sparsities\[1\] is 0.9 with NM.*1 - 2/4 = 0.5",
        ),
        (dict(sparsities=[0.5], where="none"), "matches no parameter"),
    ]:
        with pytest.raises(ValueError, match=message):
            gp.sensitivity(loss_fn, params, **arguments)
    for call in (lambda: gp.prune({}, 0.5), lambda: gp.sensitivity(sum, {}, [0.5])):
        with pytest.raises(ValueError, match="have no leaves"):
            call()
    shapes = jax.eval_shape(lambda: params)
    with pytest.raises(ValueError, match="is a shape without values; sensitivity"):
        gp.sensitivity(loss_fn, shapes, [0.5])
    with pytest.raises(ValueError, match="is traced; call sensitivity outside jit"):
        jax.jit(lambda p: gp.sensitivity(loss_fn, p, [0.5]).losses)(params)
    with pytest.raises(ValueError, match="'act' is .*len.*, no array"):
        gp.sensitivity(loss_fn, params | {"act": len}, [0.5])
    with pytest.raises(ValueError, match="must return a scalar"):
        gp.sensitivity(lambda p: p["a"]["bias"], params, [0.5])


def test_sensitivity_is_drawn():
    pytest.importorskip("matplotlib")
    result = gp.Sensitivity(
        paths=tuple(f"layer{i}" for i in range(12)),
        sparsities=(0.9, 0.5),
        losses=np.arange(24, dtype=np.float32).reshape(12, 2),
        baseline=1.0,
    )
    axes = report.plot_sensitivity(result, title="Layers").axes[0]
    assert axes.get_title() == "Layers"
    assert len(axes.get_lines()) == 13  # the curves, and the loss without pruning
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "layer11" in names
    assert "layer0" not in names
    np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), [50.0, 90.0])
