"""The command: on a machine that is well, on ones that are not, and on real ranks."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from bmscale.cli import main
from bmscale.config import shipped_file
from bmscale.doctor import doctor, machine, packages
from bmscale.doctor.findings import Finding
from bmscale.doctor.meeting import Meeting

LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", str(shipped_file("launch", "cpu_2proc.yaml"))]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
WORKER = str(Path(__file__).parent / "ill_worker.py")
MACHINE = [
    *("versions", "launcher", "settings", "deepspeed", "accelerator", "memory", "shared memory", "ports"),
    *("host name", "disk", "operators", "ranks"),
]
ASKED = ["trackers", "experiment", "memory need"]
TOGETHER = ["engine", "all-reduce", "world size", "accumulation", "clipping", "precision", "schedule"]


@pytest.fixture
def alone(monkeypatch):
    """No launcher, and a port that nothing else on this machine has."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = int(probe.getsockname()[1])
    monkeypatch.setattr(machine, "USUAL_PORT", port)


def lines_of(out: str) -> dict[str, tuple[str, str]]:
    """The status and the text of each check; every line must be one."""
    found = {}
    for line in out.splitlines():
        match = re.fullmatch(r"(ok  |warn|fail)  (.{13})  (.+)", line)
        assert match, line
        found[match[2].strip()] = (match[1].strip(), match[3])
    return found


def test_a_machine_that_is_well(alone, capfd):
    assert main(["doctor"]) == 0
    captured = capfd.readouterr()
    found = lines_of(captured.out)
    assert list(found) == MACHINE
    assert {status for status, _ in found.values()} <= {"ok", "warn"}
    assert re.search(r"12 checks: \d+ ok, \d+ warnings, 0 failed", captured.err)
    os.write(1, b"back on standard output\n")
    assert capfd.readouterr().out == "back on standard output\n"


def test_all_that_is_wrong_is_told_at_once_and_for_programs(alone, capfd, monkeypatch):
    little = SimpleNamespace(f_bavail=9, f_bfree=9, f_blocks=99, f_frsize=4096, f_files=99, f_favail=3)
    monkeypatch.setattr(os, "statvfs", lambda path: little)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(machine, "check_operators", lambda file, required: 1 / 0)
    assert main(["doctor", "--json"]) == 1
    captured = capfd.readouterr()
    values = json.loads(captured.out)
    assert values["ok"] is False
    assert values["hosts"] == {"0": socket.gethostname()}
    failed = {line["check"]: line for line in values["checks"] if line["status"] == "fail"}
    assert list(failed) == ["settings", "shared memory", "disk", "operators"]
    assert failed["disk"]["found"].endswith("but room for 3 files only")
    assert failed["operators"]["found"] == "ZeroDivisionError: division by zero"
    assert failed["disk"]["ranks"]["0"]["advice"] == "remove files"
    assert "Traceback" not in captured.err


