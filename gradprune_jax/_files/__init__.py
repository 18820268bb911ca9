"""Files: written as a whole or not at all, and read one array at a time.

Checkpoints may be larger than memory, and a run may be stopped at any moment. So four
modules stand under the exports, the command line and the demonstration:

- `atomic`: `replacing` gives a temporary file that takes the place of the real one when
  everything went well, `replacing_folder` a folder; errors of the system name the file
  that the user knows.
- `stored`: a `StoredArray` has a shape and a dtype (its `Spec`), and is read from its
  file only when NumPy asks for its values.
- `safetensors`: the one format that is written here, its arrays read and written one
  after the other.
- `shards`: a checkpoint in several such files, and its index.
"""

from gradprune_jax._files.atomic import check_free as check_free
from gradprune_jax._files.atomic import replacing as replacing
from gradprune_jax._files.atomic import replacing_folder as replacing_folder
from gradprune_jax._files.safetensors import check_storable as check_storable
from gradprune_jax._files.safetensors import entry_nbytes as entry_nbytes
from gradprune_jax._files.safetensors import is_utf8 as is_utf8
from gradprune_jax._files.safetensors import open_safetensors as open_safetensors
from gradprune_jax._files.safetensors import safetensors_nbytes as safetensors_nbytes
from gradprune_jax._files.safetensors import write_safetensors as write_safetensors
from gradprune_jax._files.shards import SHARDS_AND_INDEX as SHARDS_AND_INDEX
from gradprune_jax._files.shards import Shards as Shards
from gradprune_jax._files.shards import holds_shards as holds_shards
from gradprune_jax._files.shards import open_shards as open_shards
from gradprune_jax._files.shards import shard_name as shard_name
from gradprune_jax._files.shards import write_index as write_index
from gradprune_jax._files.stored import Spec as Spec
from gradprune_jax._files.stored import StoredArray as StoredArray
from gradprune_jax._files.stored import checked_shape as checked_shape
from gradprune_jax._files.stored import shortened as shortened
