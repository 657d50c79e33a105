"""What a run has saved last, bit for bit."""

from pathlib import Path

import jax
import numpy as np

from tests.finished_runs import last_checkpoint


def saved_state(workdir: Path) -> dict[str, bytes]:
    """Return the bytes of every array of the last checkpoint, and its data state, by path."""
    found = last_checkpoint(workdir)
    leaves = jax.tree.leaves_with_path(found.state)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
    return arrays | {"data": repr(found.data_state).encode()}
