"""Sparse files: parameters in safetensors, sparse ones as non-zeros and a bit mask."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _bitmask, _paths
from gradprune_jax._checks import check_fraction, is_traced

Layout = Literal["sparse-bitmask", "compressed-tensors"]

# What the format may hold that NumPy alone does not know comes from ml_dtypes, which
# JAX brings.
_PARTS = _bitmask.Bitmask._fields
_LAYOUT = "gradprune_jax.layout"
_VERSION = "gradprune_jax.version"
_SPARSE = "gradprune_jax.sparse"
_MODEL, _CONFIG = "model.safetensors", "config.json"


def save_sparse(
    path: str | os.PathLike[str],
    params: Any,
    *,
    layout: Layout = "sparse-bitmask",
    max_density: float = 0.9,
    overwrite: bool = False,
) -> None:
    """Writes parameters to one safetensors file, the sparse ones as what is left.

    A leaf with at most `max_density` non-zeros becomes ``<name>.compressed``, its
    non-zeros in C order, ``<name>.bitmask``, a bit for every weight, ``<name>.shape``
    and ``<name>.row_offsets``, if that is smaller. All others are stored as they are.
    The file is there as a whole or not at all.

    Args:
      path: of the file; with the layout ``"compressed-tensors"`` of a folder for
        ``model.safetensors`` and ``config.json``.
      params: any pytree of arrays, plain or boxed; not traced.
      layout: ``"sparse-bitmask"`` names arrays by their paths, keys joined by ``/``.
        ``"compressed-tensors"`` names and turns them as that library (0.14, the last
        that reads sparse models) expects of PyTorch: ``Dense_0/kernel`` of shape
        (in, out) becomes ``Dense_0.weight`` of shape (out, in), kernels of
        convolutions go from HWIO to OIHW, ``embedding`` and ``scale`` become
        ``weight``, and of a sparse array the name is without ``.weight``.
      max_density: the fraction of non-zeros above which a leaf is stored dense, 0 to 1.
      overwrite: whether a file of that name may be replaced.

    Raises:
      FileExistsError: if there is such a file, and it may not be replaced.
      ImportError: if safetensors is not installed.
      ValueError: if an argument is not valid, or a leaf is no array of a dtype that
        safetensors holds.

    Example:
      >>> import tempfile
      >>> params = {"dense": {"kernel": np.eye(64, dtype=np.float32)}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_sparse(f"{folder}/model.safetensors", params)
      ...     loaded = load_sparse(f"{folder}/model.safetensors")
      >>> np.testing.assert_array_equal(loaded["dense"]["kernel"], np.eye(64))
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}; it must be one of {get_args(Layout)}.")
    check_fraction("max_density", max_density)
    file = pathlib.Path(path)
    arrays = _arrays(params)
    if layout == "sparse-bitmask":
        tensors, sparse = _tensors(arrays, max_density)
        _write(file, tensors, layout, sparse, overwrite)
        return
    turned = _as_torch(arrays)
    tensors, sparse = _tensors(turned, max_density, suffix=".weight")
    folder = file
    for name in (_MODEL, _CONFIG):
        _check_free(folder / name, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / _MODEL, tensors, layout, sparse, overwrite)
    config = json.dumps(_config(turned, sparse), indent=2) + "\n"
    _replace(folder / _CONFIG, lambda temporary: temporary.write_text(config))


