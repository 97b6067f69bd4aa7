"""A real SLURM on this machine: slurmctld, munged, and a slurmd for each virtual node.

All of it lies in one folder, listens on free ports of this machine alone and belongs to whoever runs the
tests, so it needs no root and lives beside a SLURM that is already here. Importable by tests.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[2]
NODES = ("n1", "n2")
CPUS_PER_NODE = 2  # whatever this machine has
GPUS_PER_NODE = 2  # empty files: what is asked for and handed out is real, the devices are not
GRACE_S = 30  # between the signal of a preemption and the kill
DAEMONS = ("munged", "slurmctld", "slurmd")
# As it was when tests were collected, since some of them leave variables behind; without an outer job's.
_OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
_SYSTEM = f"{_OUTSIDE['PATH']}:/usr/sbin:/sbin"
_UP_S, _PATIENCE_S = 20.0, 120.0

_CONF = """
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_interval=1,sched_min_interval=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
JobRequeue=1
MinJobAge=3600
KillWait=5
MailProg=/bin/true
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
PartitionName=main Nodes={nodes} Default=YES State=UP PriorityTier=1 GraceTime={grace_s}
PartitionName=high Nodes={nodes} State=UP PriorityTier=10 PreemptMode=OFF
"""
_NODE = (
    "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=8000 "
    "Gres=gpu:{gpus} State=UNKNOWN\n"
)


def missing_daemons() -> list[str]:
    return [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=_SYSTEM) is None]


class ClusterError(RuntimeError):
    """The cluster did not come up, with what its daemons wrote last."""


class VirtualCluster:
    """Start it, submit to it, stop it.

    Args:
        root: an empty folder; its path must be short, since sockets lie in it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {**_OUTSIDE, "SLURM_CONF": str(root / "slurm.conf"), "PATH": _SYSTEM}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Raises ``ClusterError`` where a daemon ends or the nodes do not become idle."""
        self._configure()
        self._begin("munged", "munged", "--foreground", "--force", *self._munge_options())
        self._wait_for(lambda: (self.root / "munge.socket").exists(), "munged")
        self._begin("slurmctld", "slurmctld", "-D", "-i")
        for node in NODES:
            self._begin(f"slurmd.{node}", "slurmd", "-D", "-N", node)
        self._wait_for(lambda: self._idle_nodes() == len(NODES), "the nodes")

    def stop(self) -> None:
        """End the jobs, then the daemons, each by its own process id."""
        if len(self._daemons) > 1 and self._idle_nodes() < len(NODES):
            self.run("scancel", "--user", _user(), check=False)
            deadline = time.monotonic() + _UP_S
            while self._idle_nodes() < len(NODES) and time.monotonic() < deadline:
                time.sleep(0.1)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str, check: bool = True, folder: Path = ROOT, **variables: str) -> str:
        """Output of one of SLURM's commands, given in ``folder``."""
        environment = {**self.environment, **variables}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def submit(self, *arguments: str | Path, folder: Path = ROOT, **variables: str) -> str:
        """The number of the job that ``sbatch`` makes; its log is ``log(number)``."""
        words = list(map(str, arguments))
        name = "%A_%a" if any(word.startswith("--array") for word in words) else "%j"
        output = f"--output={self.root}/log/{name}.out"
        return self.run("sbatch", "--parsable", output, *words, folder=folder, **variables).strip()

    def log(self, job: str) -> str:
        path = self.root / "log" / f"{job}.out"
        return path.read_text() if path.is_file() else ""

    def facts(self, job: str) -> Mapping[str, str]:
        """What ``scontrol show job`` tells of a job or of one task, ``<job>_<task>``, of an array."""
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def wait_for(self, job: str, *states: str) -> Mapping[str, str]:
        """The facts of a job once its state is one of ``states``."""
        deadline = time.monotonic() + _PATIENCE_S
        while (facts := self.facts(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{job} is {facts['JobState']}, not {states}: {self.log(job)}"
            time.sleep(0.1)
        return facts

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.run("squeue", "--states=all")
            time.sleep(0.05)

    def _configure(self) -> None:
        host = socket.gethostname().partition(".")[0]
        ports = _free_ports(1 + len(NODES))
        for folder in ("state", "log", *(f"spool.{node}" for node in NODES)):
            (self.root / folder).mkdir()
        gres = []
        conf = _CONF.format(
            host=host,
            ports=ports,
            user=_user(),
            root=self.root,
            nodes=",".join(NODES),
            grace_s=GRACE_S,
        )
        for node, port in zip(NODES, ports[1:], strict=True):
            conf += _NODE.format(node=node, host=host, port=port, cpus=CPUS_PER_NODE, gpus=GPUS_PER_NODE)
            for i in range(GPUS_PER_NODE):
                device = self.root / f"{node}.gpu{i}"
                device.touch()
                gres.append(f"NodeName={node} Name=gpu File={device}\n")
        (self.root / "slurm.conf").write_text(conf)
        (self.root / "gres.conf").write_text("".join(gres))
        # SLURM 22.05 has no way to do without; none of what is chosen above uses it, so that a machine with
        # version 2 alone will do, as was tried.
        (self.root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        key = self.root / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)

    def _munge_options(self) -> list[str]:
        names = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "seed-file": "seed",
            "log-file": "log",
        }
        return [f"--{option}={self.root}/munge.{name}" for option, name in names.items()]

    def _begin(self, name: str, *command: str) -> None:
        with (self.root / f"{name}.said").open("wb") as file:
            daemon = subprocess.Popen(command, env=self.environment, stdout=file, stderr=file)
        self._daemons.append(daemon)

    def _wait_for(self, is_there: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _UP_S
        while not is_there():
            ended = [daemon for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise ClusterError(f"{what} did not come up within {_UP_S:g} s: {self._last_words()}")
            time.sleep(0.1)

    def _idle_nodes(self) -> int:
        return self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split().count("idle")

    def _last_words(self) -> str:
        logs = [*self.root.glob("*.said"), *self.root.glob("*.log")]
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        errors = [line for line in lines if "rror" in line or "fatal" in line]
        return "; ".join((errors or lines)[-3:])


def _user() -> str:
    return pwd.getpwuid(
        os.getuid()
    ).pw_name  # not the environment's, which runuser and containers leave as it was


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
