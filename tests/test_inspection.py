"""Sparsity, metrics and the check of the promise; whole nnx models."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from gradprune_jax import _inspection
from gradprune_jax._top_k.counts import Count, count_true
from tests.one_step import SCHEDULE, train_one_step


class TestSparsity:
    def test_of_parameters_and_of_masks(self):
        _, params, state = train_one_step()
        assert {k: float(v) for k, v in gp.sparsity(params).items()} == {
            "a/bias": 0.0,
            "a/kernel": 0.5,
            "b/kernel": 0.5,
            "total": pytest.approx(18 / 42),
        }
        masks = gp.sparsity(gp.get_masks(state))
        assert {k: float(v) for k, v in masks.items()} == {
            "a/kernel": 0.5,
            "b/kernel": 0.5,
            "total": 0.5,
        }

    def test_refuses_shapes_by_name(self):
        with pytest.raises(ValueError, match="'a/kernel' has a shape but no values"):
            gp.sparsity({"a": {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}})

    def test_counts_zeros_of_both_signs_and_no_integers_or_keys(self):
        tree = {
            "w": jnp.array([0.0, -0.0, jnp.nan, 1.0]),
            "steps": jnp.zeros(3, jnp.int32),
            "key": jax.random.key(0),
            "empty": jnp.zeros((0, 2)),
        }
        assert {k: float(v) for k, v in gp.sparsity(tree).items()} == {
            "w": 0.5,
            "empty": 0.0,
            "total": 0.5,
        }
        assert float(gp.sparsity({})["total"]) == 0

    def test_a_parameter_named_total_does_not_hide_the_total(self):
        fractions = gp.sparsity({"total": jnp.zeros(3), "w": jnp.ones(1)})
        assert {k: float(v) for k, v in fractions.items()} == {
            "['total']": 1.0,
            "w": 0.0,
            "total": 0.75,
        }

    def test_paths_that_print_alike_are_kept_apart(self):
        tree = {"a": {"0": jnp.zeros(2)}, "a/0": jnp.ones(2)}
        assert set(gp.sparsity(tree)) == {"['a']['0']", "['a/0']", "total"}

    def test_counts_beyond_32_bits(self):
        """A count in uint32 is 0 for 2^32 zeros. XLA sums these without memory."""

        @jax.jit
        def fractions(zero):
            return gp.sparsity(
                {
                    "a": jnp.broadcast_to(zero, (2**16, 2**17)),
                    "b": jnp.broadcast_to(zero, (2**20, 2**3, 2**9)),
                    "c": jnp.broadcast_to(zero + 1, (2**17, 2**16)),
                    "d": jnp.broadcast_to(zero, (2**31, 2**2)),
                }
            )

        found = {
            name: float(value) for name, value in fractions(jnp.float32(0)).items()
        }
        assert found == {"a": 1, "b": 1, "c": 0, "d": 1, "total": np.float32(5 / 7)}

        @jax.jit
        def revived(one):
            shape = (2**13, 2**10, 2**11)
            pruned = jnp.broadcast_to(one == 0, shape)
            return _inspection._failures(jnp.broadcast_to(one, shape), pruned)

        counts = jax.tree.map(
            int,
            [count.integers() for count in revived(jnp.float32(1))],
        )
        assert counts == [0, 2**34, 0]

    @pytest.mark.parametrize("shape", [(), (0, 3), (5,), (70_000, 3)], ids=str)
    def test_counts_are_those_of_numpy(self, shape):
        flags = np.random.default_rng(0).random(shape) < 0.7
        count = jax.jit(count_true)(jnp.asarray(flags))
        assert count.integers() == np.sum(flags)

    def test_all_is_exactly_1_at_any_size(self):
        for size in (2**24 + 1, 2**32 - 1, 3 * 2**33 + 12_345):
            lanes = map(jnp.uint32, divmod(size, 2**32))
            assert _inspection._fraction(Count(*lanes), size) == 1

    def test_of_leaves_on_different_devices(self):
        """JAX adds no scalars of different devices, nor of another order of them."""
        devices = jax.devices()
        params = {
            name: jax.device_put(
                jnp.zeros((8, 4)).at[:4].set(1),
                NamedSharding(Mesh(np.array(mesh), "x"), P("x")),
            )
            for name, mesh in {
                "a": devices[:4],
                "b": devices[4:],
                "c": devices[3::-1],
                "d": devices[:1],
            }.items()
        } | {"host": np.zeros(32, np.float32)}
        assert {k: float(v) for k, v in gp.sparsity(params).items()} == {
            **dict.fromkeys("abcd", 0.5),
            "host": 1.0,
            "total": np.float32(0.6),
        }
        states = [
            gp.GradualPruneState(
                jax.device_put(
                    jnp.int32(i), NamedSharding(params[name].sharding.mesh, P())
                ),
                {n: params[n] != 0 if n == name else optax.MaskedNode() for n in "ab"},
            )
            for i, name in enumerate("ab")
        ]
        metrics = {k: float(v) for k, v in gp.metrics(states).items()}
        assert metrics == {
            "count": 1,
            "sparsity/a": 0.5,
            "sparsity/b": 0.5,
            "sparsity/total": 0.5,
        }

    def test_metrics_of_a_state_that_was_restored_as_numpy_arrays(self):
        params = {"kernel": jnp.eye(8)}
        tx = gp.with_sparse_training(optax.adam(1e-3), 0.5, end_step=9)
        state = jax.tree.map(np.asarray, tx.init(params))
        assert gp.metrics(state)["moved"] == 0

    def test_metrics_are_scalars_computable_under_jit(self):
        _, _, state = train_one_step()
        eager, jitted = gp.metrics(state), jax.jit(gp.metrics)(state)
        assert set(eager) == {
            "count",
            "sparsity/total",
            "sparsity/a/kernel",
            "sparsity/b/kernel",
        }
        for name, value in eager.items():
            assert value.shape == ()
            assert value == jitted[name]


class TestCheckPruned:
    def test_names_every_path_and_its_count(self):
        _, params, state = train_one_step()
        gp.check_pruned(params, state)
        revived = jax.tree.map(lambda leaf: leaf + 1, params)
        with pytest.raises(
            ValueError, match="'a/kernel': 12 pruned.*'b/kernel': 6 pruned"
        ):
            gp.check_pruned(revived, state)
        params["a"]["bias"] = params["a"]["bias"].at[2].set(jnp.inf)
        with pytest.raises(ValueError, match="'a/bias': 1 weights are not finite"):
            gp.check_pruned(params, state)

    @pytest.mark.parametrize(
        ("value", "pruned", "says", "does_not_say"),
        [
            (jnp.nan, False, "1 weights are not finite.*diverged", "last link|-0.0"),
            (jnp.nan, True, "1 weights are not finite.*diverged", "last link|-0.0"),
            (
                0.5,
                True,
                "1 pruned weights are not zero.*last link.*mechanize.*lookahead",
                "diverged|-0.0",
            ),
            (-0.0, True, r"1 pruned weights are -0\.0.*apply_masks", "last|diverged"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("layer", ["a", "b"])  # float32 and bfloat16
    def test_advice_depends_on_what_it_found(
        self, layer, value, pruned, says, does_not_say
    ):
        _, params, state = train_one_step()
        mask = gp.get_masks(state)[layer]["kernel"]
        at = tuple(np.argwhere(np.asarray(mask) != pruned)[0])
        params[layer]["kernel"] = params[layer]["kernel"].at[at].set(value)
        with pytest.raises(ValueError, match=f"'{layer}/kernel': {says}") as error:
            gp.check_pruned(params, state)
        assert not re.search(does_not_say, str(error.value))

    def test_takes_every_floating_dtype(self):
        keep = jnp.array([True, False])
        for dtype in ("float8_e4m3fn", "float8_e5m2", "float16", "float32"):
            weights = jnp.array([1.0, -0.0], dtype)
            state = gp.GradualPruneState(jnp.int32(0), {"w": keep})
            with pytest.raises(ValueError, match="^'w': 1 pruned weights are -0.0"):
                gp.check_pruned({"w": weights}, state)
            gp.check_pruned(gp.apply_masks({"w": weights}, {"w": keep}), state)

    def test_a_live_weight_may_be_zero_of_either_sign(self):
        _, params, state = train_one_step()
        mask = gp.get_masks(state)["a"]["kernel"]
        params["a"]["kernel"] = jnp.where(mask, -0.0, params["a"]["kernel"])
        params["a"]["bias"] = -jnp.zeros(6)
        gp.check_pruned(params, state)

    def test_is_refused_under_jit(self):
        _, params, state = train_one_step()
        with pytest.raises(ValueError, match="cannot run under jit"):
            jax.jit(gp.check_pruned)(params, state)

    def test_refuses_parameters_of_another_model(self):
        _, params, state = train_one_step()
        with pytest.raises(ValueError, match="masks do not fit"):
            gp.check_pruned({"a": params["a"]}, state)


class Network(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List(
            [nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)]
        )
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.tied = self.layers[0]
        self.activation = jax.nn.relu


class TestWholeNnxModels:
    """A model also holds functions, batch statistics, random keys and shared layers."""

    def test_every_function_takes_one(self):
        model = Network()
        tx = optax.chain(optax.sgd(0.1), gp.gradual_prune(SCHEDULE))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        gp.check_pruned(model, optimizer)
        masks = gp.masks_from_params(model, where=".*/kernel")
        masks["layers"][0]["kernel"] = jnp.eye(4, dtype=bool)
        optimizer.opt_state = gp.set_masks(optimizer.opt_state, masks)
        with pytest.raises(ValueError, match="^'layers/0/kernel': 12 pruned"):
            gp.check_pruned(model, optimizer)

        pruned = gp.apply_masks(model, gp.get_masks(optimizer))
        gp.check_pruned(pruned, optimizer)
        assert isinstance(pruned, Network)
        assert pruned.tied is pruned.layers[0]
        assert pruned.activation is jax.nn.relu
        np.testing.assert_array_equal(pruned.tied.kernel[...] != 0, np.eye(4))
        assert (model.tied.kernel[...] != 0).all()
        assert gp.sparsity(pruned)["layers/0/kernel"] == 0.75
        assert set(gp.sparsity(pruned)) == {
            *("layers/0/kernel", "layers/0/bias", "norm/bias", "norm/scale", "total")
        }

    def test_a_nan_is_named_as_a_user_writes_its_path(self):
        model = Network()
        optimizer = nnx.Optimizer(model, gp.gradual_prune(SCHEDULE), wrt=nnx.Param)
        model.norm.bias[...] = jnp.full(4, jnp.nan)
        with pytest.raises(ValueError, match="^'norm/bias': 4 weights are not finite"):
            gp.check_pruned(model, optimizer)
        with pytest.raises(ValueError, match=r"the keys \['weight'\]") as error:
            gp.apply_masks(model, {"weight": jnp.ones(2, bool)})
        assert "_pytree" not in str(error.value)
