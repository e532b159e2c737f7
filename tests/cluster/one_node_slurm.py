"""A real Slurm of one node, for the tests: munged, slurmctld and slurmd under a temporary folder.

Nothing of the machine's own Slurm is read or touched: configuration, key, sockets, ports, state and spool
are all this folder's.  There is no accounting, and no control group: processes are found by /proc.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "sinfo", "srun")

_CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A task that is requeued waits for its credential to expire.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
JobRequeue=1
KillWait=5
MinJobAge=300
ReturnToService=2
# More processors than there are: four tasks run side by side.
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=8 State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no Slurm can be started here; empty if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as their user, for which it must be root"


@contextlib.contextmanager
def one_node_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start it under ``folder``; yields the environment in which ``sbatch`` and the others speak to it."""
    environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
    _configure(folder)
    munge = folder / "munge"
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> None:
            stack.enter_context(_running(command, folder, environment))

        options = {
            "socket": "socket",
            "key-file": "key",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        start(
            "munged",
            "--foreground",
            "--force",
            *(f"--{name}={munge / file}" for name, file in options.items()),
        )
        wait_until(lambda: (munge / "socket").exists(), "munged's socket")
        start("slurmctld", "-D", "-c")
        start("slurmd", "-D", "-N", "node")
        wait_until(lambda: _state(environment) == "idle", "an idle node")
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, check=False)
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: _state(environment) == "idle", "the end of the jobs", seconds=15)


def _configure(folder: Path) -> None:
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755, parents=True)
    key = folder / "munge/key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(
            folder=folder, host=socket.gethostname(), controller_port=_free_port(), node_port=_free_port()
        )
    )


@contextlib.contextmanager
def _running(command: tuple[str, ...], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    with open(folder / f"{command[0]}.out", "wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(holds: Callable[[], bool], what: str, *, seconds: float = 30.0) -> None:
    """Look five times a second."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.2)


def _state(environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _path() -> str:
    """Debian has the daemons in /usr/sbin, which not everybody's path names."""
    return f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
