"""Exports of a pruned model: small files, and arrays for sparse products.

The parameters contain the zeros already. These functions store only the rest.

- `storage_report` measures: the bytes of every parameter dense, as bit mask, CSR, COO
  and N:M, and compressed.
- `save_sparse` writes safetensors, one file or several with an index, in which a sparse
  array is its non-zeros and a bit for every weight; `load_sparse` reads them into a
  tree, and `open_sparse` opens what does not fit into memory. The layout of one array
  is in `bitmask`.
- `to_bcoo` and `to_bcsr` make arrays of `jax.experimental.sparse`, which multiply by
  their non-zeros alone.

Needs the extra `export`: `pip install "gradprune_jax[export]"`.
"""

from gradprune_jax.export.load import load_sparse as load_sparse
from gradprune_jax.export.open import open_sparse as open_sparse
from gradprune_jax.export.save import save_sparse as save_sparse
from gradprune_jax.export.sparse_arrays import to_bcoo as to_bcoo
from gradprune_jax.export.sparse_arrays import to_bcsr as to_bcsr
from gradprune_jax.export.storage import LeafStorage as LeafStorage
from gradprune_jax.export.storage import StorageReport as StorageReport
from gradprune_jax.export.storage import storage_report as storage_report
