"""What an experiment asks of the machine: data, room, memory, and the nearest valid choice where it asks too much."""

import os
from types import SimpleNamespace

import pytest
import torch

from bmscale.doctor import experiment as asked
from bmscale.engine import deepspeed_config
from bmscale.errors import BadInput
from bmscale.experiment import read_experiment
from bmscale.planning import hardware

GIB = 2**30


@pytest.fixture
def here(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_data_is_opened_and_must_be_the_same_everywhere(here):
    experiment = read_experiment("tiny.yaml", [])
    opened = asked.Opened.of(experiment)
    found = asked.check_data(experiment, opened, 0, 2)
    assert found.status == "ok"
    assert found.found.startswith("tiny: 600 pairs")
    assert "12 steps, 2 micro-batches a rank in the first" in found.found
    assert found.alike == f"data {opened.data_hash[:12]}"
    with pytest.raises(BadInput, match="no prepared data here"):
        asked.Opened.of(read_experiment("tiny.yaml", ["data.directory=nowhere"]))


def test_a_rank_that_has_nothing_to_do(here):
    experiment = read_experiment("tiny.yaml", ["training.tokens_per_step=100"])
    opened = asked.Opened.of(experiment)
    assert asked.check_data(experiment, opened, 0, 64).status == "ok"
    found = asked.check_data(experiment, opened, 63, 64)
    assert found.status == "warn"
    assert "training.tokens_per_step is 100 over 64 ranks" in found.found


def test_a_tiny_disk(here, monkeypatch):
    experiment = read_experiment("toy", ["model.size=1b"])
    assert asked.check_room(read_experiment("tiny.yaml", [])).status == "ok"
    little = SimpleNamespace(f_bavail=2**20, f_bfree=2**20, f_blocks=2**30, f_frsize=4096, f_files=0, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda path: little)
    with pytest.raises(BadInput, match=r"must have room for 3 training states of .* free: 4 GiB"):
        asked.check_room(experiment)


TEXT = ["training.precision=bf16", "model.size=300m"]


@pytest.mark.parametrize(
    ("overrides", "ram", "free", "status", "said"),
    [
        ([], 64, 60, "ok", "a rank takes about"),
        ([], 64, 2, "warn", "has 1.84 GiB"),
        (["training.max_micro_batch_tokens=300000", "training.tokens_per_step=300000"], 64, 60, "fail", "activations"),
        (["model.size=70b"], 64, 60, "fail", "RAM on a node"),
    ],
)
def test_memory_that_a_rank_will_take(here, monkeypatch, overrides, ram, free, status, said):
    monkeypatch.setattr(hardware, "host_memory", lambda: ram * GIB)
    monkeypatch.setattr(hardware, "free_memory", lambda: free * GIB)
    experiment = read_experiment("toy-text", [*TEXT, *overrides])
    found = asked.check_need(experiment, deepspeed_config.read("zero2"), {"LOCAL_WORLD_SIZE": "2"}, 2)
    assert found.status == status
    assert said in found.found
    if status != "fail":
        return
    kind, _, advice = found.advice.partition(": ")
    assert kind == "what fits"
    if "70b" in overrides[0]:
        assert "nodes" in advice or "on disk" in advice
        return
    nearest = read_experiment("toy-text", [*TEXT, *overrides, advice])
    assert asked.check_need(nearest, deepspeed_config.read("zero2"), {"LOCAL_WORLD_SIZE": "2"}, 2).status == "ok"


def test_a_step_with_fewer_rows_than_ranks_names_the_nearest_choices(here):
    experiment = read_experiment("toy-text", ["training.tokens_per_step=512"])
    found = asked.check_need(experiment, None, {"LOCAL_WORLD_SIZE": "8"}, 64)
    assert found.status == "warn"
    assert "The nearest valid choices are" in found.found
