"""Gradual magnitude pruning for JAX, as one link of an optax chain.

schedule = polynomial_schedule(0.9, begin_step=1_000, end_step=10_000)
tx = optax.chain(optax.adamw(1e-3), gradual_prune(schedule))
"""

import importlib as _importlib
from types import ModuleType as _ModuleType

from gradprune_jax._budget import Budget as Budget
from gradprune_jax._calibration import CalibratedMethod as CalibratedMethod
from gradprune_jax._calibration import SparseGPT as SparseGPT
from gradprune_jax._calibration import Wanda as Wanda
from gradprune_jax._calibration import input_norms as input_norms
from gradprune_jax._calibration import prune_calibrated as prune_calibrated
from gradprune_jax._inspection import check_pruned as check_pruned
from gradprune_jax._inspection import dead_channels as dead_channels
from gradprune_jax._inspection import metrics as metrics
from gradprune_jax._inspection import sparsity as sparsity
from gradprune_jax._masks import get_masks as get_masks
from gradprune_jax._masks import masks_from_params as masks_from_params
from gradprune_jax._masks import set_masks as set_masks
from gradprune_jax._pairing import apply_masks as apply_masks
from gradprune_jax._pairing import map_with_masks as map_with_masks
from gradprune_jax._plan import GroupPlan as GroupPlan
from gradprune_jax._plan import LeafPlan as LeafPlan
from gradprune_jax._plan import Plan as Plan
from gradprune_jax._plan import plan as plan
from gradprune_jax._program import ChannelGroup as ChannelGroup
from gradprune_jax._program import ChannelGroups as ChannelGroups
from gradprune_jax._program import Shrunk as Shrunk
from gradprune_jax._program import channel_groups as channel_groups
from gradprune_jax._program import shrink as shrink
from gradprune_jax._program import shrink_opt_state as shrink_opt_state
from gradprune_jax._prune import prune as prune
from gradprune_jax._rules import Rule as Rule
from gradprune_jax._rules import is_weight as is_weight
from gradprune_jax._rules import rules_from_json as rules_from_json
from gradprune_jax._rules import rules_to_json as rules_to_json
from gradprune_jax._schedules import SparsitySchedule as SparsitySchedule
from gradprune_jax._schedules import custom_schedule as custom_schedule
from gradprune_jax._schedules import one_shot_schedule as one_shot_schedule
from gradprune_jax._schedules import polynomial_schedule as polynomial_schedule
from gradprune_jax._scores import Fisher as Fisher
from gradprune_jax._scores import Magnitude as Magnitude
from gradprune_jax._scores import Movement as Movement
from gradprune_jax._scores import Random as Random
from gradprune_jax._scores import Saliency as Saliency
from gradprune_jax._scores import Score as Score
from gradprune_jax._sensitivity import Sensitivity as Sensitivity
from gradprune_jax._sensitivity import SparsityAllocation as SparsityAllocation
from gradprune_jax._sensitivity import allocate_sparsity as allocate_sparsity
from gradprune_jax._sensitivity import sensitivity as sensitivity
from gradprune_jax._sparse_training import straight_through as straight_through
from gradprune_jax._sparse_training import with_sparse_training as with_sparse_training
from gradprune_jax._state import GradualPruneState as GradualPruneState
from gradprune_jax._state import ScoredPruneState as ScoredPruneState
from gradprune_jax._state import SparseTrainingState as SparseTrainingState
from gradprune_jax._state import WithGradualPruneState as WithGradualPruneState
from gradprune_jax._structures import NM as NM
from gradprune_jax._structures import Block as Block
from gradprune_jax._structures import Channel as Channel
from gradprune_jax._structures import CoupledChannels as CoupledChannels
from gradprune_jax._structures import Structure as Structure
from gradprune_jax._structures import Unstructured as Unstructured
from gradprune_jax._transform import gradual_prune as gradual_prune
from gradprune_jax._transform import keep_masks as keep_masks
from gradprune_jax._transform import with_gradual_prune as with_gradual_prune

__version__ = "0.1.0"

_MODULES = ("export", "primitives", "report")


def __getattr__(name: str) -> _ModuleType:
    """Imports a public module when it is first used: `gradprune_jax.report`."""
    if name in _MODULES:
        return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
