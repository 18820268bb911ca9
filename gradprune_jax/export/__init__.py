"""After training: how small a pruned model is, sparse files, sparse arrays.

Needs the extra `export`: `pip install "gradprune_jax[export]"`.
"""

from gradprune_jax.export.load import load_sparse as load_sparse
from gradprune_jax.export.save import save_sparse as save_sparse
from gradprune_jax.export.sparse_arrays import to_bcoo as to_bcoo
from gradprune_jax.export.sparse_arrays import to_bcsr as to_bcsr
from gradprune_jax.export.storage import LeafStorage as LeafStorage
from gradprune_jax.export.storage import StorageReport as StorageReport
from gradprune_jax.export.storage import storage_report as storage_report
