"""The demonstration: its data, its trainings, what it measures, and its picture."""

import gzip
import io
import struct

import jax
import numpy as np
import pytest

import gradprune_jax as gp
from gradprune_jax import _tree
from gradprune_jax.demo import data, learners, models, results, training

APIS = ("linen", "nnx")


@pytest.fixture(scope="module", params=APIS)
def runs(request):
    """A short training, dense and pruned, in one of the APIs."""
    shared = training.Training(data.load().limit(256), "a part", epochs=3, seed=0)
    schedule = shared.schedule(0.9)
    finished = [
        training.train(
            shared,
            learners.create(request.param, tx, shared.seed),
            prunes=prunes,
            report=lambda now: None,
        )
        for tx, prunes in (
            (shared.optimizer(), False),
            (shared.pruning_optimizer(gp.Rule(schedule)), True),
        )
    ]
    return shared, schedule, *finished


def write_idx(file, array, magic=None):
    """Writes an IDX file, compressed if its name says so."""
    magic = 0x0800 | array.ndim if magic is None else magic
    content = struct.pack(f">I{array.ndim}I", magic, *array.shape) + array.tobytes()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


@pytest.fixture
def idx_folder(tmp_path):
    """A full IDX set of a few images, half of its files compressed."""
    for part, count, suffix in (("train", 6, ""), ("t10k", 3, ".gz")):
        images = np.arange(count * 28 * 28).reshape(count, 28, 28).astype(np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", labels)
    return tmp_path


def test_the_bundled_images_are_whole_and_split_without_overlap():
    dataset = data.load()
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    images = np.concatenate([dataset.train_images, dataset.test_images])
    assert dataset.train_images.shape == (8000, 28, 28, 1)
    assert dataset.test_images.shape == (2000, 28, 28, 1)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(labels), [1000] * 10)
    assert min(np.bincount(dataset.test_labels)) > 150


def test_a_folder_replaces_the_bundled_images(idx_folder):
    dataset = data.load(idx_folder)
    assert dataset.train_images.shape == (6, 28, 28, 1)
    np.testing.assert_array_equal(dataset.train_labels, range(6))
    np.testing.assert_array_equal(dataset.test_labels, range(3))
    assert dataset.train_images[0, 0, 5, 0] == 5


def damage(name):
    """What to do to a folder of IDX files, and what the error must say."""
    images, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    zeros = np.zeros((6, 28, 28), np.uint8)
    return {
        "missing": (lambda f: (f / labels).unlink(), labels, "put all four"),
        "magic": (
            lambda f: write_idx(f / images, zeros, 2049),
            images,
            "2049, not 2051",
        ),
        "short": (lambda f: (f / images).write_bytes(b"\0" * 7), images, "has 7 bytes"),
        "cut": (
            lambda f: (f / labels).write_bytes((f / labels).read_bytes()[:-1]),
            labels,
            "has 13 bytes, but its header promises 14",
        ),
        "gzip": (
            lambda f: (f / labels).write_bytes(gzip.compress(b"0" * 99)[:-9]),
            labels,
            "damaged gzip",
        ),
        "pixels": (
            lambda f: write_idx(f / images, zeros[:, :27]),
            images,
            "6 images of 27x28",
        ),
        "none": (lambda f: write_idx(f / images, zeros[:0]), images, "0 images"),
        "count": (
            lambda f: write_idx(f / labels, np.zeros(5, np.uint8)),
            labels,
            "5 labels for the 6 images",
        ),
        "label": (
            lambda f: write_idx(f / labels, np.array([0, 1, 2, 10, 4, 5], np.uint8)),
            labels,
            "label 3 is 10; labels must be 0 to 9",
        ),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["missing", "magic", "short", "cut", "gzip", "pixels", "none", "count", "label"],
)
def test_an_error_names_the_file_the_value_and_the_fix(idx_folder, name):
    spoil, file, message = damage(name)
    spoil(idx_folder)
    with pytest.raises(data.DataError) as caught:
        data.load(idx_folder)
    assert file in str(caught.value)
    assert str(idx_folder) in str(caught.value)
    assert message in str(caught.value)


def test_both_apis_have_one_network():
    def leaves(api):
        learner = learners.create(api, training_of(64).optimizer(), 0)
        return {
            leaf.name: (leaf.value.shape, leaf.value.dtype)
            for leaf in _tree.named_leaves(learner.params)
        }

    assert leaves("linen") == leaves("nnx")
    assert models.FIRST_DENSE_KERNEL in leaves("linen")


@pytest.mark.parametrize("api", APIS)
def test_the_seed_decides_the_initialisation(api):
    shared = training_of(64)

    def kernel(seed, tx):
        leaves = _tree.named_leaves(learners.create(api, tx, seed).params)
        return np.concatenate([np.ravel(leaf.value) for leaf in leaves])

    dense = kernel(0, shared.optimizer())
    np.testing.assert_array_equal(
        dense, kernel(0, shared.pruning_optimizer(gp.Rule(shared.schedule(0.9))))
    )
    assert (dense != kernel(1, shared.optimizer())).any()


