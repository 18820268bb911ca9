"""A mask update: this library beside a sort, NumPy, PyTorch, and one read."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradprune_jax as gp
from benchmarks.speed import rivals, timing

SPARSITIES = (0.5, 0.9, 0.98)
# Beyond it only one sparsity is measured, once, and nothing is sorted: that would take
# minutes and tell nothing new.
LARGEST_REPEATED = 10**7


def _pruned_before(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Weights of which the lower half was pruned, and the others moved a little."""
    normal = rng.normal(size=shape)
    moved = normal + 0.02 * rng.normal(size=shape)
    return np.where(np.abs(normal) > 0.6745, moved, 0.0)


FAMILIES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "Laplace": lambda rng, shape: rng.laplace(size=shape),
    "Student t3": lambda rng, shape: rng.standard_t(3, size=shape),
    "mostly zero": lambda rng, shape: (
        rng.normal(size=shape) * (rng.random(size=shape) < 0.1)
    ),
    "constant": lambda _, shape: np.ones(shape),
    "pruned before": _pruned_before,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
      leaves: the number of leaves.
      shape: the shape of each.
      dtype: the dtype of the weights.
      family: their distribution, a key of `FAMILIES`.
    """

    leaves: int
    shape: tuple[int, ...]
    dtype: str = "float32"
    family: str = "normal"

    @property
    def weights(self) -> int:
        """The number of weights in all leaves."""
        return self.leaves * int(np.prod(self.shape))


SHAPES = [
    (1, (250, 400)),
    (1, (1_000, 1_000)),
    (1, (2_500, 4_000)),
    (1, (10_000, 10_000)),
    (10, (1_000, 1_000)),
    (200, (250, 200)),
]


def cases(largest: int, families: Iterable[str] = tuple(FAMILIES)) -> list[Case]:
    """Every size in both dtypes on these families."""
    chosen = [
        Case(leaves, shape, dtype, family)
        for family in families
        for dtype in ("float32", "bfloat16")
        for leaves, shape in SHAPES
    ]
    return [case for case in chosen if case.weights <= largest]


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Times one case: milliseconds, medians over sparsities and repeated calls."""
    rng = np.random.default_rng(0)
    hosts = [
        np.asarray(FAMILIES[case.family](rng, case.shape), jnp.dtype(case.dtype))
        for _ in range(case.leaves)
    ]
    params = {f"layer{i}": {"kernel": jnp.asarray(w)} for i, w in enumerate(hosts)}

    def prune(sparsity: jax.Array) -> Any:
        return gp.gradual_prune(gp.one_shot_schedule(sparsity, 0))

    state = prune(jnp.float32(0.5)).init(params)
    update = jax.jit(lambda s, state, params: prune(s).update(params, state, params)[1])
    compiled = update.lower(jnp.float32(0.5), state, params).compile()
    memory = compiled.memory_analysis()
    first = params["layer0"]["kernel"]
    size = first.size
    result: dict[str, Any] = dataclasses.asdict(case) | {
        "weights": case.weights,
        "temporary_bytes_per_weight": memory.temp_size_in_bytes / case.weights,
        "state_bytes_per_weight": sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        / case.weights,
    }
    ours, numpys = [], []
    is_large = case.weights > LARGEST_REPEATED
    for sparsity in SPARSITIES[1:2] if is_large else SPARSITIES:
        traced, kept = jnp.float32(sparsity), size - round(sparsity * size)
        own, other = timing.medians(
            [
                lambda s=traced: compiled(s, state, params),
                lambda k=kept: [rivals.numpy_mask(host, k) for host in hosts],
            ],
            1 if is_large else repeats,
        )
        ours.append(own)
        numpys.append(other)
    (read,) = timing.medians(
        [lambda: [rivals.one_read(p["kernel"]) for p in params.values()]], repeats
    )
    result |= {
        "gradprune_ms": statistics.median(ours),
        "numpy_ms": statistics.median(numpys),
        "one_read_ms": read,
    }
    if case.family == "normal" and case.dtype == "float32" and case.leaves == 1:
        result |= _sorts(first, hosts[0], kept=size - round(0.9 * size))
    return result


def _sorts(weights: jax.Array, host: np.ndarray, kept: int) -> dict[str, float]:
    """The milliseconds of ways that sort, at a sparsity of 90 %."""
    sorts: dict[str, Callable[[], Any]] = {}
    if weights.size <= LARGEST_REPEATED:
        sorts["argsort_ms"] = lambda: rivals.argsort_mask(weights, kept)
        sorts["top_k_ms"] = lambda: rivals.top_k_mask(weights, kept)
    if rivals.HAS_TORCH:
        sorts["torch_ms"] = rivals.torch_pruning(host, 0.9)
    return dict(zip(sorts, timing.medians(list(sorts.values()), 3), strict=True))
