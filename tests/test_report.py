"""Tables and pictures of parameters, masks, schedules and optimizer states."""

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
pytest.importorskip("matplotlib")

import matplotlib.figure
import treescope
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


def test_a_path_does_nothing_to_the_terminal():
    table = rows(report.tabulate({"a\x1b[2J\n\u202e": jnp.ones(1), "ä b": jnp.ones(2)}))
    assert list(table) == [r"a\x1b[2J\n\u202e", "ä b", "total"]


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


def curves(figure):
    """The lines of a figure that have names, by these."""
    lines = figure.axes[0].get_lines()
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in lines
        if not line.get_label().startswith("_")
    }


def test_a_schedule_is_drawn_as_the_steps_that_it_is():
    schedule = gp.polynomial_schedule(0.75, 10, 25, every=10, power=1)
    ((steps, values),) = curves(report.plot_schedule(schedule, total_steps=40)).values()
    assert steps == [0, 10, 20, 25, 40]
    np.testing.assert_allclose(values, [0, 0, 50, 75, 75])
    rules = [
        gp.Rule(None, where="a"),
        gp.Rule(gp.one_shot_schedule(0.5, 30), where="b"),
        gp.Rule(schedule, structure=gp.NM(1, 4)),
    ]
    drawn = curves(report.plot_schedule(rules))
    assert list(drawn) == ["where='b'", "where=is_weight"]
    assert drawn["where='b'"] == ([0, 30, 33], [0, 50, 50])
    # Of each four weights none, then two, then three are dropped.
    assert drawn["where=is_weight"] == ([0, 10, 20, 25, 33], [0, 0, 50, 75, 75])
    with pytest.raises(ValueError, match="traced schedule"):
        jax.eval_shape(
            lambda end: report.plot_schedule(gp.polynomial_schedule(0.5, 0, end)), 9
        )
    with pytest.raises(ValueError, match="traced schedule"):
        jax.eval_shape(
            lambda final: report.plot_schedule(gp.one_shot_schedule(final, 0)), 0.5
        )


def test_sparsities_are_bars_now_and_curves_over_time():
    params, opt_state = pruned(jax.tree.map(jnp.nan_to_num, PARAMS))
    for tree in (params, gp.sparsity(params), boxed(params)):
        axes = report.plot_sparsity(tree, title="now").axes[0]
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == ["dense/bias", "dense/kernel", "total"]
        widths = [bar.get_width() for bar in axes.patches]
        expected = gp.sparsity(params).values()
        np.testing.assert_allclose(widths, [100 * float(each) for each in expected])
    for state in (opt_state, opt_state[1], {"$x_{": opt_state[1]}):
        (bar, _) = report.plot_sparsity(state).axes[0].patches
        assert bar.get_width() == 50
    report.plot_sparsity({"$x_{": 0.5}).canvas.draw()
    logged = [gp.metrics(opt_state) | {"count": count} for count in (1, 5)]
    drawn = curves(report.plot_sparsity(logged))
    assert drawn == dict.fromkeys(["dense/kernel", "total"], ([1, 5], [50, 50]))
    with pytest.raises(ValueError, match="no metrics to draw"):
        report.plot_sparsity([])
    for empty in ({}, {"steps": jnp.arange(3)}):
        with pytest.raises(ValueError, match="no parameter to draw"):
            report.plot_sparsity(empty)


@pytest.mark.parametrize("draw", [report.plot_sparsity, report.plot_masks])
def test_traced_values_have_no_picture(draw):
    with pytest.raises(ValueError, match="traced; call plot_.* outside jit"):
        jax.eval_shape(lambda params: (draw(params), params)[1], PARAMS)


def test_names_with_an_underscore_are_in_the_legend():
    """matplotlib leaves them out."""
    scalars = {"sparsity/_orig/kernel": 0.5, "sparsity/total": 0.5, "count": 1}
    for figure, wanted in [
        (report.plot_sparsity([scalars]), ["_orig/kernel", "total"]),
        (report.plot_tradeoff({"_x": [(1, 2)]}), ["_x"]),
    ]:
        texts = figure.axes[0].get_legend().get_texts()
        assert [text.get_text().strip("\u200b") for text in texts] == wanted


def test_float64_of_numpy_is_counted_as_it_is():
    """JAX would narrow it: the smallest weight would be zero."""
    params = {"kernel": np.array([[1e-300, 1.0], [0.0, 2.0]])}
    assert gp.sparsity(params)["kernel"] == 0.25
    assert gp.masks_from_params(params)["kernel"].sum() == 3
    assert "3" in rows(report.tabulate(params))["kernel"]


def test_of_many_curves_the_sparsest_have_names():
    scalars = {f"sparsity/{i}": i / 20 for i in range(15)} | {"count": 1}
    drawn = curves(report.plot_sparsity([scalars]))
    assert set(drawn) == {str(i) for i in range(5, 15)}


