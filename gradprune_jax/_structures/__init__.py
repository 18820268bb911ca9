"""Structures: which weights are kept or dropped together.

`blocks` cuts a leaf into blocks of one shape: single weights, rectangles, channels.
Blocks and channels are units: they are kept or dropped whole. Under N:M (`nm`) a block
is a group of M weights, of which the N largest are kept. `coupled` drops a dimension of
the whole network, in all leaves that lie along it.
"""

from __future__ import annotations

from gradprune_jax._structures.blocks import Block as Block
from gradprune_jax._structures.blocks import Channel as Channel
from gradprune_jax._structures.blocks import Unstructured as Unstructured
from gradprune_jax._structures.checks import Pool as Pool
from gradprune_jax._structures.checks import Shape as Shape
from gradprune_jax._structures.coupled import CoupledChannels as CoupledChannels
from gradprune_jax._structures.coupled import kernels as kernels
from gradprune_jax._structures.coupled import units_of_indices as units_of_indices
from gradprune_jax._structures.nm import LARGEST_NM_GROUP as LARGEST_NM_GROUP
from gradprune_jax._structures.nm import NM as NM
from gradprune_jax._structures.nm import check_pattern as check_pattern

Structure = Unstructured | NM | Block | Channel | CoupledChannels
"""Any of the structures: what `structure` of a rule may be, besides None."""


def counted(structure: Structure | None) -> Structure:
    """The structure whose blocks are counted as units: single weights under N:M."""
    if structure is None or isinstance(structure, NM):
        return Unstructured()
    return structure
