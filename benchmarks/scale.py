"""Scale past this machine, by compilation alone: 7 billion weights on 256 devices.

The update of a tree with the shapes of Llama-2-7B (Touvron et al., [Llama
2](https://arxiv.org/abs/2307.09288), 2023) is compiled for a mesh of virtual CPU
devices, from shapes and shardings: no weight is ever made. The compiled program says
what one device would hold, and what devices would say to each other. Prints a table,
and writes it with the raw figures to `benchmarks/results/scale.json` and into
`benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import resource
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from benchmarks import stored
from benchmarks.program import Program

MESH = {"data": 16, "model": 16}
VOCABULARY, WIDTH, FEED_FORWARD, LAYERS = 32_000, 4_096, 11_008, 32
# Projections into the heads or the feed-forward layer, and those out of them.
INTO, OUT_OF = ("data", "model"), ("model", "data")
LAYER = {
    "query": ((WIDTH, WIDTH), INTO),
    "key": ((WIDTH, WIDTH), INTO),
    "value": ((WIDTH, WIDTH), INTO),
    "output": ((WIDTH, WIDTH), OUT_OF),
    "gate": ((WIDTH, FEED_FORWARD), INTO),
    "up": ((WIDTH, FEED_FORWARD), INTO),
    "down": ((FEED_FORWARD, WIDTH), OUT_OF),
}
SCHEDULE = gp.polynomial_schedule(0.9, begin_step=1_000, end_step=10_000)


class Case(NamedTuple):
    """What is compiled.

    Attributes:
      stacked: whether layers are stacked along a leading axis, as by `nn.scan`.
      allocation: how the sparsity is shared out.
      dtype: of the weights and of their updates.
    """

    stacked: bool
    allocation: str
    dtype: str

    def rules(self) -> list[gp.Rule]:
        """All kernels and embeddings; uniformly, every layer has its own threshold."""
        everything = gp.Rule(SCHEDULE, allocation=self.allocation)
        if self.stacked and self.allocation == "uniform":
            return [
                gp.Rule(SCHEDULE, where="layers/.*kernel", stack_axis=0),
                everything,
            ]
        return [everything]

    def params(self, mesh: Mesh, layers: int) -> Any:
        """The shapes and shardings of the parameters."""

        def leaf(shape: tuple[int, ...], *spec: str | None) -> jax.ShapeDtypeStruct:
            return _array(shape, self.dtype, NamedSharding(mesh, P(*spec)))

        def layer(*stack: int) -> Any:
            unsplit = [None] * len(stack)
            kernels = {
                name: {"kernel": leaf((*stack, *shape), *unsplit, *spec)}
                for name, (shape, spec) in LAYER.items()
            }
            norms = ("attention_norm", "feed_forward_norm")
            return kernels | {name: {"scale": leaf((*stack, WIDTH))} for name in norms}

        each = {f"layer_{i}": layer() for i in range(layers)}
        return {
            "embedder": {"embedding": leaf((VOCABULARY, WIDTH), *OUT_OF)},
            **({"layers": layer(layers)} if self.stacked else each),
            "final_norm": {"scale": leaf((WIDTH,))},
            "head": {"kernel": leaf((WIDTH, VOCABULARY), *INTO)},
        }


def measure(case: Case, mesh: Mesh, layers: int) -> dict[str, Any]:
    """Compiles one update, and reads the program."""
    params = case.params(mesh, layers)
    tx = gp.gradual_prune(case.rules())
    state = _sharded_state(tx, params, mesh)
    start = time.perf_counter()
    lowered = jax.jit(tx.update).lower(params, state, params)
    lowered_at = time.perf_counter()
    compiled = lowered.compile()
    compiled_at = time.perf_counter()
    memory = compiled.memory_analysis()
    masks = jax.tree.leaves(state.masks)
    weights_a_device = sum(
        math.prod(mask.sharding.shard_shape(mask.shape)) for mask in masks
    )
    return case._asdict() | {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "weights": sum(mask.size for mask in masks),
        "leaves": len(masks),
        "weights_a_device": weights_a_device,
        "lower_s": lowered_at - start,
        "compile_s": compiled_at - lowered_at,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "temporary_bytes_a_weight": memory.temp_size_in_bytes / weights_a_device,
        "outputs_laid_out_like_inputs": _same_layout(
            compiled.output_shardings, (params, state)
        ),
        **Program.parse(compiled.as_text()).communication(),
    }


def _array(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)


def _sharded_state(
    tx: optax.GradientTransformation, params: Any, mesh: Mesh
) -> gp.GradualPruneState:
    """The shapes of the state, masks laid out like their parameters."""
    shapes = jax.eval_shape(tx.init, params)
    masks = jax.tree.map(
        lambda leaf, mask: (
            mask
            if isinstance(mask, optax.MaskedNode)
            else _array(mask.shape, mask.dtype, leaf.sharding)
        ),
        params,
        shapes.masks,
    )
    count = _array((), shapes.count.dtype, NamedSharding(mesh, P()))
    return gp.GradualPruneState(count, masks)


def _same_layout(shardings: Any, arrays: Any) -> bool:
    """Whether shardings are those of arrays, leaf by leaf."""
    pairs = zip(jax.tree.leaves(shardings), jax.tree.leaves(arrays), strict=True)
    return all(one.is_equivalent_to(leaf.sharding, leaf.ndim) for one, leaf in pairs)


def _most(key: str, row: dict[str, Any]) -> int:
    """The most of something in one pass of any loop."""
    return max((loop[key] for loop in row["loops"]), default=0)


def _others(row: dict[str, Any]) -> int:
    """The number of collectives that move data: all but all-reduces."""
    return sum(
        found["number"]
        for kind, found in row["collectives"].items()
        if kind != "all-reduce"
    )


_COLUMNS = {
    "layers": lambda row: "stacked" if row["stacked"] else "apart",
    "allocation": lambda row: row["allocation"],
    "dtype": lambda row: row["dtype"],
    "leaves": lambda row: f"{row['leaves']}",
    "trace and lower, s": lambda row: f"{row['lower_s']:.1f}",
    "compile, s": lambda row: f"{row['compile_s']:.0f}",
    "arguments, MB": lambda row: f"{row['argument_bytes'] / 1e6:.1f}",
    "outputs, MB": lambda row: f"{row['output_bytes'] / 1e6:.1f}",
    "temporaries, MB": lambda row: f"{row['temporary_bytes'] / 1e6:.2f}",
    "temporary bytes a weight": lambda row: f"{row['temporary_bytes_a_weight']:.3f}",
    "all-reduces": lambda row: f"{row['collectives']['all-reduce']['number']}",
    "a pass": lambda row: f"{_most('all_reduces', row)}",
    "bytes a pass": lambda row: f"{_most('bytes', row):,}",
    "largest, bytes": lambda row: f"{row['largest_all_reduce_bytes']:,}",
    "other collectives": lambda row: f"{_others(row)}",
}


def markdown(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = results["updates"]
    lines = [list(_COLUMNS), ["-"] * len(_COLUMNS)]
    lines += [[cell(row) for cell in _COLUMNS.values()] for row in rows]
    tree, mesh = rows[0], " x ".join(str(size) for size in results["mesh"].values())
    return "\n".join(
        [
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            f"{tree['parameters']:,} parameters, of which {tree['weights']:,} are "
            f"pruned, on {mesh} devices. All bytes are those of one device, which has "
            f"{tree['weights_a_device']:,} of these weights.",
            "",
            f"Compiled by `python -m benchmarks.scale` on {results['machine']} with "
            f"{results['peak_memory_bytes'] / 1e9:.1f} GB of memory in use, "
            f"{results['date']}, jax {results['jax']}.",
        ]
    )


def main() -> None:
    """Compiles, prints and stores."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument(
        "--dtypes", nargs="+", default=["bfloat16"], help="of the weights"
    )
    parser.add_argument("--dry", action="store_true", help="print only, store nothing")
    arguments = parser.parse_args()
    devices = math.prod(MESH.values())
    jax.config.update("jax_num_cpu_devices", devices)  # before anything uses JAX
    mesh = jax.make_mesh(
        tuple(MESH.values()),
        tuple(MESH),
        axis_types=(AxisType.Auto,) * len(MESH),
        devices=jax.devices("cpu"),
    )
    cases = itertools.starmap(
        Case,
        itertools.product((False, True), ("uniform", "global"), arguments.dtypes),
    )
    updates = [measure(case, mesh, arguments.layers) for case in cases]
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = stored.machine() | {
        "mesh": MESH,
        "peak_memory_bytes": 1024 * kibibytes,
        "updates": updates,
    }
    table = markdown(results)
    print(table)
    if not arguments.dry:
        stored.write("scale", results, table)


if __name__ == "__main__":
    main()