def load_sparse(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Reads what :func:`save_sparse` wrote, to the last bit.

    Args:
      path: of the file. A safetensors file of dense arrays is read too.
      like: parameters, or their shapes, whose tree, boxes and shardings the result
        takes on. None makes nested dicts of NumPy arrays, by splitting names at ``/``.

    Returns:
      The parameters: arrays in the tree of `like`, NumPy's where it has NumPy's and
      JAX's elsewhere; or NumPy arrays in dicts.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if safetensors is not installed.
      ValueError: if the file is damaged or of another format, or does not fit `like`;
        naming the file and the array.

    Example:
      >>> load_sparse("no/such/file")
      Traceback (most recent call last):
      ...
      FileNotFoundError: no/such/file: is no file.
    """
    file = pathlib.Path(path)
    arrays = dict(_read(file))
    return _nested(file, arrays) if like is None else _restored(file, arrays, like)


def _arrays(params: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree by name, on the host."""
    arrays = {}
    for leaf in _paths.named_leaves(params):
        if is_traced(leaf.value):
            raise ValueError("save_sparse writes values and cannot run under jit.")
        if not hasattr(leaf.value, "dtype") or jnp.issubdtype(
            leaf.value.dtype, jax.dtypes.extended
        ):
            raise ValueError(
                f"{leaf.name!r} is {type(leaf.value).__name__}, not an array of "
                "numbers; save the parameters alone."
            )
        if not getattr(leaf.value, "is_fully_addressable", True):
            raise ValueError(
                f"{leaf.name!r} lies on devices of other processes too; gather it "
                "first: jax.experimental.multihost_utils.process_allgather."
            )
        arrays[leaf.name] = np.asarray(leaf.value)
    return arrays


def _tensors(
    arrays: Mapping[str, np.ndarray], max_density: float, suffix: str = ""
) -> tuple[dict[str, np.ndarray], list[str]]:
    """What to store under which name, and the names of sparse arrays."""
    tensors: dict[str, np.ndarray] = {}
    sparse = []
    for name, array in arrays.items():
        stored = {name: array}
        if _is_sparse(array, max_density):
            packed = _bitmask.compress(array)
            if packed.nbytes < array.nbytes:
                prefix = name.removesuffix(suffix)
                stored = {
                    f"{prefix}.{part}": value
                    for part, value in packed._asdict().items()
                }
                sparse.append(prefix)
        taken = stored.keys() & tensors.keys()
        if taken:
            raise ValueError(
                f"{name!r} and another array would both be stored as "
                f"{sorted(taken)[0]!r}; rename one of them."
            )
        tensors |= stored
    return tensors, sparse


def _is_sparse(array: np.ndarray, max_density: float) -> bool:
    """Whether an array has an axis, weights, and few enough that are not zero."""
    is_floating = jnp.issubdtype(array.dtype, jnp.floating)
    if not array.ndim or not array.size or not is_floating:
        return False
    nonzero = np.count_nonzero(_bitmask.nonzero_bits(array))
    return bool(nonzero <= max_density * array.size)


def _write(
    file: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    layout: Layout,
    sparse: list[str],
    overwrite: bool,
) -> None:
    """Writes a safetensors file as a whole or not at all."""
    safetensors = _safetensors()
    from gradprune_jax import __version__

    _check_free(file, overwrite)
    metadata = {_LAYOUT: layout, _VERSION: __version__, _SPARSE: json.dumps(sparse)}
    # Arrays of no axis must stay arrays, and rows must lie one after the other.
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        _replace(file, lambda to: safetensors.numpy.save_file(arrays, to, metadata))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file}: cannot be written: {error}.") from None


