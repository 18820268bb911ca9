"""What the masks must be, by sorting in NumPy."""

from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import gradprune_jax as gp
from gradprune_jax._geometry import block_shape


def kept_count(size: int, sparsity: float) -> int:
    """n - round(s n), halves to even, and one at least unless s is 1."""
    exact = Fraction(float(np.float32(sparsity)))
    return max(size - round(exact * size), min(size, 1) if exact < 1 else 0)


# The score of what is pruned already: below that of any live weight, zero too.
PRUNED = -1.0


def top_k(scores: np.ndarray, kept: int, first: np.ndarray | None = None) -> np.ndarray:
    """The live ones among the first `kept` of a stable descending sort.

    NaN comes before everything, but for what is to be kept `first`.
    """
    flat = scores.astype(np.float64).ravel()
    first = np.zeros(flat.size, bool) if first is None else first.ravel()
    first = first & (flat != PRUNED)
    nan = np.isnan(flat)
    order = np.lexsort((-np.where(nan, 0.0, flat), ~nan, ~first))  # stable
    chosen = np.zeros(flat.size, bool)
    chosen[order[:kept]] = True
    return (chosen & (flat != PRUNED)).reshape(scores.shape)


def next_masks(
    weights: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    sparsity: float,
    *,
    structure: gp.Structure | None = None,
    allocation: str = "uniform",
    stack_axis: int | None = None,
    min_density: float = 0.0,
    min_per_channel: int = 0,
    output_axis: int = -1,
    kept: Sequence[int] | int | None = None,
) -> list[np.ndarray]:
    """The masks after a mask update, by one sort for each group.

    Args:
      weights: the leaves.
      masks: their masks.
      sparsity: the schedule's.
      structure: of the rule.
      allocation: of the rule.
      stack_axis: of the rule.
      min_density: of the rule.
      min_per_channel: of the rule.
      output_axis: of the rule.
      kept: the units that each slice keeps (ERK), or each group (N:M); else the
        sparsity says.
    """
    structure = structure or gp.Unstructured()
    slices = [
        part
        for leaf, mask in zip(weights, masks, strict=True)
        for part in _slices(
            np.where(mask, np.abs(leaf.astype(np.float64)), PRUNED), stack_axis
        )
    ]
    if isinstance(structure, gp.NM):
        selected = [_top_of_groups(part, structure, kept) for part in slices]
    else:
        units = [unit_scores(part, structure) for part in slices]
        firsts = [
            _first_of_channels(
                scores, block_shape(structure, part.shape), output_axis, min_per_channel
            )
            for part, scores in zip(slices, units, strict=True)
        ]
        floors = [int(first.sum()) for first in firsts]
        if allocation == "global":
            chosen = _global_top_k(units, sparsity, min_density, firsts, floors)
        else:
            counts = kept or [kept_count(part.size, sparsity) for part in units]
            chosen = [
                top_k(scores, max(count, floor), first)
                for scores, count, floor, first in zip(
                    units, counts, floors, firsts, strict=True
                )
            ]
        selected = [
            _expand(new, block_shape(structure, part.shape), part.shape)
            for new, part in zip(chosen, slices, strict=True)
        ]
    new_masks = []
    for mask in masks:
        count = len(_slices(mask, stack_axis))
        own, selected = selected[:count], selected[count:]
        new = own[0] if stack_axis is None else np.stack(own, stack_axis)
        new_masks.append(mask & new)
    return new_masks