def training_of(images, epochs=1, seed=0):
    return training.Training(data.load().limit(images), "a part", epochs, seed)


def test_batches_are_the_same_each_time_and_see_each_image_once_an_epoch():
    shared = training_of(130, epochs=3)
    batches = list(shared.batches())
    assert len(batches) == shared.steps == 6
    for start in (0, 2, 4):
        seen = np.concatenate(batches[start : start + 2])
        assert len(set(seen)) == 128
    np.testing.assert_array_equal(batches, list(shared.batches()))
    assert (batches[0] != batches[2]).any()
    other = list(training_of(130, epochs=3, seed=1).batches())
    assert (batches[0] != other[0]).any()


@pytest.mark.parametrize("epochs", [*range(1, 12), 100, 1499, 11_250])
def test_the_window_ends_within_any_training(epochs):
    shared = training_of(64, epochs)
    schedule = shared.schedule(0.9)
    plan = gp.plan(schedule, {"kernel": np.ones((4, 4))}, total_steps=shared.steps)
    assert 1 <= len(plan.update_steps[0]) <= 80
    assert schedule.end_step <= shared.steps - 1


def test_every_pruned_weight_is_zero(runs):
    _, _, _, pruned = runs
    gp.check_pruned(pruned.params, pruned.opt_state)
    masks = _tree.named_leaves(gp.get_masks(pruned.opt_state))
    params = {leaf.name: leaf.value for leaf in _tree.named_leaves(pruned.params)}
    assert len(masks) == 4
    for mask in masks:
        weights = np.asarray(params[mask.name])
        assert not weights[~np.asarray(mask.value)].view(np.uint32).any()
        assert mask.value.sum() == mask.value.size - np.round(
            np.float64(np.float32(0.9)) * mask.value.size
        )


def test_the_sparsity_curve_is_the_schedule(runs):
    shared, schedule, _, pruned = runs
    expected = [float(schedule.sparsity(step)) for step in range(shared.steps)]
    np.testing.assert_allclose(pruned.sparsities, expected, atol=1e-4)
    assert (np.diff(pruned.sparsities) >= 0).all()


def test_dense_and_pruned_are_one_training_until_the_first_mask_update(runs):
    _, schedule, dense, pruned = runs
    begin = schedule.begin_step + 1
    np.testing.assert_allclose(dense.losses[:begin], pruned.losses[:begin], rtol=1e-4)
    assert dense.accuracies[0] == pruned.accuracies[0]
    assert dense.evaluated_at == pruned.evaluated_at
    assert (dense.losses[begin + 1 :] != pruned.losses[begin + 1 :]).any()
    assert dense.losses[-1] < dense.losses[0]


def test_the_summary_counts_what_is_there(runs):
    shared, schedule, dense, pruned = runs
    summary = results.summarise(shared, gp.Rule(schedule), dense, pruned)
    for name, run in (("dense", dense), ("pruned", pruned)):
        sizes = [np.size(leaf) for leaf in jax.tree.leaves(run.params)]
        nonzero = [np.count_nonzero(leaf) for leaf in jax.tree.leaves(run.params)]
        assert summary[name]["parameters"] == sum(sizes)
        assert summary[name]["parameters_nonzero"] == sum(nonzero)
        assert summary[name]["accuracy"] == run.correct[-1] / 64
    kept = summary["pruned"]["prunable_nonzero"]
    assert kept == summary["pruned"]["prunable"] - summary["pruned_weights"]
    assert summary["pruned_weights_not_zero"] == 0


def test_a_negative_zero_is_counted_as_broken():
    weights = np.array([[0.0, -0.0], [1.0, 0.5]], np.float32)
    mask = np.array([[False, False], [True, False]])
    described = results._describe("kernel", weights, mask)
    assert (described["pruned"], described["pruned_not_zero"]) == (3, 2)


def test_the_picture_has_a_pixel_for_each_weight_of_the_mask(runs):
    pytest.importorskip("matplotlib")
    from matplotlib import image

    from gradprune_jax.demo import figure

    shared, schedule, dense, pruned = runs
    summary = results.summarise(shared, gp.Rule(schedule), dense, pruned)
    stream = io.BytesIO()
    figure.draw(dense, pruned, summary).savefig(stream, format="png")
    stream.seek(0)
    pixels = np.round(255 * image.imread(stream)[..., :3]).astype(int)
    left, top = 112, pixels.shape[0] - 75 - 472  # where the mask's panel stands
    panel = pixels[top : top + 472, left : left + 1816]
    mask = results.mask_of(pruned, models.FIRST_DENSE_KERNEL)
    is_kept = (panel == figure._KEPT).all(axis=-1)
    assert is_kept.sum() == mask.sum()
    tile = mask.reshape(7, 7, 64, 256)[2, 3]
    np.testing.assert_array_equal(is_kept[2 * 68 :, 3 * 260 :][:64, :256], tile)
