"""Machines that are not well, simulated: each check finds it and says what to change."""

import os
import shutil
import socket
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bmscale.doctor import machine
from bmscale.engine import deepspeed_config, operators, process_group
from bmscale.errors import BadInput

GIB = 2**30
TWO = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
FOUR_ON_TWO_NODES = {**TWO, "WORLD_SIZE": "4"}


# -- how it was started ----------------------------------------------------------------------------------------------


def test_launchers_that_are_well():
    assert machine.check_launcher({}).found == "none: one process"
    meeting = {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert machine.check_launcher({**TWO, **meeting}).found == "2 ranks on this node, meeting at a:1"
    assert machine.check_launcher({**FOUR_ON_TWO_NODES, **meeting}).found == "4 ranks on 2 nodes, meeting at a:1"


@pytest.mark.parametrize("environment", [{"MASTER_ADDR": "127.0.0.1"}, {"WORLD_SIZE": "2"}, {"RANK": "x"}])
def test_half_launched_is_refused(environment):
    with pytest.raises(BadInput):
        machine.check_launcher(environment)


@pytest.mark.parametrize(("tasks", "status"), [("8(x2)", "warn"), ("1(x2)", "ok"), ("4,3", "warn"), ("", "ok")])
def test_ranks_of_srun_without_a_launcher_would_be_alone(tasks, status):
    assert machine.check_launcher({"SLURM_STEP_TASKS_PER_NODE": tasks}).status == status


@pytest.mark.parametrize(
    ("environment", "status", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "fail", "sets ACCELERATE_USE_FSDP"),
        ({"DS_ACCELERATOR": "cuda"}, "fail", "DS_ACCELERATOR is 'cuda', and torch sees no GPU"),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "warn", "CUDA_LAUNCH_BLOCKING=1: for looking for errors"),
        ({"LOCAL_WORLD_SIZE": "100000"}, "warn", "they wait for each other"),
        ({"DS_ACCELERATOR": "cpu"}, "ok", "a rank on"),
    ],
)
def test_settings_that_are_known_to_be_bad(environment, status, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = machine.check_settings(environment)
    assert found.status == status
    assert said in found.found
    assert bool(found.advice) == (status != "ok")


@pytest.mark.parametrize(
    ("given", "status"), [("abc", "warn"), ("-3", "warn"), ("0", "warn"), ("", "warn"), ("2,1", "ok")]
)
def test_threads_that_are_no_number(given, status):
    found = machine.check_settings({"OMP_NUM_THREADS": given})
    assert found.status == status
    if status == "warn":
        assert found.found.startswith(f"OMP_NUM_THREADS must be a number of threads from 1 on; got '{given}'")
        assert found.advice.startswith("OMP_NUM_THREADS=")


def test_a_launch_file_for_cpus_on_a_machine_with_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = machine.check_settings({"ACCELERATE_USE_CPU": "true"})
    assert found.status == "fail"
    assert found.advice.startswith("put CUDA_VISIBLE_DEVICES= in front")


# -- DeepSpeed's operators -------------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """No GPU, nothing built yet, and a PATH with nothing but a shell's needs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "operators"))
    (tmp_path / "bin").mkdir()
    for name in ("bash", "sh", "which", "ninja"):
        beside = Path(sys.executable).parent / name
        program = str(beside) if beside.exists() else shutil.which(name)
        assert program is not None, name
        (tmp_path / "bin" / name).symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    from deepspeed.ops.op_builder.builder import OpBuilder

    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    return tmp_path / "bin"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere DeepSpeed builds none")
def test_without_a_compiler_one_line_says_what_to_install(bare):
    found = machine.check_operators(None, required=True)
    assert found.status == "fail"
    assert found.found == "no C++ compiler: 'c++' is not on PATH, and DeepSpeed builds its operators"
    assert "apt install g++" in found.advice
    found = machine.check_operators(None, required=False)
    assert found.status == "warn"
    assert found.found.endswith("one process without DeepSpeed trains all the same")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere DeepSpeed builds none")
def test_without_ninja_and_where_it_is(bare):
    (bare / "ninja").unlink()
    found = machine.check_operators(None, required=True)
    assert found.status == "fail"
    assert found.found == "ninja is not on PATH: DeepSpeed cannot build its operators"
    assert found.advice == f"PATH={Path(sys.executable).parent}:$PATH"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Error building extension 'x': [1/3] c++\na.cpp:3: error: no such header\nninja: stopped", "no such header"),
        ("undefined symbol: xyz", "RuntimeError: undefined symbol: xyz"),
    ],
)
def test_what_the_compiler_said_is_one_line(monkeypatch, error, said):
    def load(name: str) -> None:
        raise RuntimeError(error)

    monkeypatch.setattr(operators, "needed", lambda file: ["ShareMemCommBuilder"])
    monkeypatch.setattr(operators, "load", load)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    found = machine.check_operators(None, required=True)
    assert found.status == "fail"
    assert found.found.endswith(said)


