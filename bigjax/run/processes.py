"""What the processes of a run agree on. Every process calls these at the same place; each waits for the others."""


def of_all(value: int) -> list[int]:
    """Return the `value` of every process, in their order."""
    import jax

    if jax.process_count() == 1:
        return [value]
    import numpy as np
    from jax.experimental import multihost_utils

    return np.ravel(multihost_utils.process_allgather(np.asarray(value))).tolist()


def agreed(flag: bool) -> bool:
    """Return whether `flag` is set on any process; every process must call this at the same step.

    One process: free. Several: a collective over all devices, which also waits for the steps already dispatched
    (2.4 ms for two processes on one host, more across a network), so call it every few steps, not after each.
    A process that stopped alone would leave the others waiting in their next collective.
    """
    return any(of_all(int(flag)))


def raise_together(error: BaseException | None, elsewhere: Exception) -> None:
    """Raise `error`, or `elsewhere` if only other processes have one."""
    failed = agreed(error is not None)
    if error is not None:
        raise error
    if failed:
        raise elsewhere
