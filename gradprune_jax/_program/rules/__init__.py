"""Rules: for each primitive, which axes are cut alike, where it is zero, how it is run.

A primitive without a rule gets that of what is unknown, which fixes all it touches.
"""

from __future__ import annotations

from collections.abc import Mapping

from gradprune_jax._program.rules.base import PrimitiveRule as PrimitiveRule
from gradprune_jax._program.rules.base import bind as bind
from gradprune_jax._program.rules.control import Branches, Scan, While
from gradprune_jax._program.rules.elementwise import (
    ELEMENTWISE,
    PRODUCTS,
    Bitcast,
    Choice,
    Quotient,
)
from gradprune_jax._program.rules.elementwise import Elementwise as Elementwise
from gradprune_jax._program.rules.elementwise import Product as Product
from gradprune_jax._program.rules.indexing import SCATTERS, Gather, Scatter
from gradprune_jax._program.rules.joining import (
    Concatenate,
    Identity,
    Pad,
    Placement,
    Stack,
    Tile,
    Unstack,
)
from gradprune_jax._program.rules.reductions import (
    CUMULATIVE,
    EXTREMES,
    WINDOWS,
    AlongAxis,
    Reduce,
    ReduceSum,
    Window,
)
from gradprune_jax._program.rules.reshaping import (
    BroadcastInDim,
    Reshape,
    Squeeze,
    Transpose,
)
from gradprune_jax._program.rules.slicing import (
    DynamicUpdateSlice,
    Reverse,
    Slice,
    Split,
    WholeAxes,
)
from gradprune_jax._program.rules.sources import SOURCES, Source
from gradprune_jax._program.rules.sums import Convolution, DotGeneral

UNKNOWN = PrimitiveRule()
RULES: Mapping[str, PrimitiveRule] = {
    **dict.fromkeys(ELEMENTWISE, Elementwise()),
    **dict.fromkeys(PRODUCTS, Product()),
    "bitcast_convert_type": Bitcast(),
    "div": Quotient(),
    "select_n": Choice(),
    "broadcast_in_dim": BroadcastInDim(),
    "reshape": Reshape(),
    "transpose": Transpose(),
    "squeeze": Squeeze(),
    "slice": Slice(),
    "split": Split(),
    "rev": Reverse(),
    "concatenate": Concatenate(),
    "stack": Stack(),
    "unstack": Unstack(),
    "tile": Tile(),
    "pad": Pad(),
    "dynamic_slice": WholeAxes(),
    "dynamic_update_slice": DynamicUpdateSlice(),
    "gather": Gather(),
    **dict.fromkeys(SCATTERS, Scatter()),
    "optimization_barrier": Identity(),
    "sharding_constraint": Placement(),
    "dot_general": DotGeneral(),
    "conv_general_dilated": Convolution(),
    "reduce_sum": ReduceSum(),
    **dict.fromkeys(EXTREMES, Reduce()),
    **dict.fromkeys(CUMULATIVE, AlongAxis("axis")),
    "sort": AlongAxis("dimension"),
    **dict.fromkeys(WINDOWS, Window()),
    **dict.fromkeys(SOURCES, Source()),
    "scan": Scan(),
    "while": While(),
    "cond": Branches(),
}
