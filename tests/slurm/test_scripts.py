"""The SLURM scripts against stand-ins for srun, scontrol and the launcher: what each node is told, in milliseconds.

tests/slurm/test_cluster.py runs them on a real SLURM; here is what two nodes on one machine cannot show, and what is
checked where SLURM is not installed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bmscale.cluster.submit import fill_in

ROOT = Path(__file__).parent.parent.parent
TRAIN, EVALUATE = ROOT / "slurm" / "train.sh", ROOT / "slurm" / "evaluate.sh"

# srun starts the command once a node, each with its own variables, and returns the highest code.
SRUN = """\
echo "srun $*" | head -1 >>"$RECORD"
while [ "${1#--}" != "$1" ]; do shift; done
worst=0
for node in 0 1; do
  SLURM_NODEID=$node SLURMD_NODENAME=a$((7 + node)) "$@" || { code=$?; worst=$((code > worst ? code : worst)); }
done
exit $worst
"""
SCONTROL = """\
case "$1 $2" in
  'show hostnames') printf 'a7\\na8\\n' ;;
  'show node') [ -z "${ADDRESS:-}" ] || printf 'NodeName=%s\\n   NodeAddr=%s NodeHostName=x\\n' "$3" "$ADDRESS" ;;
  'show job') echo "   JobState=${STATE:-RUNNING} Reason=${REASON:-None} Dependency=(null)" ;;
  requeue*) echo "requeue $2" >>"$RECORD" ;;
esac
"""
SQUEUE = """\
case "$*" in *--jobs=99*) echo "${OTHER:-}" ;; esac
"""
SCANCEL = """\
echo "scancel $*" >>"$RECORD"
"""
# What bmscale answers; anything else is asked of Python itself.
PYTHON = f"""\
case "$*" in
  *'train --dry-run'*) [ -z "${{REFUSED:-}}" ] || {{ echo "$REFUSED" >&2; exit 2; }}; echo "${{RUN:-runs/toy}}" ;;
  *doctor*) echo "${{*:3}}" >>"$RECORD" ;;
  *preflight*) echo "meet ${{*: -5}}" >>"$RECORD"; exit "${{MEET:-0}}" ;;
  *shipped_file*) echo '{ROOT}/launch/multi_node.yaml' ;;
  *find_spec*) ;;
  *) exec '{sys.executable}' "$@" ;;
esac
"""
ACCELERATE = """\
echo "threads=$OMP_NUM_THREADS in=$PWD $(printf '%s|' "$@")" >>"$RECORD"
[ -z "${SAY:-}" ] || echo "$SAY on $SLURMD_NODENAME"
[ "$SLURM_NODEID" = 1 ] || {
  [ -z "${EXIT:-}" ] || echo "$EXIT" >runs/toy/exit.json
  [ -z "${OPEN_RANK:-}" ] || { mkdir -p runs/toy/ranks; echo "$OPEN_RANK" >runs/toy/ranks/rank-00001.json; }
  [ -z "${RANK_PROGRAM:-}" ] || TORCHELASTIC_RUN_ID=$PET_RDZV_ID bash -c "$RANK_PROGRAM"
}
exit "${LAUNCHER_CODE:-0}"
"""
# The longer waits of a node for another one lead nowhere here, where one comes after the other.
SLEEP = """\
case $1 in 20) ;; *) command -p sleep "$1" ;; esac
"""
STANDINS = {
    "srun": SRUN,
    "scontrol": SCONTROL,
    "squeue": SQUEUE,
    "scancel": SCANCEL,
    "python": PYTHON,
    "accelerate": ACCELERATE,
    "sleep": SLEEP,
}


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path) -> Path:
    folder = tmp_path / "bin"
    for name, text in STANDINS.items():
        write_program(folder / name, text)
    return folder


def start(programs: Path, *arguments: str, script: Path | str = TRAIN, **variables: str) -> subprocess.Popen[str]:
    """Run a script as SLURM runs it: a copy elsewhere, with the variables of a job of two nodes."""
    spool = programs.parent / "spool"
    spool.mkdir(exist_ok=True)
    copy = spool / "slurm_script"
    copy.write_text(Path(script).read_text())
    submitted = programs.parent / "work here"
    submitted.mkdir(exist_ok=True)
    record = programs.parent / "record"
    record.unlink(missing_ok=True)
    job = {
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "a[7-8]",
        "SLURM_SUBMIT_DIR": str(submitted),
        "SLURM_CPUS_ON_NODE": "16",
        "SLURMD_NODENAME": "a7",
        "BMSCALE_ENV": "active",
        "PYTHONPATH": str(ROOT),
        "RECORD": str(record),
    }
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {"HOME": os.environ.get("HOME", "/"), "PATH": path}
    environment = {name: value for name, value in {**kept, **job, **variables}.items() if value}
    return subprocess.Popen(
        ["bash", str(copy), *arguments],
        cwd=spool,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def submit(
    programs: Path, *arguments: str, script: Path | str = TRAIN, **variables: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The same to its end, and what the stand-ins recorded."""
    job = start(programs, *arguments, script=script, **variables)
    stdout, stderr = job.communicate(timeout=60)
    return subprocess.CompletedProcess([], job.returncode, stdout, stderr), recorded(programs)