def test_a_run_needs_the_operators_of_its_file(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert operators.needed(deepspeed_config.read("zero3")) == []
    nvme = deepspeed_config.DeepSpeedFile(Path("x"), {"zero_optimization": {"offload_param": {"device": "nvme"}}})
    assert operators.needed(nvme) == [operators.ASYNC_IO]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert operators.needed(None) == [operators.SHARED_MEMORY]


def test_operators_on_a_disk_that_nodes_share(monkeypatch, tmp_path):
    monkeypatch.setattr(operators, "needed", lambda file: [])
    assert machine.check_operators(None, required=True).status == "ok"
    monkeypatch.setattr(operators, "needed", lambda file: ["ShareMemCommBuilder"])
    monkeypatch.setattr(operators, "load", lambda name: None)
    monkeypatch.setattr(machine, "_file_system", lambda path: "nfs4")
    found = machine.check_operators(None, required=True)
    assert (found.status, found.advice) == ("warn", "set TORCH_EXTENSIONS_DIR to a local disk")


def test_the_file_system_of_a_path(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/home {tmp_path} nfs4 rw 0 0\n")
    assert machine._file_system(tmp_path / "a" / "b", mounts) == "nfs4"
    assert machine._file_system(Path("/"), mounts) == "ext4"
    assert machine._file_system(tmp_path, tmp_path / "none") == ""


# -- devices and memory ----------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, the second of which another process uses."""
    current: list[int] = []
    free = {0: 79 * GIB, 1: 30 * GIB}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def device(index: int) -> AbstractContextManager[None]:
        current.append(index)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free[current[-1]], 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(machine, "_computes", lambda: True)
    return free


def test_a_gpu_that_is_in_use_already(gpus):
    found = machine.check_accelerator({})
    assert found.status == "fail"
    assert found.found == "GPU 1 (NVIDIA H100): 50 GiB of 80 GiB are in use already"
    assert machine.check_accelerator({"LOCAL_RANK": "1"}).status == "fail"
    assert machine.check_accelerator({"LOCAL_RANK": "0"}).found == "NVIDIA H100, 79 GiB free"
    gpus[1] = 78.5 * GIB
    assert machine.check_accelerator({}).found == "2 × NVIDIA H100, 78.5 GiB free"


def test_a_gpu_that_computes_wrongly(gpus, monkeypatch):
    monkeypatch.setattr(machine, "_computes", lambda: False)
    found = machine.check_accelerator({"LOCAL_RANK": "0"})
    assert found.status == "fail"
    assert found.found == "GPU 0 (NVIDIA H100) computes wrong products of matrices"


def test_fewer_gpus_than_ranks(gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(BadInput, match="got 4 ranks and 2 GPUs"):
        process_group.check_devices()


def test_a_driver_and_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    found = machine.check_accelerator({})
    assert found.status == "fail"
    assert "there is a GPU driver, but torch" in found.found
    assert machine.check_accelerator({"CUDA_VISIBLE_DEVICES": ""}).status == "ok"


def test_little_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 3 * GIB)
    assert machine.check_memory({}).status == "ok"
    assert machine.check_memory(TWO).status == "warn"


# -- disk and network ------------------------------------------------------------------------------------------------


def disk(monkeypatch, free: float, inodes: int = 10**6) -> None:
    blocks = int(free) // 4096
    values = SimpleNamespace(f_bavail=blocks, f_bfree=blocks, f_blocks=2**30, f_frsize=4096, f_files=10**7)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**vars(values), f_favail=inodes))


@pytest.mark.parametrize(
    ("free", "inodes", "status", "said"),
    [
        (9 * GIB, 10**6, "ok", "9 GiB free"),
        (2 * GIB, 10**6, "warn", "little for training states"),
        (9 * GIB, 10, "fail", "room for 10 files only"),
    ],
)
def test_disks(tmp_path, monkeypatch, free, inodes, status, said):
    disk(monkeypatch, free, inodes)
    found = machine.check_disk(tmp_path / "runs" / "not there yet")
    assert found.status == status
    assert said in found.found
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written(tmp_path, monkeypatch):
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", full)
    found = machine.check_disk(tmp_path)
    assert found.status == "fail"
    assert "cannot be written: No space left on device" in found.found


def test_shared_memory_of_a_container(tmp_path, monkeypatch):
    disk(monkeypatch, 64 * 10**6)
    assert machine.check_shared_memory({}, tmp_path).status == "fail"
    disk(monkeypatch, 100 * 10**6)
    assert machine.check_shared_memory({}, tmp_path).status == "ok"
    found = machine.check_shared_memory(TWO, tmp_path)
    assert found.status == "fail"
    assert "--shm-size=1g" in found.advice


def test_ports():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        found = machine.check_ports({"MASTER_PORT": port})
        assert found.status == "fail"
        assert found.found.startswith(f"{port}: Address already in use")
        assert "--main_process_port" in found.advice
        assert machine.check_ports({**TWO, "MASTER_PORT": port}).status == "ok"
    assert machine.check_ports({"MASTER_PORT": port}).status == "ok"
    for wrong in ("many", "70000"):
        assert "must be a number of 1 to 65535" in machine.check_ports({"MASTER_PORT": wrong}).found


@pytest.mark.parametrize(
    ("environment", "address", "status"),
    [
        (TWO, "127.0.1.1", "ok"),
        (FOUR_ON_TWO_NODES, "127.0.1.1", "warn"),
        ({**FOUR_ON_TWO_NODES, "GLOO_SOCKET_IFNAME": "eth0"}, "127.0.1.1", "ok"),
        (FOUR_ON_TWO_NODES, "10.0.0.7", "ok"),
        (FOUR_ON_TWO_NODES, None, "fail"),
        (TWO, None, "warn"),
    ],
)
def test_host_names(environment, address, status, monkeypatch):
    def resolve(name: str) -> str:
        if address is None:
            raise socket.gaierror
        return str(address)

    monkeypatch.setattr(socket, "gethostbyname", resolve)
    found = machine.check_host_name(environment)
    assert found.status == status
    assert ("GLOO_SOCKET_IFNAME" in found.advice) == (status != "ok")


def test_half_of_what_a_launcher_sets():
    found = machine.check_launcher({"RANK": "0"})
    assert found.status == "fail"
    assert "RANK is set but WORLD_SIZE and MASTER_ADDR and MASTER_PORT not" in found.found
    for port in ("abc", "99999"):
        found = machine.check_ports({**TWO, "MASTER_PORT": port})
        assert found.status == "fail"
        assert f"got '{port}'" in found.found
