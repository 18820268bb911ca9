"""The storage report, and the sparse arrays of jax.experimental."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import gradprune_jax as gp

pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

import safetensors.numpy

from gradprune_jax import export
from tests.sparse_arrays import make_array


def test_the_report_counts_the_bytes_of_the_files(tmp_path):
    params = {"a": {"kernel": make_array((33, 40), "bfloat16")}, "b": np.ones(3)}
    report = export.storage_report(params)
    export.save_sparse(tmp_path / "model", params)
    stored = safetensors.numpy.load_file(tmp_path / "model")
    written = sum(array.nbytes for array in stored.values())
    assert report.total["bitmask"] == written
    assert report.total["dense"] == 2 * 33 * 40 + 3 * 8
    nonzero = report.leaves[0].nonzero
    matrix = sparse.BCOO.fromdense(jnp.asarray(params["a"]["kernel"]), nse=nonzero)
    assert report.leaves[0].nbytes["coo"] == matrix.data.nbytes + matrix.indices.nbytes
    assert 0 < report.zstd < report.total["dense"]
    assert 0 < report.gzip < report.total["dense"]
    assert report.leaves[0].nbytes["nm"] is None
    assert "dense, compressed: gzip" in str(report)


def test_a_pattern_is_counted_by_zeros_and_packed_by_bits():
    kernel = np.float32([[1, -0.0, 2, 0, 3, 4, 5, 0], [0] * 8, [0] * 8, [0] * 8])
    leaf = export.storage_report({"k": kernel}, pattern=gp.NM(2, 4, -1)).leaves[0]
    assert (leaf.nonzero, leaf.negative_zeros) == (6, 1)
    assert leaf.in_pattern == 7 / 8
    assert leaf.nbytes["nm"] is None
    kernel[0, 6] = 0
    leaf = export.storage_report({"k": kernel}, pattern=gp.NM(2, 4, -1)).leaves[0]
    assert leaf.in_pattern == 1
    assert leaf.nbytes["nm"] is None  # -0.0 needs a place
    leaf = export.storage_report({"k": kernel}, pattern=gp.NM(2, 3)).leaves[0]
    assert (leaf.in_pattern, leaf.nbytes["nm"]) == (None, None)


def test_patterns_are_packed_where_they_hold():
    kernel = np.arange(1.0, 65.0, dtype=np.float32).reshape(16, 4)
    pruned, _ = gp.prune({"kernel": kernel}, 0.5, structure=gp.NM(2, 4))
    report = export.storage_report(pruned, compress=False)
    # Half of the values, and two bits for the place of each.
    assert report.leaves[0].nbytes["nm"] == 32 * 4 + 32 * 2 // 8
    assert report.gzip is None
    other = export.storage_report(pruned, pattern=gp.NM(1, 4), compress=False)
    assert other.leaves[0].nbytes["nm"] is None
    with pytest.raises(ValueError, match="pattern is \\(2, 4\\); it must be NM"):
        export.storage_report(pruned, pattern=(2, 4))


@pytest.mark.parametrize(
    "read", [export.storage_report, export.to_bcoo, export.to_bcsr]
)
def test_values_that_are_not_known_are_refused(read):
    params = {"kernel": np.eye(4)}
    with pytest.raises(ValueError, match="'kernel' is a shape without values"):
        read(jax.eval_shape(lambda: params))
    with pytest.raises(ValueError, match="'kernel' is traced; call .* outside jit"):
        jax.eval_shape(lambda p: (read(p), p)[1], params)


def test_sparse_arrays_multiply_like_dense_ones():
    params = {
        "kernel": np.diag([1.0, 2.0, -0.0]).astype(np.float32),
        "bias": np.ones(3),
    }
    for convert, kind in [(export.to_bcoo, sparse.BCOO), (export.to_bcsr, sparse.BCSR)]:
        converted = convert(params)
        assert isinstance(converted["kernel"], kind)
        assert converted["kernel"].nse == 2
        np.testing.assert_array_equal(
            converted["kernel"] @ jnp.arange(3.0), params["kernel"] @ np.arange(3.0)
        )
        assert converted["bias"] is params["bias"]
        assert convert(params, max_density=0.1)["kernel"] is params["kernel"]
        with pytest.raises(ValueError, match="max_density is 2"):
            convert(params, max_density=2)
    small = export.to_bcoo({"kernel": np.array([[1, 0], [0, 1e-40]], np.float32)})
    np.testing.assert_array_equal(small["kernel"].indices, [[0, 0], [1, 1]])
    assert np.asarray(small["kernel"].data)[1].view(np.uint32) != 0
    conv = {"kernel": np.zeros((3, 3, 2, 2), np.float32)}
    assert export.to_bcsr(conv)["kernel"] is conv["kernel"]