def recorded(programs: Path) -> list[str]:
    record = programs.parent / "record"
    return record.read_text().splitlines() if record.exists() else []


def launches(record: list[str]) -> list[str]:
    return [line for line in record if line.startswith("threads=")]


def test_each_node_is_told_its_own_rank_and_the_same_rendezvous(programs):
    result, record = submit(programs, "toy", "training.max_steps=100", "run=runs/a name")
    assert result.returncode == 0, result.stderr
    folder = programs.parent / "work here"
    wanted = (
        f"threads=16 in={folder} launch|--config_file|{ROOT}/launch/multi_node.yaml|--num_machines|2|--num_processes|2|"
        "--machine_rank|{rank}|--main_process_ip|a7|--main_process_port|13456|--deepspeed_multinode_launcher|standard|"
        "-m|bmscale|train|toy|training.max_steps=100|run=runs/a name|"
    )
    assert launches(record) == [wanted.format(rank=0), wanted.format(rank=1)]
    steps = [line for line in record if line.startswith("srun")]
    assert len(steps) == 3  # the check of all nodes, their meeting, then the training
    for step in steps:
        assert "--nodes=2 --ntasks=2 --ntasks-per-node=1 --cpu-bind=none --export=ALL" in step
    assert "--kill-on-bad-exit=1 --wait=60" in steps[2]
    assert [line for line in record if line.startswith("meet")] == [f"meet a7 13456 2 {node} 120" for node in (0, 1)]


def test_a_start_after_a_requeue_meets_elsewhere(programs):
    """Nothing of the start before can join: another port and another name."""
    write_program(programs / "accelerate", f'echo "meets as $PET_RDZV_ID" >>"$RECORD"\n{ACCELERATE}')
    _, first = submit(programs, "toy")
    _, second = submit(programs, "toy", SLURM_RESTART_COUNT="2")
    assert all("|--main_process_port|13456|" in line for line in launches(first))
    assert all("|--main_process_port|29294|" in line for line in launches(second))
    assert first.count("meets as bmscale-123456-0") == second.count("meets as bmscale-123456-2") == 2


@pytest.mark.parametrize(
    ("variables", "ranks", "threads"),
    [
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}, 8, 8),
        ({"SLURM_GPUS_PER_NODE": "a100:4", "SLURM_CPUS_PER_TASK": "6"}, 4, 1),
        ({"SLURM_GPUS_PER_NODE": "4"}, 4, 4),
        ({"BMSCALE_RANKS_PER_NODE": "2"}, 2, 8),
        ({"BMSCALE_RANKS_PER_NODE": "32"}, 32, 1),
        ({"SLURM_GPUS_ON_NODE": "8", "BMSCALE_RANKS_PER_NODE": "3"}, 3, 5),
        ({"OMP_NUM_THREADS": "3"}, 1, 3),
    ],
)
def test_ranks_follow_gpus_and_threads_follow_ranks(programs, variables, ranks, threads):
    result, record = submit(programs, "toy", **variables)
    assert result.returncode == 0, result.stderr
    assert len(launches(record)) == 2
    for line in launches(record):
        assert f"|--num_processes|{2 * ranks}|" in line
        assert line.startswith(f"threads={threads} ")


