"""A real SLURM of two nodes on this machine, for as long as the tests of this folder run.

munged, slurmctld and two slurmd, with configuration, state, logs, sockets and ports of their own in a temporary folder:
a cluster that this machine may belong to is neither seen nor touched.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "setpriv")

CONFIGURATION = """\
ClusterName=bmscale-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=30
FirstJobId={first_job}
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=4 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=4 Gres=gpu:2
PartitionName=test Nodes=n1,n2 Default=YES State=UP
"""


@dataclass(frozen=True)
class Job:
    """A job as SLURM knows it, and what it has written."""

    number: str
    state: str
    exit_code: int
    restarts: int
    output: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "")


@dataclass
class Cluster:
    """The daemons, and the environment in which SLURM's commands find them."""

    folder: Path
    environment: dict[str, str]
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start everything. Raises RuntimeError with the logs when the nodes do not become idle."""
        ports = free_ports(3)
        host = socket.gethostname().partition(".")[0]
        # Rendezvous ports follow from job ids, and another test run on this machine must get other ones.
        text = CONFIGURATION.format(
            folder=self.folder,
            host=host,
            controller_port=ports[0],
            port_1=ports[1],
            port_2=ports[2],
            first_job=random.SystemRandom().randrange(1_000, 60_000),
        )
        (self.folder / "slurm.conf").write_text(text)
        # SLURM counts the devices that stand for GPUs; it opens none of them.
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        (self.folder / "state").mkdir()
        self.command("mungekey", "--create", f"--keyfile={self.folder}/munge.key")
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{name}" for option, name in files.items()]
        self._daemon("munged", "--foreground", "--force", *options)
        self._wait(lambda: (self.folder / "munge.socket").is_socket(), "munged must open its socket")
        self._daemon("slurmctld", "-D", "-f", f"{self.folder}/slurm.conf")
        for node in ("n1", "n2"):
            (self.folder / f"spool-{node}").mkdir()
            self._daemon("slurmd", "-D", "-N", node, "-f", f"{self.folder}/slurm.conf")
        self._wait(self._nodes_are_idle, "both nodes must become idle")

    def _daemon(self, *command: str) -> None:
        # --pdeathsig: they end with the tests even where those are killed and clean up nothing.
        with (self.folder / "daemons.log").open("ab") as log:
            self.daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "TERM", *command],
                    env=self.environment,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def _nodes_are_idle(self) -> bool:
        shown = self.command("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).stdout
        return sorted(shown.split("\n")) == ["", "n1 idle", "n2 idle"]

    def _wait(self, happened: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            dead = [daemon.args for daemon in self.daemons if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                raise RuntimeError(f"{what}; ended: {dead}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The end of every daemon's log."""
        texts = {path.name: path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))}
        return "\n".join(f"== {name}\n{text[-2000:]}" for name, text in texts.items())

    def command(
        self, *command: str, check: bool = True, cwd: Path | None = None, extra: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One of SLURM's commands, to its end."""
        result = subprocess.run(
            command,
            env={**self.environment, **(extra or {})},
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or result.returncode == 0, f"{command}\n{result.stderr}\n{self.logs()}"
        return result

    def submit(self, *command: str | Path, cwd: Path, **environment: str) -> str:
        """`sbatch COMMAND` in a folder; the job's number. Its output is in that folder."""
        words = ["sbatch", "--parsable", "--output=job-%j.log", *map(str, command)]
        return self.command(*words, cwd=cwd, extra=environment).stdout.strip()

    def job(self, number: str, cwd: Path) -> Job:
        """A job as it is now. On a machine that is very busy the controller may be late to answer: then without state.

        Elements of an array have numbers of their own; that of the array itself is the last element's.
        """
        shown = self.command("scontrol", "show", "job", number, "--oneliner", check=False).stdout
        line = next((line for line in shown.splitlines() if line.startswith(f"JobId={number} ")), "")
        found = dict(re.findall(r"(\S+?)=(\S*)", line))
        log = cwd / f"job-{number}.log"
        return Job(
            number,
            found.get("JobState", ""),
            int(found.get("ExitCode", "0").partition(":")[0]),
            int(found.get("Restarts", 0)),
            log.read_text(errors="replace") if log.exists() else "",
        )

    def wait(self, number: str, cwd: Path, until: Callable[[Job], bool], seconds: float = 600) -> Job:
        """The job as soon as it is so. Raises RuntimeError when it ends before, or it takes too long."""
        deadline = time.monotonic() + seconds
        while True:
            job = self.job(number, cwd)
            if until(job):
                return job
            if job.has_ended or time.monotonic() > deadline:
                self.command("scancel", number, check=False)
                raise RuntimeError(f"it never was so: {job}\n{self.logs()}")
            time.sleep(0.2)

    def run(self, *command: str | Path, cwd: Path, seconds: float = 600, **environment: str) -> Job:
        """Submit a job and wait until it has ended."""
        number = self.submit(*command, cwd=cwd, **environment)
        return self.wait(number, cwd, lambda job: job.has_ended, seconds)

    def start_again(self, number: str, cwd: Path, restart: int) -> Job:
        """Wait until a job is back in the queue, then have it start at once and not in two minutes.

        Not at this very second: SLURM takes credentials of the time at which it revoked the earlier ones for those.
        """
        job = self.wait(number, cwd, lambda job: job.state == "PENDING" and job.restarts == restart)
        self.command("scontrol", "update", f"JobId={number}", "StartTime=now+3", "TimeLimit=30")
        return job

    def processes(self) -> list[int]:
        """Daemons, steps and ranks: whatever has this cluster's folder in its command line or environment."""
        mark, found = str(self.folder).encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                known = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:  # it ended while we looked, or is a kernel thread
                continue
            if mark in known:
                found.append(int(process.name))
        return found

    def stop(self) -> None:
        """End jobs, then daemons, then whatever is still there."""
        for daemon in reversed(self.daemons):  # munged last: the others need it to say goodbye
            if daemon.poll() is None:
                daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self.processes():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + 10
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)


def free_ports(number: int) -> list[int]:
    """Ports that nothing listens on, all different."""
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def plain_environment() -> dict[str, str]:
    """This environment without what a SLURM job that runs the tests would add, and with this clone's package."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN", "BMSCALE"))
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), SBIN])
    # No GPU, so that the run on SLURM and the one beside it have the same device everywhere.
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    missing = [program for program in PROGRAMS if shutil.which(program, path=SBIN) is None]
    if missing:
        pytest.skip(f"a real SLURM needs slurm-wlm and munge (Debian); not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("a real SLURM on one machine needs root: slurmd starts jobs in the name of users")
    # Not pytest's folder: the path of a socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="bmscale-slurm-"))
    cluster = Cluster(folder, {**plain_environment(), "SLURM_CONF": str(folder / "slurm.conf")})
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        left = cluster.processes()
        shutil.rmtree(folder, ignore_errors=True)
        assert not left, f"processes of the test cluster are still there: {left}"