def test_masks_are_images_large_ones_as_densities():
    eye = np.eye(6, dtype=bool)
    tall = np.zeros((2, 300, 3), bool)
    tall[0, :3] = True
    masks = {"eye": eye, "tall": tall, "bias": optax.MaskedNode(), "empty": eye[:0]}
    figure = report.plot_masks(masks, title="masks")
    assert [axes.get_title() for axes in figure.axes] == [
        "eye (6x6), 83.3 %",
        "tall (2x300x3), 99.5 %",
    ]
    images = [axes.get_images()[0].get_array() for axes in figure.axes]
    np.testing.assert_array_equal(images[0], eye)
    assert images[1].shape == (200, 3)  # 600 rows, three to a pixel
    assert images[1][0, 0] == 1
    assert images[1][1:].max() == 0
    many = {f"{i:02}": np.ones((2, 2 + i)) for i in range(14)}
    titles = [axes.get_title() for axes in report.plot_masks(many).axes]
    assert [title[:2] for title in titles] == [f"{i:02}" for i in range(2, 14)]
    _, opt_state = pruned({"w": jnp.ones((2, 2))})
    assert len(report.plot_masks(opt_state).axes) == 1
    with pytest.raises(ValueError, match="no mask or parameter"):
        report.plot_masks({"bias": np.ones(3)})


def test_a_trade_off_has_means_and_ranges():
    points = {"dense": [(10, 1.0), (1000, 3.0)], "sparse": [(10, [2.0, 4.0], "90 %")]}
    figure = report.plot_tradeoff(points, metric="accuracy, %", title="study")
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_ylabel()) == ("log", "accuracy, %")
    dense, sparse = axes.containers
    assert list(dense[0].get_ydata()) == [1, 3]
    assert list(sparse[0].get_ydata()) == [3]
    ((low, high),) = sparse[2][0].get_segments()
    assert (low[1], high[1]) == (2, 4)
    assert [text.get_text() for text in axes.texts] == ["", "", "90 %"]


@pytest.mark.parametrize(
    ("draw", "argument"),
    [
        (report.plot_masks, {"w": KERNEL}),
        (report.plot_schedule, gp.one_shot_schedule(0.5, 1)),
        (report.plot_sparsity, {"w": KERNEL}),
        (report.plot_tradeoff, {"dense": [(1, 2)]}),
    ],
)
def test_pictures_need_matplotlib_and_leave_pyplot_alone(monkeypatch, draw, argument):
    # Others may have imported it: Keras does.
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    assert isinstance(draw(argument), matplotlib.figure.Figure)
    assert "matplotlib.pyplot" not in sys.modules
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"gradprune_jax\[report\]"):
        draw(argument)


# Its first rendering looks at every name of NumPy, deprecated ones too.
@pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")
def test_masks_show_themselves_in_notebooks():
    _, opt_state = pruned({"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)})
    text = treescope.render_to_text(gp.get_masks(opt_state))
    assert "MaskedNode()" in text
    assert "bool(4, 4)" in text


def test_groups_are_drawn_before_and_after_the_cut():
    def fn(params, x):
        return jnp.maximum(x @ params["$w"], 0) @ params["v"]

    params = {"$w": jnp.ones((2, 3)).at[:, 1].set(0), "v": jnp.ones((3, 1))}
    shrunk = gp.shrink(fn, params, jnp.ones((1, 2)))
    axes = report.plot_groups(shrunk, title="widths").axes[0]
    axes.figure.canvas.draw()
    assert axes.get_title() == "widths"
    assert [bar.get_width() for bar in axes.patches] == [3, 2]
    assert [text.get_text() for text in axes.texts] == ["2 of 3"]
    assert len(report.plot_groups(shrunk, fixed=True).axes[0].patches) == 4
    whole = gp.shrink(lambda p, x: x @ p["v"], {"v": jnp.ones((2, 2))}, jnp.ones(2))
    with pytest.raises(ValueError, match="no group of channels"):
        report.plot_groups(whole)


def test_a_history_of_masks_is_drawn():
    rng = np.random.default_rng(0)
    masks = {
        step: {"kernel": rng.random((8, 8)) < 0.5, "bias": optax.MaskedNode()}
        for step in (0, 100, 200)
    }
    axes = report.plot_mask_history(masks, title="moves").axes[0]
    kept, grown, dropped = np.reshape(
        [bar.get_height() for bar in axes.patches], (3, 2)
    )
    for i, (one, other) in enumerate([(0, 100), (100, 200)]):
        old, new = masks[one]["kernel"], masks[other]["kernel"]
        assert kept[i] == pytest.approx(100 * (old & new).mean())
        assert grown[i] == pytest.approx(100 * (new & ~old).mean())
        assert dropped[i] == pytest.approx(-100 * (old & ~new).mean())
    assert axes.get_title() == "moves"
    with pytest.raises(ValueError, match="a history needs those of two"):
        report.plot_mask_history({0: masks[0]})
    with pytest.raises(ValueError, match="all leaves are dense"):
        report.plot_mask_history(
            {0: {"bias": optax.MaskedNode()}, 1: {"bias": optax.MaskedNode()}}
        )