def test_a_script_that_bmscale_submit_filled_in(programs, monkeypatch):
    monkeypatch.setenv("BMSCALE_ENV", "active")  # of which submit makes a part of the script
    filled = programs.parent / "filled.sh"
    filled.write_text(fill_in(["my own.yaml", "--new-schedule"], ["--nodes=2"]))
    result, record = submit(programs, script=filled)
    assert result.returncode == 0, result.stderr
    assert len(launches(record)) == 2
    assert all(line.endswith("|-m|bmscale|train|my own.yaml|--new-schedule|") for line in launches(record))


def test_the_rendezvous_is_where_slurm_reaches_the_node(programs):
    _, record = submit(programs, "toy", ADDRESS="10.0.0.7")
    assert all("|--main_process_ip|10.0.0.7|" in line for line in launches(record))


def test_another_sharding_is_told_to_the_launcher_as_well(programs):
    """The launch file names zero2, and both must name the same."""
    _, record = submit(programs, "toy", "training.deepspeed=zero3")
    assert all("|--deepspeed_config_file|zero3|" in line for line in launches(record))
    assert all("|toy|training.deepspeed=zero3|" in line for line in launches(record))
    _, record = submit(programs, "toy", "training.deepspeed=null")
    assert not any("deepspeed_config_file" in line for line in launches(record))


@pytest.mark.parametrize(("launcher", "job"), [("0", 0), ("1", 1), ("3", 3), ("143", 1), ("137", 1)])
def test_the_job_ends_as_its_nodes_end(programs, launcher, job):
    result, _ = submit(programs, "toy", LAUNCHER_CODE=launcher)
    assert result.returncode == job


def test_an_environment_by_its_folder(programs):
    """Relative to the folder in which sbatch was called; what PYTHONPATH says no longer counts in it."""
    environment = programs.parent / "work here" / "my env"
    noted = 'echo "env=$VIRTUAL_ENV path=${PYTHONPATH:-}" >>"$RECORD"\n'
    write_program(environment / "bin" / "python", noted + PYTHON.replace("exec", "true"))
    for name in ("my env", str(environment)):
        result, record = submit(programs, "runs/toy", script=EVALUATE, BMSCALE_ENV=name)
        assert result.returncode == 0, result.stderr
        assert f"env={environment} path=" in record
        result, record = submit(programs, "toy", BMSCALE_ENV=name)
        assert result.returncode == 0, result.stderr
        assert record.count(f"env={environment} path=") > 4  # checks and training, on two nodes
        assert not any(line.startswith("env=") and line != f"env={environment} path=" for line in record)


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "message"),
    [
        (TRAIN, ["toy"], {"SLURM_JOB_ID": ""}, "must run inside a SLURM job: sbatch slurm/train.sh CONFIG"),
        (TRAIN, [], {}, "CONFIG must be given"),
        (TRAIN, ["toy"], {"BMSCALE_RANKS_PER_NODE": "two"}, "must be a whole number of at least 1; got 'two'"),
        (TRAIN, ["toy"], {"BMSCALE_RANKS_PER_NODE": "0"}, "must be a whole number of at least 1; got '0'"),
        (TRAIN, ["toy"], {"BMSCALE_MAX_REQUEUES": "-1"}, "must be a whole number of at least 0; got '-1'"),
        (TRAIN, ["toy"], {"BMSCALE_PREFLIGHT_SECONDS": "1m"}, "must be a whole number of at least 0; got '1m'"),
        (TRAIN, ["toy"], {"REFUSED": "bmscale: error: did you mean"}, "bmscale: error: did you mean"),
        (TRAIN, ["toy"], {"SLURM_JOB_NUM_NODES": "3"}, "must name the job's 3 nodes; got 'a7 a8'"),
        (
            TRAIN,
            ["toy"],
            {"SLURM_SUBMIT_DIR": "/not/shared"},
            "node a8: must see the folder in which sbatch was called",
        ),
        (TRAIN, ["toy"], {"BMSCALE_ENV": ""}, "node a8: there must be a Python environment in"),
        (TRAIN, ["toy"], {"BMSCALE_ENV": "nowhere"}, "/work here/nowhere, and there is none"),
        (EVALUATE, ["runs/toy"], {"SLURM_JOB_ID": ""}, "must run inside a SLURM job: sbatch slurm/evaluate.sh RUN"),
        (EVALUATE, [], {}, "RUN must be given"),
        (EVALUATE, ["runs/toy"], {"BMSCALE_ENV": ""}, "node a7: there must be a Python environment in"),
        (EVALUATE, ["runs/toy"], {"SLURM_SUBMIT_DIR": "/not/shared"}, "node a7: must see the folder"),
    ],
)
def test_what_must_hold_is_said_before_anything_starts(programs, script, arguments, variables, message):
    result, record = submit(programs, *arguments, script=script, **variables)
    assert result.returncode == 2
    assert message in result.stderr
    assert not launches(record)


