"""Tables of parameters, masks and optimizer states."""

import io
import sys

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradprune_jax as gp

pytest.importorskip("rich")

from rich.console import Console

from gradprune_jax import report

KERNEL = np.array([[0.0, 0.5, -1.0], [0.0, 0.0, np.nan]], np.float32)
PARAMS = {"dense": {"bias": np.ones(3, np.float32), "kernel": KERNEL}}
EXPECTED = {
    "dense/bias": ["3", "float32", "3", "3", "0.00 %"],
    "dense/kernel": ["2x3", "float32", "6", "3", "50.00 %"],
    "total": ["", "", "9", "6", "33.33 %"],
}


def rows(table):
    """The printed cells of a table, by the first."""
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    lines = console.file.getvalue().splitlines()
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in lines
        if line.startswith("│")
    ]
    return {first: rest for first, *rest in cells}


def pruned(params, sparsity=0.5):
    """Parameters after one pruning update, and the optimizer's state."""
    tx = optax.chain(
        optax.sgd(0.1), gp.gradual_prune(gp.one_shot_schedule(sparsity, 0))
    )
    opt_state = tx.init(params)
    updates, opt_state = tx.update(params, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def boxed(params):
    return jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,)), params)


def nnx_state(params):
    return nnx.State(jax.tree.map(lambda leaf: nnx.Param(jnp.asarray(leaf)), params))


@pytest.mark.parametrize("wrap", [dict, flax.core.freeze, boxed, nnx_state])
def test_parameters_of_every_kind_have_one_table(wrap):
    assert rows(report.tabulate(wrap(PARAMS))) == EXPECTED


@pytest.mark.parametrize("wrap", [dict, boxed, nnx_state])
@pytest.mark.parametrize("as_state", [True, False])
def test_masks_say_what_is_pruned(wrap, as_state):
    _, opt_state = pruned(jax.tree.map(jnp.nan_to_num, PARAMS))
    masks = opt_state if as_state else gp.get_masks(opt_state)
    table = rows(report.tabulate(wrap(PARAMS), masks))
    status = {"dense/bias": "dense", "dense/kernel": "pruned", "total": ""}
    assert table == {name: [*EXPECTED[name], status[name]] for name in EXPECTED}


def test_an_optimizer_state_shows_its_masks():
    _, opt_state = pruned(jax.tree.map(jnp.nan_to_num, PARAMS), sparsity=2 / 3)
    expected = {
        "dense/bias": ["", "", "", "", "", "dense"],
        "dense/kernel": ["2x3", "bool", "6", "2", "66.67 %", "pruned"],
        "total": ["", "", "6", "2", "66.67 %", ""],
    }
    assert rows(report.tabulate(opt_state)) == expected
    assert rows(report.tabulate(gp.get_masks(opt_state))) == expected


def test_an_nnx_optimizer_shows_its_masks():
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    table = rows(report.tabulate(nnx.state(model, nnx.Param), optimizer))
    assert table["kernel"] == ["4x2", "float32", "8", "8", "0.00 %", "pruned"]
    assert rows(report.tabulate(optimizer))["kernel"][2:] == [
        *("8", "8", "0.00 %", "pruned")
    ]


def test_counts_are_those_of_the_pruned_weights():
    params, opt_state = pruned({"w": jax.random.normal(jax.random.key(0), (37, 41))})
    kept = int(np.count_nonzero(params["w"]))
    weights, nonzero, *_ = rows(report.tabulate(params, opt_state))["w"][2:]
    assert (weights, nonzero) == (f"{37 * 41:,}", f"{kept:,}")


def test_unusual_leaves():
    tree = {
        "empty": jnp.zeros((0, 4)),
        "half": jnp.zeros(2, jnp.bfloat16),
        "key": jax.random.key(0),
        "scalar": jnp.float32(2),
        "step": jnp.int32(3),
    }
    table = rows(report.tabulate(tree))
    assert list(table) == ["empty", "half", "scalar", "total"]
    assert table["empty"] == ["0x4", "float32", "0", "0", "0.00 %"]
    assert table["scalar"][:2] == ["scalar", "float32"]
    assert rows(report.tabulate({}))["total"][2:] == ["0", "0", "0.00 %"]


def test_a_path_is_no_markup():
    table = rows(report.tabulate({"a": {"0": jnp.ones(1)}, "a/0": jnp.ones(2)}))
    assert list(table) == ["['a']['0']", "['a/0']", "total"]


def test_the_title_is_printed():
    assert report.tabulate(PARAMS, title="after training").title == "after training"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jax.eval_shape(lambda: PARAMS),), "'dense/bias' has a shape but no values"),
        ((PARAMS, {"other": np.ones(2, bool)}), "masks do not fit the tree"),
        ((PARAMS, optax.adam(0.1).init(PARAMS)), "no GradualPruneState"),
    ],
)
def test_errors_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        report.tabulate(*arguments)


def test_without_rich_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.table", None)
    with pytest.raises(ImportError, match=r"gradprune_jax\[report\]"):
        report.tabulate(PARAMS)
