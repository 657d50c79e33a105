"""A Slurm of one node, this machine: its daemons run in a folder of their own, on ports of their own."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bigjax.run.children import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")

CPUS = 4
"""What the node says it has: jobs wait for a processor, not for a core."""

EXPIRES_S = 10
"""How long a permit to start a job lasts, by default 120; one that is queued again waits for its end."""

CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={expires_s}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return why there can be no Slurm here, or None."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return f"Slurm is not installed: there is no {absent[0]}" if absent else None


@contextlib.contextmanager
def running() -> Iterator[Path]:
    """Run munge and Slurm's two daemons; yield the configuration file, for the variable SLURM_CONF of its commands."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as daemons:
        folder = Path(name)  # a short one: the path of a socket has at most 108 characters
        folder.chmod(0o755)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        conf, key = folder / "slurm.conf", folder / "munge.key"
        host = socket.gethostname().partition(".")[0]
        ports = (free_port(), free_port())
        values = {"host": host, "ports": ports, "user": getpass.getuser(), "folder": folder}
        conf.write_text(CONFIG.format(**values, cpus=CPUS, expires_s=EXPIRES_S))
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(64))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munge = [f"--{flag}={folder}/munge.{suffix}" for flag, suffix in files.items()]
        daemons.enter_context(_daemon(folder, "munged", "--foreground", "--force", *munge))
        until(folder, (folder / "munge.socket").exists)
        daemons.enter_context(_daemon(folder, "slurmctld", "-D", "-c"))
        daemons.enter_context(_daemon(folder, "slurmd", "-D"))
        until(folder, lambda: "idle" in _call(conf, "sinfo", "--noheader", "--format=%T"))
        try:
            yield conf
        finally:
            _call(conf, "scancel", "--user", getpass.getuser())
            until(folder, lambda: not _call(conf, "squeue", "--noheader"))


@contextlib.contextmanager
def _daemon(folder: Path, name: str, *arguments: str) -> Iterator[None]:
    """Run a daemon in the foreground of this process, which ends it."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    with (folder / f"{name}.out").open("w") as out:
        process = subprocess.Popen([name, *arguments], env=environment, stdout=out, stderr=out)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _call(conf: Path, *command: str) -> str:
    """Return what a command of Slurm prints."""
    return subprocess.run(command, env=os.environ | {"SLURM_CONF": str(conf)}, capture_output=True, text=True).stdout


def until(folder: Path, holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something holds; else fail with what the daemons, or a job, said in `folder`."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not holds():
        said = "\n".join(path.read_text(errors="replace") for path in [*folder.glob("*.out"), *folder.glob("*.log")])
        assert time.monotonic() < end, f"not within {seconds:g} s:\n{said}"
        pause.wait(0.1)