def test_half_a_launcher_is_told_beside_the_rest(alone, capfd, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(machine, "check_operators", lambda file, required: 1 / 0)
    assert main(["doctor"]) == 1
    found = lines_of(capfd.readouterr().out)
    assert found["launcher"][0] == "fail"
    assert "use `accelerate launch --config_file launch/cpu_2proc.yaml` or torchrun" in found["launcher"][1]
    assert "memory" in found


def test_an_experiment_that_cannot_be_read_is_bad_input(alone, capfd):
    assert main(["doctor", "toy", "training.precision=fp16"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "must be bf16 or fp32; got fp16" in captured.err
    assert main(["doctor", "--seconds", "0"]) == 2
    assert main(["doctor", "--seconds", "nan"]) == 2


def test_without_torch_it_says_so(alone, capfd, monkeypatch):
    there = packages.installed
    monkeypatch.setattr(packages, "missing", lambda: iter(["torch"]))
    monkeypatch.setattr(
        packages.check_versions, "__defaults__", (lambda name: None if name == "torch" else there(name),)
    )
    assert main(["doctor", "toy"]) == 1
    found = lines_of(capfd.readouterr().out)
    assert found["versions"][1].startswith("torch<2.14,>=2.11 is not installed -> pip install")
    assert found["machine"] == ("fail", "cannot be looked at without torch")


def test_a_check_that_hangs_is_given_up_and_the_next_is_made(alone, capfd, monkeypatch):
    over = threading.Event()
    codes: list[int] = []
    monkeypatch.setattr(doctor, "CHECK_SECONDS", 0.3)
    monkeypatch.setattr(machine, "check_disk", lambda folder: over.wait(60))
    monkeypatch.setattr(os, "_exit", codes.append)  # the thread may never come back
    assert main(["doctor"]) == 1
    found = lines_of(capfd.readouterr().out)
    assert found["disk"] == ("fail", "did not end within 0.3 s")
    assert found["operators"][0] in ("ok", "warn")
    assert codes == [1]
    over.set()


def test_a_rank_that_says_nothing_any_more_is_named(capfd):
    visit = doctor._Visit(sys.stdout, False, 1.0)
    visit.meeting, visit.hosts = Meeting(HashStore(), 0, 3), {0: "a", 1: "b", 2: "b"}
    visit.meeting._say("engine/2", [asdict(Finding("engine", "ok", "ZeRO-2"))])
    visit.share("engine", [Finding("engine", "ok", "ZeRO-2")], 0.3)
    found = lines_of(capfd.readouterr().out)
    assert found["engine"] == ("ok", "ZeRO-2")
    assert found["ranks"][0] == "fail"
    assert "no word of rank 1 on b after engine" in found["ranks"][1]
    visit.together("trial", lambda: pytest.fail("must not be tried"), 0.3)
    assert lines_of(capfd.readouterr().out)["trial"] == ("warn", "not tried, since ranks failed")


def test_where_something_else_listens_the_ranks_do_not_meet(tmp_path):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        rank = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment = {**os.environ, **rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [sys.executable, "-m", "bmscale", "doctor", "--seconds", "1"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert result.returncode == 1
    assert f"all 2 ranks must meet at 127.0.0.1:{port} within 1 s, and did not" in result.stderr
    assert "frame #" not in result.stderr


def on_two_ranks(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_two_ranks_that_are_well_under_accelerate(prepared):
    result = on_two_ranks(
        prepared, *LAUNCH, "-m", "bmscale", "doctor", "tiny.yaml", "training.precision=bf16", "--json"
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    values = json.loads(result.stdout)
    found = {line["check"]: line for line in values["checks"]}
    assert list(found) == [*MACHINE[:-2], *ASKED, *MACHINE[-2:], *TOGETHER]
    assert all(line["status"] in ("ok", "warn") for line in found.values())
    assert all(list(found[check]["ranks"]) == ["0", "1"] for check in found)
    assert values["hosts"] == {"0": socket.gethostname(), "1": socket.gethostname()}
    assert found["engine"]["found"] == "ZeRO-2 (zero2.json), 2 ranks on cpu, bf16"
    rate = re.match(r"([0-9.]+) GB/s sent by each of 2 ranks", found["all-reduce"]["found"])
    assert rate
    assert 0.001 < float(rate[1]) < 1000
    assert found["schedule"]["found"].startswith("constant: the rate is 0.00125 in step 1, 0.005 in step 4, 0.005 in")
    assert not (prepared / "runs").exists()


def test_an_engine_that_does_something_else(prepared):
    result = on_two_ranks(prepared, *TORCHRUN, WORKER, "engine", "doctor", "tiny.yaml")
    assert result.returncode == 1
    found = lines_of(result.stdout)
    failed = {check for check, (status, _) in found.items() if status == "fail"}
    assert failed == {"accumulation", "clipping", "schedule"}, result.stdout + result.stderr[-3000:]
    assert "every rank: the gradient of 3 micro-batches a rank is" in found["accumulation"][1]
    assert "reaches Adam with 9." in found["clipping"][1]
    assert "step 4: 0.005 was asked for, moved by 0.01" in found["schedule"][1]


def test_one_rank_that_is_not_well_is_named(prepared):
    result = on_two_ranks(prepared, *TORCHRUN, WORKER, "rank", "doctor", "tiny.yaml")
    assert result.returncode == 1
    found, host = lines_of(result.stdout), socket.gethostname()
    assert found["experiment"][0] == "fail"
    assert f"rank 1 on {host} has data of another disk; rank 0 on {host} has data " in found["experiment"][1]
    assert found["all-reduce"][0] == "fail"
    assert f"rank 0 on {host}: given up, since rank 1 on {host} failed" in found["all-reduce"][1]
    assert f"rank 1 on {host}: RuntimeError: no route to host" in found["all-reduce"][1]
    assert found["trial"] == ("warn", "every rank: not tried, since all-reduce failed")
    assert "/bmscale/doctor/" not in result.stderr  # of tracebacks only the launcher's own
