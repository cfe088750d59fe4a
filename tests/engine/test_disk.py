"""Where states on disk lie, when a run with them is refused, and that nothing of them stays."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bmscale.engine import deepspeed_config
from bmscale.engine.disk import Disk
from bmscale.errors import BadInput
from bmscale.experiment import TrainingConfig

SHIPPED = deepspeed_config.read("zero3_nvme")


def training(**values) -> TrainingConfig:
    return TrainingConfig(max_steps=1, **values)


def file_with(folder: Path, **sections) -> deepspeed_config.DeepSpeedFile:
    """The shipped file with other values in its sections."""
    zero = json.loads(json.dumps(SHIPPED.values["zero_optimization"]))
    for name, value in sections.items():
        zero[name] = {**zero[name], **value} if isinstance(value, dict) else value
    path = folder / "mine.json"
    path.write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    return deepspeed_config.read(str(path))


@pytest.fixture
def operator(monkeypatch) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self: True)


def test_only_what_says_nvme_is_on_disk():
    assert SHIPPED.on_disk == ("optimizer", "param")
    assert deepspeed_config.read("zero3_offload").on_disk == ()
    assert deepspeed_config.read("zero2").on_disk == ()


def test_states_lie_in_the_run_folder_unless_another_place_is_named(tmp_path, monkeypatch):
    assert Disk(SHIPPED, training(), tmp_path / "runs/x").folder == tmp_path / "runs/x/offload"
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    one, other = (Disk(SHIPPED, training(offload_folder="$SCRATCH"), Path(run)).folder for run in ("runs/x", "runs/y"))
    assert one.parent == other.parent == tmp_path
    assert one != other  # two runs on one disk
    named = file_with(tmp_path, offload_param={"nvme_path": str(tmp_path)})
    assert Disk(named, training(), Path("runs/x")).folder == one


def test_deepspeed_is_told_the_folder(tmp_path):
    config = deepspeed_config.complete(SHIPPED, training(), 1, tmp_path)
    for what in ("optimizer", "param"):
        assert config["zero_optimization"][f"offload_{what}"]["nvme_path"] == str(tmp_path)


@pytest.mark.parametrize(
    ("sections", "options", "message"),
    [
        ({}, {"offload_folder": "/nowhere/at/all"}, r"offload_folder: must be a folder .* got '/nowhere/at/all'"),
        ({}, {"offload_folder": "$NOT_SET_ANYWHERE"}, r"got '\$NOT_SET_ANYWHERE'"),
        ({"offload_param": {"nvme_path": "/nowhere"}}, {}, r"mine\.json: nvme_path: must be a folder"),
        (
            {"offload_param": {"nvme_path": "/nowhere"}},
            {"offload_folder": "/tmp"},
            r"nvme_path: must be absent or '/tmp', which training\.offload_folder",
        ),
        ({"stage": 2, "offload_param": {"device": "none"}}, {}, r"zero_optimization\.stage: must be 3 .* got 2"),
        ({"offload_optimizer": {"buffer_count": 3}}, {}, r"buffer_count: must be at least 4.* got 3"),
        ({"offload_optimizer": {"pipeline_read": True}}, {}, r"pipeline_read: must be absent or false"),
        ({}, {"ema_decay": 0.9}, r"training\.ema_decay: must be null .* got 0\.9"),
        ({}, {"save_in_background": True}, r"training\.save_in_background: must be false"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_states_on_disk(tmp_path, sections, options, message):
    with pytest.raises(BadInput, match=message):
        Disk(file_with(tmp_path, **sections), training(**options), tmp_path / "run")


def model() -> nn.Module:
    """Two weights of 12 elements that are one, and one of 8."""
    with torch.device("meta"):
        made = nn.ModuleDict({"embed": nn.Linear(3, 4, bias=False), "head": nn.Linear(3, 4, bias=False)})
        made["head"].weight = made["embed"].weight
        made["other"] = nn.Linear(4, 2, bias=False)
    return made


@pytest.mark.usefixtures("operator")
def test_leftovers_go_and_so_does_the_folder_in_the_end(tmp_path):
    disk = Disk(SHIPPED, training(), tmp_path)
    left = disk.folder / "zero_stage_3/optimizer/rank0/left.swp"
    left.parent.mkdir(parents=True)
    left.touch()
    disk.remove()
    assert left.exists()  # it may be another start's, which has the run's lock
    disk.prepare(model(), "bf16")
    assert disk.folder.is_dir()
    assert not left.exists()
    for rank in (0, 1):
        (disk.folder / f"zero_stage_3/optimizer/rank{rank}").mkdir(parents=True)
    disk.remove()
    assert [path.name for path in (disk.folder / "zero_stage_3/optimizer").iterdir()] == ["rank1"]
    (disk.folder / "zero_stage_3/optimizer/rank1").rmdir()
    disk.remove()
    assert not disk.folder.exists()


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(("precision", "needed"), [("bf16", 16 * 20 + 2 * 32), ("fp32", 16 * 20 + 4 * 32)])
def test_there_must_be_room(tmp_path, monkeypatch, precision, needed):
    """Masters, moments and gradients of 20 parameters, and weights under each of their names."""
    disk = Disk(SHIPPED, training(), tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed))
    disk.prepare(model(), precision)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    with pytest.raises(BadInput, match=r"offload: must have room .* Name another place with training\.offload_folder"):
        disk.prepare(model(), precision)


def test_what_a_killed_start_left_is_room(tmp_path, monkeypatch):
    disk = Disk(SHIPPED, training(), tmp_path / "runs/x")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert disk.room() == 1000
    left = disk.folder / "zero_stage_3/optimizer/rank0/left.swp"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(500))
    assert disk.room() == 1500


@pytest.mark.usefixtures("operator")
def test_a_buffer_must_hold_the_largest_parameter(tmp_path):
    Disk(file_with(tmp_path, offload_param={"buffer_size": 12}), training(), tmp_path).prepare(model(), "bf16")
    small = Disk(file_with(tmp_path, offload_param={"buffer_size": 11}), training(), tmp_path)
    with pytest.raises(BadInput, match=r"buffer_size: must be at least 12, .* got 11"):
        small.prepare(model(), "bf16")


def test_without_the_library_it_is_refused(tmp_path, monkeypatch):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self: False)
    with pytest.raises(BadInput, match="apt-get install libaio-dev"):
        Disk(SHIPPED, training(), tmp_path).prepare(model(), "bf16")
