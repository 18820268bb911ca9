"""The command line: `gradprune`, or `python -m gradprune_jax`.

Each command is a module: `demo`, `plan`, `report`, `prune`, `pack` (with `unpack`) and
`diff`. They prune by public names only; files and tables are those of `_files` and
`_tables`.

- `process` runs the command and ends it cleanly, by a signal too; `group` collects the
  commands, and turns faults of data and files into one line and a status.
- `options` has what several commands are given, `files` what they do to files, `output`
  how a checkpoint is written: one file, or a folder of several with its index.
- `checkpoints` finds the parameters in what was opened; `formats` tells the format by
  what the file holds, and reads it, with `npz` and `orbax_folder`. No array is read
  before it is needed, and damage is reported with the name of the file.

Nothing here is imported with the library; the commands need the extra `cli`.
"""

from gradprune_jax._cli.group import build as build
from gradprune_jax._cli.process import main as main
