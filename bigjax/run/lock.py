"""One trainer at a time in a run folder: who has it, and what becomes of a lock whose owner is gone."""

import contextlib
import sys
from collections.abc import Iterator

from bigjax.errors import UserError
from bigjax.paths import AnyPath, StoreError, as_path
from bigjax.run import lease
from bigjax.run.processes import raise_together

LOCK = "trainer.lock"
"""The file in the run folder that its trainer owns, a `bigjax.run.lease`."""


class InUse(UserError):
    """Another trainer has the run folder."""


@contextlib.contextmanager
def held(folder: str | AnyPath) -> Iterator[None]:
    """Hold the lock of a run folder, which is made if it is missing and taken away again if nothing is put there.

    Process 0 of the run holds it; every process of the run enters together.

    Raises:
      InUse: another trainer has it; names its host, process and start.
      UserError: nothing can be written there.
    """
    folder = as_path(folder)
    import jax

    owner, problem = None, None
    if jax.process_index() == 0:
        try:
            owner = _take(folder)
        except UserError as error:
            problem = error
    raise_together(problem, UserError("process 0 cannot have the run folder"))
    if owner is None:
        yield
        return
    try:
        with lease.renewed([folder / LOCK]):
            yield
    finally:
        lease.release(folder / LOCK, owner)
        with contextlib.suppress(OSError):
            folder.rmdir()  # fails if anything is in it


def _take(folder: AnyPath) -> lease.Owner:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mine, gone = lease.take(folder / LOCK)
    except lease.Taken as taken:
        raise InUse(
            f"{folder} is in use by another trainer: {taken}; stop that one, or choose another --workdir"
        ) from None
    except FileExistsError:
        raise UserError(f"{folder} is not a folder: choose another --workdir") from None
    except StoreError:
        raise
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): choose another --workdir") from error
    if gone:
        print(f"note: the trainer that had {folder} ({lease.said(gone)}) is gone", file=sys.stderr, flush=True)
    return mine
