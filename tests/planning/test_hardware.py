"""The table of accelerators, and this machine measured."""

import math

import pytest

from bmscale.errors import BadInput
from bmscale.planning.hardware import ACCELERATORS, GIB, Machine, find_accelerator, free_memory, host_memory, measure


def test_every_figure_is_there_and_has_a_source():
    for card in ACCELERATORS.values():
        assert len(card.source) > 20
        for name, value in vars(card).items():
            assert isinstance(value, str) or (math.isfinite(value) and value > 0), (card.name, name)
        assert card.bf16 > card.fp32


@pytest.mark.parametrize(
    ("given", "found"), [("H100", "h100"), ("NVIDIA A100", "a100-80"), ("4090", "rtx4090"), ("a100_40", "a100-40")]
)
def test_names_that_people_give(given, found):
    assert find_accelerator(given).name == found


def test_an_unknown_card_and_impossible_machines_name_the_nearest():
    with pytest.raises(BadInput, match=r"must be one of v100, .*; got 'h10'; did you mean 'h100'\?"):
        find_accelerator("h10")
    card = find_accelerator("h100")
    with pytest.raises(BadInput, match=r"--gpus: must be at least 1; got 0\. The nearest valid choice is --gpus 1"):
        Machine.of(card, 0)
    with pytest.raises(BadInput, match=r"--nodes: must be at least 1; got -2"):
        Machine.of(card, 8, -2)
    with pytest.raises(BadInput, match=r"--ram-gib: must be a number of GiB from 0 on; got -1"):
        Machine.of(card, ram_gib=-1)


def test_a_machine_takes_what_is_given():
    machine = Machine.of(find_accelerator("v100"), 4, 2, ram_gib=100, nvme_gib=0)
    assert (machine.world_size, machine.host_memory, machine.nvme) == (8, 100 * GIB, 0)
    assert machine.describe() == "2 nodes × 4 v100"


def test_this_machine_is_measured():
    machine = measure(seconds=0.02)
    card = machine.accelerator
    assert machine.nodes == 1
    assert card.source == "measured on this machine"
    for rate in (card.bf16, card.fp32, card.bandwidth, card.link):
        assert 1e6 < rate < 1e16
    assert card.memory * machine.gpus <= 1.001 * machine.host_memory or not card.is_cpu


def test_memory_of_a_job_with_a_limit(tmp_path):
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {8 * 2**20} kB\n")
    assert free_memory(tmp_path / "meminfo", tmp_path) == 8 * 2**30
    (tmp_path / "memory.max").write_text(f"{4 * 2**30}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**30}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2**30}\n")
    assert free_memory(tmp_path / "meminfo", tmp_path) == 2 * 2**30
    assert host_memory(tmp_path) == 4 * 2**30
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path / "meminfo", tmp_path) == 8 * 2**30
