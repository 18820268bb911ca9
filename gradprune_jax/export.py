"""After training: how small a pruned model is, sparse files, sparse arrays.

Needs the extra ``export``: ``pip install "gradprune_jax[export]"``.
"""

from gradprune_jax._load_sparse import load_sparse as load_sparse
from gradprune_jax._save_sparse import save_sparse as save_sparse
from gradprune_jax._sparse_arrays import to_bcoo as to_bcoo
from gradprune_jax._sparse_arrays import to_bcsr as to_bcsr
from gradprune_jax._storage import LeafStorage as LeafStorage
from gradprune_jax._storage import StorageReport as StorageReport
from gradprune_jax._storage import storage_report as storage_report