def test_a_package_that_is_missing_on_a_node_is_named(programs):
    write_program(programs / "python", "echo deepspeed\n")
    result, record = submit(programs, "toy")
    assert result.returncode == 2
    assert "node a8: the environment 'active' must have bmscale and what it needs; missing: deepspeed" in result.stderr
    assert not launches(record)


# -- before the training -----------------------------------------------------------------------------------------------


def test_a_gpu_that_is_in_use_stops_the_job(programs):
    """Only those of the job count, and a figure that the driver does not give counts as nothing."""
    write_program(programs / "nvidia-smi", 'echo "smi $*" >>"$RECORD"; printf "0, 3\\n1, $USED\\n"; exit "${SMI:-0}"\n')
    gpus = {"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1"}
    for used in ("400", "[N/A]"):
        result, record = submit(programs, "toy", **gpus, USED=used)
        assert result.returncode == 0, result.stderr
        assert any(line.startswith("smi --id=0,1 --query-gpu=index,memory.used") for line in record)
    result, record = submit(programs, "toy", **gpus, USED="41213")
    assert result.returncode == 5
    assert "node a8: GPU 1 must be free before training, and 41213 MiB" in result.stderr
    assert not launches(record)
    result, _ = submit(programs, "toy", **gpus, USED="0", SMI="9")
    assert result.returncode == 5
    assert "node a7: nvidia-smi must work" in result.stderr
    assert submit(programs, "toy", USED="41213")[0].returncode == 0  # a job without GPUs
    assert submit(programs, "toy", **{**gpus, "CUDA_VISIBLE_DEVICES": "MIG-1"}, USED="41213")[0].returncode == 0


def test_nodes_that_do_not_meet_stop_the_job(programs):
    result, record = submit(programs, "toy", MEET="1", BMSCALE_PREFLIGHT_SECONDS="7")
    assert result.returncode == 5
    for node in ("a7", "a8"):
        assert f"node {node}: must meet the others at a7:13456 within 7 s" in result.stderr
    assert not launches(record)
    assert submit(programs, "toy", MEET="1", BMSCALE_PREFLIGHT_SECONDS="0")[0].returncode == 0


def test_a_doctor_looks_at_each_node_and_speaks_of_what_is_wrong(programs):
    result, record = submit(programs, "toy")
    assert result.returncode == 0, result.stderr
    assert record.count("doctor") == 2
    assert "doctor" not in submit(programs, "toy", BMSCALE_PREFLIGHT_SECONDS="0")[1]
    write_program(programs / "python", f'case "$*" in *" doctor") echo "fail  disk"; exit 1 ;; esac\n{PYTHON}')
    result, record = submit(programs, "toy")
    assert result.returncode == 2
    assert "fail  disk\nbmscale: error: node a8: bmscale doctor must find nothing wrong" in result.stderr
    assert not launches(record)


def test_a_run_that_another_job_trains_is_refused(programs):
    mark = programs.parent / "work here" / "runs/toy/logs/job"
    mark.parent.mkdir(parents=True)
    mark.write_text("99\n")
    result, record = submit(programs, "toy", OTHER="RUNNING")
    assert result.returncode == 2
    assert "runs/toy: must be trained by one job at a time; job 99 is at it" in result.stderr
    assert not launches(record)
    assert mark.read_text() == "99\n"
    for other in ("COMPLETING", ""):
        mark.write_text("99\n")
        assert submit(programs, "toy", OTHER=other)[0].returncode == 0
        assert mark.read_text() == "123456\n"