def _first_of_channels(
    scores: np.ndarray, block: Sequence[int], axis: int, min_per_channel: int
) -> np.ndarray:
    """The highest units of every output channel, pruned ones where no more are live."""
    first = np.zeros(scores.shape, bool)
    if min_per_channel:
        inputs = int(np.prod(block)) // block[axis]
        # Not PRUNED, which top_k leaves out.
        ranked = np.where(scores == PRUNED, PRUNED / 2, scores)
        by_channel = np.moveaxis(first, axis, 0)
        for channel, part in enumerate(np.moveaxis(ranked, axis, 0)):
            by_channel[channel] = top_k(part, -(-min_per_channel // inputs))
    return first


def unit_scores(magnitudes: np.ndarray, structure: gp.Structure) -> np.ndarray:
    """The score of every block of one leaf: exact integers, rounded down at the end.

    A block without a live weight is pruned.
    """
    block = block_shape(structure, magnitudes.shape)
    if isinstance(structure, gp.Unstructured):
        return magnitudes
    is_live = magnitudes != PRUNED
    magnitudes = np.where(is_live, magnitudes, 0.0)
    pool = getattr(structure, "pool", "max")
    infinite = ~np.isfinite(magnitudes)
    finite = np.where(infinite, 0.0, magnitudes)
    count = int(np.prod(block))
    bits = 32 - count.bit_length()
    # Blocks with a weight that is not finite take no part in the scale.
    usual = [
        part for index, part in _blocks(finite, block) if not infinite[index].any()
    ]
    top = max((part.max(initial=0.0) for part in usual), default=0.0)
    smallest = float(np.finfo(np.float32).tiny)
    exponent = int(np.floor(np.log2(max(top, smallest))))
    quantum = Fraction(2) ** (exponent + 1 - bits * (1 + 32 // bits))
    shape = _unit_shape(magnitudes.shape, block)
    scores = np.zeros(shape)
    for position, (index, part) in zip(
        np.ndindex(*shape), _blocks(magnitudes, block), strict=True
    ):
        if pool == "max" or infinite[index].any():
            scores[position] = part.max()  # of a NaN and others: NaN
        else:
            total = sum(-(-Fraction(w) // quantum) for w in part.ravel().tolist())
            scores[position] = _floor_float32(total * quantum / part.size)
        if not is_live[index].any():
            scores[position] = PRUNED
    return scores


def _blocks(array: np.ndarray, block: Sequence[int]):
    """The index and the weights of every block, in C order."""
    for position in np.ndindex(*_unit_shape(array.shape, block)):
        index = tuple(
            slice(i * length, (i + 1) * length)
            for i, length in zip(position, block, strict=True)
        )
        yield index, array[index]


def _unit_shape(shape, block):
    return [-(-size // length) for size, length in zip(shape, block, strict=True)]


def _floor_float32(number: Fraction) -> float:
    """The largest float32 that is not larger; the smallest of all for less than it."""
    if number == 0:
        return 0.0
    rounded = np.float32(float(number))
    if Fraction(float(rounded)) > number:
        rounded = np.nextafter(rounded, np.float32(0))
    return float(max(rounded, np.float32(1e-45)))


def _expand(units: np.ndarray, block: Sequence[int], shape) -> np.ndarray:
    for axis, length in enumerate(block):
        units = np.repeat(units, length, axis)
    return units[tuple(map(slice, shape))]


def _slices(leaf: np.ndarray, stack_axis: int | None) -> list[np.ndarray]:
    return [leaf] if stack_axis is None else list(np.moveaxis(leaf, stack_axis, 0))


def _top_of_groups(scores: np.ndarray, structure: gp.NM, kept: int) -> np.ndarray:
    """The `kept` largest of every group of neighbours."""
    groups = np.moveaxis(scores, structure.axis, -1)
    flat = groups.reshape(-1, structure.of)
    chosen = np.array([top_k(group, kept) for group in flat], bool)
    chosen = chosen.reshape(groups.shape)
    return np.moveaxis(chosen, -1, structure.axis)


def _global_top_k(
    scores: Sequence[np.ndarray],
    sparsity: float,
    min_density: float,
    firsts: Sequence[np.ndarray],
    floors: Sequence[int],
) -> list[np.ndarray]:
    density = Fraction(str(min_density))
    least = [
        max(int(-(-leaf.size * density // 1)), floor)
        for leaf, floor in zip(scores, floors, strict=True)
    ]
    if min_density:
        firsts = [
            top_k(leaf, kept, first)
            for leaf, kept, first in zip(scores, least, firsts, strict=True)
        ]
    flat = np.concatenate([leaf.ravel() for leaf in scores])
    first = np.concatenate([leaf.ravel() for leaf in firsts])
    kept = max(kept_count(flat.size, sparsity), sum(least))
    chosen = top_k(flat, kept, first)
    ends = np.cumsum([leaf.size for leaf in scores])[:-1]
    parts = np.split(chosen, ends)
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, scores, strict=True)]


def assert_follows(
    tx, schedule: gp.SparsitySchedule, params: dict, steps: int, *, update, **fields
) -> dict:
    """Trains for `steps` steps and compares every mask with the oracle, bit for bit.

    Args:
      tx: the transformation, jitted update and all, whose state is a pruning state.
      schedule: its schedule.
      params: a flat dictionary; every leaf of it is pruned.
      steps: how many.
      update: maps (step, params) to the updates that enter the transformation.
      **fields: of the rule, as for `next_masks`.
    """
    state = tx.init(params)
    step_fn = jax.jit(tx.update)
    masks = [np.ones(np.shape(leaf), bool) for leaf in params.values()]
    for step in range(steps):
        if schedule.is_update_step(step):
            weights = [np.asarray(leaf) for leaf in params.values()]
            sparsity = float(schedule.sparsity(step))
            masks = next_masks(weights, masks, sparsity, **fields)
        updates, state = step_fn(update(step, params), state, params)
        params = jax.tree.map(
            lambda p, u: jnp.asarray(p + u).astype(p.dtype), params, updates
        )
        for name, mask in zip(params, masks, strict=True):
            np.testing.assert_array_equal(np.asarray(state.masks[name]), mask)
            pruned = np.asarray(params[name])[~mask]
            is_positive_zero = (pruned == 0) & ~np.signbit(pruned.astype(np.float32))
            finite = np.isfinite(pruned.astype(np.float32))
            assert (is_positive_zero | ~finite).all()
    return params


def difficult_weights(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    """Weights with many ties, zeros of both signs, denormals, infinities and NaNs."""
    kind = rng.integers(0, 5)
    weights = rng.normal(size=shape).astype(np.float64)
    if kind == 1:
        weights = np.round(weights)
    elif kind == 2:
        weights = np.where(rng.random(shape) < 0.8, -0.0, weights)
    elif kind == 3:
        weights = np.full(shape, rng.normal())
    weights = weights.astype(dtype)
    if kind == 4:
        finfo = ml_dtypes.finfo(dtype)
        special = np.array(
            [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, finfo.max, finfo.tiny],
            dtype,
        )
        special = np.append(special, np.array([finfo.smallest_subnormal] * 2, dtype))
        weights = rng.choice(np.append(special, weights.ravel()[:6]), size=shape)
    return weights
