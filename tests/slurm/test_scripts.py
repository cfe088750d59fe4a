"""The SLURM scripts against stand-ins for srun, scontrol and the launcher: what each node is told, in milliseconds.

tests/slurm/test_cluster.py runs them on a real SLURM; here is what two nodes on one machine cannot show, and what is
checked where SLURM is not installed.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
case "$2" in
  hostnames) printf 'a7\\na8\\n' ;;
  node) [ -z "${ADDRESS:-}" ] || printf 'NodeName=%s\\n   NodeAddr=%s NodeHostName=x\\n' "$3" "$ADDRESS" ;;
esac
"""
ACCELERATE = """\
echo "threads=$OMP_NUM_THREADS in=$PWD $(printf '%s|' "$@")" >>"$RECORD"
exit "${LAUNCHER_CODE:-0}"
"""


@pytest.fixture
def programs(tmp_path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "accelerate": ACCELERATE}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (folder / name).chmod(0o755)
    return folder


def submit(
    programs: Path, *arguments: str, script: Path = TRAIN, **variables: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a script as SLURM runs it: a copy elsewhere, with the variables of a job of two nodes."""
    spool = programs.parent / "spool"
    spool.mkdir(exist_ok=True)
    copy = spool / "slurm_script"
    copy.write_text(script.read_text())
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
    result = subprocess.run(
        ["bash", str(copy), *arguments],
        cwd=spool,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result, record.read_text().splitlines() if record.exists() else []


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
    assert len(steps) == 2  # the check of all nodes, then the training
    for step in steps:
        assert "--nodes=2 --ntasks=2 --ntasks-per-node=1 --cpu-bind=none --export=ALL" in step
    assert "--kill-on-bad-exit=1 --wait=0" in steps[1]


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
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").write_text('#!/bin/sh\necho "env=$VIRTUAL_ENV path=${PYTHONPATH:-}" >>"$RECORD"\n')
    (environment / "bin" / "python").chmod(0o755)
    for name in ("my env", str(environment)):
        result, record = submit(programs, "runs/toy", script=EVALUATE, BMSCALE_ENV=name)
        assert result.returncode == 0, result.stderr
        assert f"env={environment} path=" in record
        result, record = submit(programs, "toy", BMSCALE_ENV=name)
        assert result.returncode == 0, result.stderr
        assert record.count(f"env={environment} path=") == 4  # the check and the training, on two nodes


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "message"),
    [
        (TRAIN, ["toy"], {"SLURM_JOB_ID": ""}, "must run inside a SLURM job: sbatch slurm/train.sh CONFIG"),
        (TRAIN, [], {}, "CONFIG must be given"),
        (TRAIN, ["toy"], {"BMSCALE_RANKS_PER_NODE": "two"}, "must be a number above 0; got 'two'"),
        (TRAIN, ["toy"], {"BMSCALE_RANKS_PER_NODE": "0"}, "must be a number above 0; got '0'"),
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
    bare = programs / "python"
    bare.write_text("#!/bin/sh\necho deepspeed\n")
    bare.chmod(0o755)
    result, record = submit(programs, "toy")
    assert result.returncode == 2
    assert "node a8: the environment 'active' must have bmscale and what it needs; missing: deepspeed" in result.stderr
    assert not launches(record)