def test_of_two_jobs_that_start_at_once_one_goes_on(programs):
    mark = programs.parent / "work here" / "runs/toy/logs/job"
    write_program(programs / "python", f'case "$*" in *preflight*) echo 99 >"{mark}" ;; esac\n{PYTHON}')
    result, record = submit(programs, "toy")
    assert result.returncode == 2
    assert "job 99 began with it too" in result.stderr
    assert not launches(record)


def test_the_stop_switch_lets_nothing_start(programs):
    run = programs.parent / "work here" / "runs/toy"
    run.mkdir(parents=True)
    (run / "STOP").touch()
    result, record = submit(programs, "toy")
    assert result.returncode == 0
    assert f"{run}/STOP is there: nothing is trained until it is removed" in result.stderr
    assert not launches(record)


# -- how a job ends ----------------------------------------------------------------------------------------------------


def said(kind: str, code: int) -> str:
    return json.dumps({"class": kind, "code": code, "message": 'it said "class": "done" and so on'})


@pytest.mark.parametrize(
    ("kind", "code", "requeued"),
    [
        ("done", 0, False),
        ("stopped", 0, False),
        ("failed", 1, False),
        ("bad_input", 2, False),
        ("diverged", 3, False),
        ("out_of_memory", 4, False),
        ("lost_rank", 5, True),
        ("preempted", 75, True),
        ("interrupted", 130, False),
    ],
)
def test_exit_json_decides(programs, kind, code, requeued):
    """The job, not its launcher, which says 1 to everything. In an array the others go on, or are cancelled."""
    result, record = submit(programs, "toy", EXIT=said(kind, code), LAUNCHER_CODE="1")
    assert result.returncode == code, result.stderr
    assert ("requeue 123456" in record) == requeued
    assert not any(line.startswith("scancel") for line in record)

    array = {"SLURM_ARRAY_JOB_ID": "123450", "SLURM_ARRAY_TASK_ID": "6"}
    result, record = submit(programs, "toy", EXIT=said(kind, code), LAUNCHER_CODE="1", **array)
    assert result.returncode == code
    assert not any(line.startswith("requeue") for line in record)
    assert ("scancel --state=PENDING 123450" in record) == (code not in (0, 5, 75))


def test_what_an_earlier_start_said_does_not_count(programs):
    left = programs.parent / "work here" / "runs/toy/exit.json"
    left.parent.mkdir(parents=True)
    left.write_text(said("preempted", 75))
    result, record = submit(programs, "toy", LAUNCHER_CODE="1")
    assert result.returncode == 1
    assert not any(line.startswith("requeue") for line in record)
    assert left.exists()  # it may be of another run, which these arguments named by mistake


def test_ranks_that_are_gone_without_a_word_are_lost(programs):
    """SLURM may kill all of them before one can write exit.json; an error of their own is another thing."""
    write_program(programs / "sleep", "")
    result, record = submit(programs, "toy", OPEN_RANK='{"pid": 1, "error": null}', LAUNCHER_CODE="137")
    assert result.returncode == 5
    assert "requeue 123456" in record
    result, record = submit(programs, "toy", OPEN_RANK='{"pid": 1, "error": "Trace"}', LAUNCHER_CODE="1")
    assert result.returncode == 1
    assert "requeue 123456" not in record
    result, record = submit(programs, "toy", LAUNCHER_CODE="1")  # the file of the start before is still there
    assert result.returncode == 1


def test_requeues_have_an_end(programs):
    for restarts, most, requeued in (("19", "", True), ("20", "", False), ("2", "3", True), ("0", "0", False)):
        variables = {"SLURM_RESTART_COUNT": restarts, "BMSCALE_MAX_REQUEUES": most}
        result, record = submit(programs, "toy", EXIT=said("preempted", 75), **variables)
        assert result.returncode == 75
        assert ("requeue 123456" in record) == requeued, variables
    assert "after 0 restarts (BMSCALE_MAX_REQUEUES): the same sbatch line goes on with the run" in result.stderr