def _read(file: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a file by name, one at a time."""
    safetensors = _safetensors()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: is no file.")
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            names = list(opened.keys())
            read = _reader(file, opened)
            sparse = _sparse_names(file, metadata, names)
            parts = {f"{name}.{part}" for name in sparse for part in _PARTS}
            for name in names:
                if name not in parts:
                    yield name, read(name)
            for name in sparse:
                yield name, _decompress(file, name, read)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{file}: is no safetensors file, or a damaged one: {error}."
        ) from None


def _reader(file: pathlib.Path, opened: Any) -> Any:
    """A function from a name to its array, whatever its dtype."""
    whole: dict[str, np.ndarray] = {}

    def read(name: str) -> np.ndarray:
        try:
            return np.asarray(opened.get_tensor(name))
        except AttributeError:  # a dtype that NumPy does not have: 8-bit floats
            if not whole:
                whole.update(_deserialized(file))
            return whole[name]

    return read


def _deserialized(file: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a file that has 8-bit floats, which NumPy's reader refuses."""
    names = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BF16": "bfloat16"}
    arrays = {}
    for name, tensor in _safetensors().deserialize(file.read_bytes()):
        known = names.get(tensor["dtype"])
        if known is not None:
            flat = np.frombuffer(tensor["data"], jnp.dtype(known))
            arrays[name] = flat.reshape(tensor["shape"])
    return arrays


def _sparse_names(
    file: pathlib.Path, metadata: Mapping[str, str], names: list[str]
) -> list[str]:
    """The names of sparse arrays, by the file's own word or by their parts."""
    if _SPARSE in metadata:
        try:
            sparse = [str(name) for name in json.loads(metadata[_SPARSE])]
        except (ValueError, TypeError):
            raise ValueError(
                f"{file}: its metadata {_SPARSE!r} is no JSON list of names; write the "
                "file again."
            ) from None
    else:
        ending = f".{_PARTS[0]}"
        stems = [name.removesuffix(ending) for name in names if name.endswith(ending)]
        sparse = [stem for stem in stems if f"{stem}.bitmask" in names]
    for name in sparse:
        for part in _PARTS:
            if f"{name}.{part}" not in names:
                raise ValueError(
                    f"{file}: {name!r} is stored sparse, but lacks {name}.{part}; "
                    "write the file again."
                )
    return sparse


def _decompress(file: pathlib.Path, name: str, read: Any) -> np.ndarray:
    """One sparse array."""
    packed = _bitmask.Bitmask(*(read(f"{name}.{part}") for part in _PARTS))
    try:
        return _bitmask.decompress(packed)
    except ValueError as error:
        raise ValueError(
            f"{file}: {name!r} is damaged, {error}; write the file again."
        ) from None


def _nested(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Nested dicts, from names whose keys are joined by `/`."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *above, last = name.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ValueError(
                    f"{file}: {name!r} lies below another array; give `like`."
                )
        node[last] = array
    return tree


def _restored(file: pathlib.Path, arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    """The arrays in the tree of parameters of the same names, shapes and dtypes."""
    leaves = _paths.named_leaves(like)
    wanted = [leaf.name for leaf in leaves]
    missing = sorted(set(wanted) - set(arrays))
    extra = sorted(set(arrays) - set(wanted))
    if missing or extra:
        which = f"lacks {missing}" if missing else f"has {extra} besides"
        raise ValueError(f"{file}: does not fit the parameters, it {which}.")
    restored = []
    for leaf in leaves:
        array = arrays[leaf.name]
        shape = np.shape(leaf.value)
        dtype = leaf.value.dtype if hasattr(leaf.value, "dtype") else array.dtype
        if (array.shape, array.dtype) != (shape, dtype):
            raise ValueError(
                f"{file}: {leaf.name!r} is {array.dtype} of shape {array.shape}, where "
                f"the parameters have {dtype} of {shape}."
            )
        if not isinstance(leaf.value, np.ndarray):  # float64 stays only in NumPy
            array = jax.device_put(array, getattr(leaf.value, "sharding", None))
        restored.append(array)
    treedef: Any = jax.tree.structure(like)
    return treedef.unflatten(restored)


def _as_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays under PyTorch's names, with the axes in PyTorch's order."""
    turned: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        *above, last = name.split("/")
        if last == "kernel" and array.ndim >= 2:
            # (..., in, out) becomes (out, in, ...).
            array = np.moveaxis(array, (-1, -2), (0, 1))
        if last in ("kernel", "embedding", "scale"):
            last = "weight"
        new = ".".join((*above, last))
        if new in turned:
            raise ValueError(f"{name!r} and another array would both be {new!r}.")
        turned[new] = np.ascontiguousarray(array)
    return turned


def _config(arrays: Mapping[str, np.ndarray], sparse: list[str]) -> dict[str, Any]:
    """What compressed-tensors reads of a model's `config.json`."""
    weights = sum(array.size for array in arrays.values())
    nonzero = sum(
        int(np.count_nonzero(_bitmask.nonzero_bits(array))) for array in arrays.values()
    )
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "sparsity_config": {
                "format": "sparse-bitmask",
                "global_sparsity": 1 - nonzero / max(weights, 1),
                "sparsity_structure": "unstructured",
                "targets": sparse,
                "ignore": [],
            },
        }
    }


def _check_free(file: pathlib.Path, overwrite: bool) -> None:
    """Refuses to replace a file without being told to."""
    if file.exists() and not overwrite:
        raise FileExistsError(
            f"{file}: exists already; give overwrite=True to replace it."
        )


def _replace(file: pathlib.Path, write: Any) -> None:
    """Writes to a temporary file beside a file, then renames it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            'sparse files need safetensors: pip install "gradprune_jax[export]"'
        ) from None
    return safetensors
