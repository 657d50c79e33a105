"""The flags of commands that run as several processes, and what they start or join."""

import os
import socket
import sys
from functools import partial
from typing import Any

from absl import flags

from bigjax.errors import UserError
from bigjax.run import heartbeat

NAMES = ("coordinator_address", "num_processes", "process_id")
"""The flags that, all together, make a process one of a group."""


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags that `supervise` and `initialize` read."""
    define = partial(_define, flag_values)
    define(flags.DEFINE_integer, "num_processes", None, "processes of the run; alone: start them all on this machine")
    define(flags.DEFINE_string, "coordinator_address", None, "HOST:PORT of process 0, if each is started by hand")
    define(flags.DEFINE_integer, "process_id", None, "index of this process, from 0, if each is started by hand")
    define(flags.DEFINE_bool, "distributed", False, "join the processes of a SLURM, GKE or TPU job, which JAX finds")
    define(flags.DEFINE_integer, "max_restarts", 0, "with --num_processes alone: start again so often if one is lost")
    define(flags.DEFINE_bool, "all_output", False, "with --num_processes alone: show the output of every process")
    define(flags.DEFINE_float, "peer_timeout_s", 40.0, "seconds without a sign of life after which a process is lost")


def _define(flag_values: flags.FlagValues, kind: Any, name: str, default: Any, text: str) -> None:
    kind(name, default, text, flag_values=flag_values)


def supervise(flag_values: flags.FlagValues) -> int | None:
    """Start and watch processes, if the flags ask for several; return their exit status, or None for one to go on as.

    Call it before JAX is imported. The processes are the same command once more.

    Raises:
      UserError: the flags contradict each other.
    """
    if heartbeat.FD in os.environ:
        return None
    kind = _kind(flag_values)
    if kind == "one":
        return None
    from .group import Group

    command = [sys.executable, *sys.orig_argv[1:]]
    commands = [command]
    if kind == "local":
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"--coordinator_address=127.0.0.1:{listener.getsockname()[1]}"
        count = flag_values.num_processes
        commands = [[*command, address, f"--process_id={index}"] for index in range(count)]
    return Group(commands, flag_values.peer_timeout_s, flag_values.all_output).run(flag_values.max_restarts)


def initialize(flag_values: flags.FlagValues) -> None:
    """Join this process to the others of the run, if the flags ask for it; call it before any use of a device.

    Raises:
      UserError: the flags contradict each other, or there is no cluster that JAX knows.
    """
    if flag_values.coordinator_address is None and not flag_values.distributed:
        return
    import jax

    # JAX's own watchdog ends a process without a word; ours comes first and knows the names.
    limit = max(1, int(flag_values.peer_timeout_s))
    limits: dict[str, Any] = {"heartbeat_timeout_seconds": max(100, 2 * limit), "shutdown_timeout_seconds": limit}
    if flag_values.distributed:
        try:
            jax.distributed.initialize(**limits)
        except ValueError as error:
            raise UserError(
                f"--distributed: JAX finds no SLURM, GKE, TPU or Open MPI job here ({error}): give "
                f"--{', --'.join(NAMES)}"
            ) from error
        return
    address, num_processes, process_id = (flag_values[name].value for name in NAMES)
    jax.distributed.initialize(address, num_processes, process_id, **limits)


def _kind(flag_values: flags.FlagValues) -> str:
    """Return `one`, `local` (a group on this machine), or `member` (of a group that somebody else starts)."""
    given = [name for name in NAMES if flag_values[name].value is not None]
    if flag_values.peer_timeout_s <= 0:
        raise UserError(f"--peer_timeout_s={flag_values.peer_timeout_s:g} is not above 0")
    if flag_values.distributed and given:
        raise UserError(f"--distributed finds out by itself what --{' and --'.join(given)} says: leave one out")
    local = given == ["num_processes"]
    if local and flag_values.num_processes < 1:
        raise UserError(f"--num_processes={flag_values.num_processes} is not at least 1")
    for name in ("max_restarts", "all_output"):
        if flag_values[name].value and not local:
            raise UserError(f"--{name} is for a group that --num_processes=N alone starts on this machine")
    if flag_values.max_restarts < 0:
        raise UserError(f"--max_restarts={flag_values.max_restarts} is not at least 0")
    if local:
        return "local"
    if given and len(given) < len(NAMES):
        missing = " and ".join(f"--{name}" for name in NAMES if name not in given)
        raise UserError(f"{missing} missing: a process started by hand needs all of --{', --'.join(NAMES)}")
    if given and not 0 <= flag_values.process_id < flag_values.num_processes:
        raise UserError(
            f"--process_id={flag_values.process_id} is not between 0 and --num_processes={flag_values.num_processes} "
            "minus 1"
        )
    return "member" if given or flag_values.distributed else "one"