@pytest.mark.parametrize(
    ("state", "reason", "requeued"),
    [("RUNNING", "None", True), ("COMPLETING", "TimeLimit", True), ("COMPLETING", "None", False)],
)
def test_a_cancelled_job_stays_cancelled(programs, state, reason, requeued):
    result, record = submit(programs, "toy", EXIT=said("preempted", 75), STATE=state, REASON=reason)
    assert result.returncode == 75
    assert ("requeue 123456" in record) == requeued


def test_output_is_the_jobs_and_each_nodes(programs):
    logs = programs.parent / "work here" / "runs/toy/logs"
    for _ in range(2):
        result, _ = submit(programs, "toy", SAY="a word")
        assert "a word on a7\na word on a8\n" in result.stdout
    for node in ("a7", "a8"):
        assert (logs / f"123456-{node}.txt").read_text() == f"a word on {node}\n" * 2


# -- signals -----------------------------------------------------------------------------------------------------------

# A rank: first it imports, when a signal would kill it; then it saves when it gets one.
RANK = """\
mkdir -p runs/toy/ranks
echo "{\\"rank\\": 0, \\"pid\\": $$, \\"error\\": null}" >runs/toy/ranks/rank-00000.json
sleep 1
trap 'asked=1' USR1
for _ in {1..1200}; do [ -n "${asked:-}" ] && break; sleep 0.05; done # a test that fails leaves nobody behind
sleep 0.5
echo '{"class": "preempted", "code": 75, "message": "saved"}' >runs/toy/exit.json
rm runs/toy/ranks/rank-00000.json
"""


def wait_for(happened: Callable[[], bool], job: subprocess.Popen[str], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_the_job_reaches_a_rank_and_nothing_else(programs, number):
    """As soon as the rank can take it; not a process that has the number of a rank of an earlier start."""
    ranks = programs.parent / "work here" / "runs/toy/ranks"
    ranks.mkdir(parents=True)
    catching = ["bash", "-c", "trap 'exit 1' USR1; while :; do sleep 0.05; done"]
    stranger = subprocess.Popen(catching)
    earlier = subprocess.Popen(catching, env={**os.environ, "TORCHELASTIC_RUN_ID": "bmscale-123456-3"})
    try:
        (ranks / "rank-00001.json").write_text(json.dumps({"pid": stranger.pid}))
        (ranks / "rank-00002.json").write_text(json.dumps({"pid": earlier.pid}))
        job = start(programs, "toy", SLURM_RESTART_COUNT="4", RANK_PROGRAM=RANK, LAUNCHER_CODE="1")
        wait_for((ranks / "rank-00000.json").exists, job)
        job.send_signal(number)
        job.send_signal(number)
        _, stderr = job.communicate(timeout=60)
        assert job.returncode == 75, stderr
        assert "preempted: back into the queue, restart 5 of at most 20" in stderr
        assert "requeue 123456" in recorded(programs)
        assert stranger.poll() is None
        assert earlier.poll() is None
    finally:
        for process in (stranger, earlier):
            process.kill()
            process.wait()


def test_a_signal_before_the_training_starts_requeues(programs):
    marker = programs.parent / "checking"
    write_program(programs / "c++", "")
    write_program(
        programs / "python",
        f'case "$*" in *preflight*) touch "{marker}"; sleep 1 ;; esac\n{PYTHON}',
    )
    job = start(programs, "toy")
    wait_for(marker.exists, job)
    job.send_signal(signal.SIGUSR1)
    _, stderr = job.communicate(timeout=60)
    assert job.returncode == 75, stderr
    assert "requeue 123456" in recorded(programs)
    assert not launches(recorded(programs))


def test_a_signal_while_ranks_still_start_requeues(programs):
    """They have nothing to save, and SIGTERM, which SLURM may send to all processes, ends them."""
    started = programs.parent / "started"
    job = start(programs, "toy", RANK_PROGRAM=f'touch "{started}"; sleep 1', LAUNCHER_CODE="1")
    wait_for(started.exists, job)
    job.send_signal(signal.SIGTERM)
    _, stderr = job.communicate(timeout=60)
    assert job.returncode == 75, stderr
    assert "requeue 123456" in recorded(programs)
