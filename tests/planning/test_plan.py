"""The choice of a plan, why others lose, what would make one fit, and what it costs; and the command."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from bmscale.cli import main
from bmscale.engine import deepspeed_config
from bmscale.errors import BadInput
from bmscale.experiment import read_experiment
from bmscale.planning import table
from bmscale.planning.hardware import CALIBRATION, Machine, find_accelerator
from bmscale.planning.plan import Plan, cost, gib, make, parse_tokens, ways
from bmscale.planning.workload import USUAL_TOKENS, Workload
from bmscale.planning.zero import Zero

H100 = Machine.of(find_accelerator("h100"))


def plan_of(machine: Machine, *overrides: str, preset: str = "toy-text") -> Plan:
    experiment = read_experiment(preset, ["training.precision=bf16", *overrides])
    return make(Workload.of(experiment, on_cpu=machine.accelerator.is_cpu), machine)


LARGE = ("model.size=7b", "training.sequence_length=2048", "training.tokens_per_step=262144")


def test_the_chosen_way_fits_and_none_that_fits_is_faster():
    plan = plan_of(H100, *LARGE)
    assert plan.chosen is not None
    free = 1 - CALIBRATION.margin
    fitting = [way for way in plan.ways if way.lacks is None]
    for way in fitting:
        assert way.memory.accelerator.total <= free * H100.accelerator.memory
        assert way.memory.host * H100.gpus <= free * H100.host_memory
        assert plan.chosen.step.seconds <= 1.01 * way.step.seconds
    assert len(plan.losses) == len(plan.ways) - 1
    assert all(why.startswith("needs") for way, why in zip(plan.ways[1:], plan.losses, strict=True) if way.lacks)
    assert not plan.remedies


def test_small_models_need_no_sharding_and_no_recomputation():
    chosen = plan_of(Machine.of(find_accelerator("h100"), 1), "model.size=base").chosen
    assert chosen is not None
    assert chosen.zero.stage in (0, 2)
    assert chosen.zero.offload == "none"
    assert not chosen.checkpointing


def test_where_nothing_fits_it_says_by_how_much_and_what_would():
    poor = Machine.of(find_accelerator("rtx4090"), 1, ram_gib=32, nvme_gib=0)
    plan = plan_of(poor, *LARGE)
    assert plan.chosen is None
    lacks = plan.ways[0].lacks
    assert lacks is not None
    assert "needs" in lacks
    assert "and has" in lacks
    ram = next(remedy for remedy in plan.remedies if remedy.startswith("--ram-gib"))
    given = float(ram.split()[1])
    assert plan_of(Machine.of(find_accelerator("rtx4090"), 1, ram_gib=given, nvme_gib=0), *LARGE).chosen is not None


def test_a_step_too_small_for_the_ranks_is_refused():
    with pytest.raises(BadInput, match=r"training\.tokens_per_step: .* holds 32 rows"):
        plan_of(Machine.of(find_accelerator("h100"), 8, 5))


@pytest.mark.parametrize("preset", ["toy", "toy-text", "toy-masked", "toy-labels"])
def test_every_task_is_planned(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_of(Machine.of(find_accelerator("cpu"), 2), preset=preset)
    assert plan.chosen is not None
    assert plan.chosen.step.mfu < 1
    if preset == "toy":
        assert (plan.workload.source, plan.workload.target) == (USUAL_TOKENS, USUAL_TOKENS)
        # A micro-batch must hold the longest pair, however few rows it has.
        assert plan.workload.slots(1) == 256


def test_lengths_are_those_of_the_prepared_data(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    workload = Workload.of(read_experiment("tiny.yaml", []), on_cpu=True)
    split = json.loads((prepared / "prepared/manifest.json").read_text())["splits"]["train"]
    assert workload.target == pytest.approx(1.04 * split["target_tokens"] / split["pairs_kept"], abs=0.5)
    assert "prepared" in workload.lengths_of


@pytest.mark.parametrize(
    ("text", "tokens"), [("10Gt", 1e10), ("300B", 3e11), ("1.5T", 1.5e12), ("2000000", 2e6), ("5kt", 5e3), ("7mt", 7e6)]
)
def test_tokens_as_people_write_them(text, tokens):
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "many", "-3G", "0", "1..2G", "10X", "nan", "inf", "1e300", "2000000T"])
def test_what_is_no_number_of_tokens(text):
    with pytest.raises(BadInput, match=r"--target-tokens"):
        parse_tokens(text)


def test_sizes_are_written_with_their_unit():
    assert [gib(count) for count in (5 * 2**20, 999 * 2**20, 2**30, 12.34 * 2**30, 2**41)] == [
        *("5 MiB", "999 MiB", "1 GiB", "12.3 GiB", "2 TiB")
    ]


def test_what_a_target_costs():
    plan = plan_of(H100, *LARGE)
    way = plan.ways[0]
    costs = cost(plan, way, 1e10, price=2.0)
    assert costs.days * 86_400 * way.step.tokens_per_second == pytest.approx(1e10)
    assert costs.gpu_hours == pytest.approx(costs.days * 24 * 8)
    assert costs.money == pytest.approx(2 * costs.gpu_hours)
    assert costs.checkpoint_bytes == 12 * plan.workload.parameters
    with pytest.raises(BadInput, match="--target-tokens"):
        cost(plan, way, 0)


def test_the_interval_of_checkpoints_loses_least():
    plan = plan_of(Machine.of(find_accelerator("h100"), 8, 4), *LARGE)
    costs = cost(plan, plan.ways[0], 1e10)
    save, between = costs.save_seconds, 3600 * costs.hours_between_failures

    def lost(interval: float) -> float:
        """Daly 2006, equation 20: the time of a run with saves, failures and repeated work, over that without."""
        return between / interval * (math.exp((interval + save) / between) - 1)

    best = 60 * costs.checkpoint_minutes
    assert lost(best) <= min(lost(0.8 * best), lost(1.25 * best))


@pytest.mark.parametrize("gpus", [1, 8])
def test_deepspeed_takes_what_is_written_and_it_is_read_back(gpus, tmp_path):
    workload = plan_of(H100, *LARGE).workload
    for zero in ways(workload, replace(H100, gpus=gpus)):
        path = tmp_path / "ds_config.json"
        path.write_text(json.dumps(zero.to_json()))
        file = deepspeed_config.read(str(path))
        assert file.stage == zero.stage
        assert file.offloads("optimizer") == (zero.optimizer != "none")
        assert file.offloads("param") == (zero.parameters != "none")
        if zero.stage == 3:
            assert Zero.from_json(file.values) == replace(zero, buffer=Zero.from_json(file.values).buffer)


def test_the_command_writes_what_runs_the_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["plan", "toy", "--gpu", "cpu", "--gpus", "2", "--target-tokens", "1Mt", "--price", "0.1"]
    assert main([*arguments, "--write", "out", "--plot", "out/plan.svg"]) == 0
    captured = capsys.readouterr()
    shown = captured.out
    for words in ("fastest that fits: zero", "activations", "each rank", "1M target tokens", "why not"):
        assert words in shown
    assert "written to out/plan.svg" in captured.err
    overrides = (tmp_path / "out/overrides.txt").read_text().split()
    chosen = read_experiment("toy", overrides)
    assert chosen.training.deepspeed == "out/ds_config.json"
    launch = yaml.safe_load((tmp_path / "out/accelerate.yaml").read_text())
    assert launch["num_processes"] == 2
    assert launch["deepspeed_config"]["deepspeed_config_file"] == chosen.training.deepspeed
    script = (tmp_path / "out/train.sh").read_text()
    assert f"set -- toy {' '.join(overrides)}" in script
    assert "BMSCALE_RANKS_PER_NODE=2" in script
    picture = (tmp_path / "out/plan.svg").read_text()
    assert "weak scaling" in picture
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    first = found["ways"][0]["memory_bytes"]
    parts = {name: value for name, value in first.items() if name not in ("total", "host", "nvme")}
    assert sum(parts.values()) == pytest.approx(first["total"])
    assert f"training.max_micro_batch_tokens={found['ways'][0]['max_micro_batch_tokens']}" in overrides


def test_what_the_experiment_asks_for_stands_beside_the_choice(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    machine = ["plan", "toy", "--gpu", "cpu", "--gpus", "2"]

    def yours(*words: str) -> list[str]:
        assert main([*machine, *words]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "yours: " in line]

    (line,) = yours("training.deepspeed=zero3", "training.max_micro_batch_tokens=512")
    assert line.split()[:3] == ["zero3", "no", "8"]
    assert re.search(r"yours: fits, \d+% slower: ", line)
    (line,) = yours("training.max_micro_batch_tokens=512")
    assert line.split()[0] == "zero2"  # what several ranks train with that are told nothing
    assert main([*machine, "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)["ways"][0]
    stage, rows = chosen["zero"]["stage"], chosen["rows"]
    (line,) = yours(f"training.deepspeed=zero{stage}", f"training.max_micro_batch_tokens={64 * rows}")
    assert line.endswith("yours: the chosen one")
    (line,) = yours("training.tokens_per_step=4000000", "training.max_micro_batch_tokens=2000000", "--ram-gib", "4")
    assert re.search(r"yours: needs [0-9.]+ GiB of RAM on a node and has 3\.68 GiB", line)
    assert main([*machine, "training.deepspeed=none"]) == 0
    captured = capsys.readouterr()
    assert "yours: " not in captured.out
    assert "training.deepspeed=none runs on one rank; this is a plan for 2" in captured.err
    assert main([*machine, "training.deepspeed=zero3", "training.activation_checkpointing=true", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["yours"]
    assert (found["zero"]["stage"], found["activation_checkpointing"], found["rows"]) == (3, True, 64)
    assert found["fits"]


def test_a_file_that_leaves_sizes_to_deepspeed_is_planned():
    section = {"stage": 2, "reduce_bucket_size": "auto", "overlap_comm": "auto"}
    assert Zero.from_json({"zero_optimization": section}) == Zero.from_json({"zero_optimization": {"stage": 2}})


@pytest.mark.parametrize(
    ("days", "text"),
    [(3e-4, "25.9 s"), (0.01, "14.4 min"), (0.25, "6 h"), (1.9, "45.6 h"), (31.4, "31.4 days"), (1e5, "100,000 days")],
)
def test_times_have_a_unit_that_shows_them(days, text):
    assert table._duration(days) == text


def test_memory_says_whose_it_is():
    text = table.to_text(plan_of(Machine.of(find_accelerator("cpu"), 2)), None)
    assert re.search(r"peak memory of a rank, in RAM: \S+ MiB of 8 GiB", text)
    assert re.search(r"RAM of a node, 2 ranks of \S+ MiB each: \S+ \S+ of 16 GiB", text)
    assert "peak memory of a device: " in table.to_text(plan_of(H100), None)


def test_mistakes_and_plans_that_do_not_fit_have_their_codes(capsys):
    assert main(["plan", "toy", "--gpu", "h1000"]) == 2
    assert "did you mean 'h100'?" in capsys.readouterr().err
    assert main(["plan", "toy", "--gpus", "0"]) == 2
    assert main(["plan", "toy", "--this-machine", "--nodes", "2"]) == 2
    assert "must stand without --gpu and --nodes" in capsys.readouterr().err
    assert main(["plan", "toy", "--plot", "plan.gif"]) == 2
    assert "must end in .png or .svg" in capsys.readouterr().err
    assert main(["plan", "toy", "model.size=70b", "--gpu", "rtx4090", "--nvme-gib", "0"]) == 1
    assert "nothing fits" in capsys.readouterr().out


def test_a_trillion_parameters_on_ten_thousand_cards_in_little_memory():
    words = (
        "plan toy-text training.precision=bf16 model.hidden_size=25600 "
        "model.num_hidden_layers=128 model.num_attention_heads=200 model.num_key_value_heads=8 "
        "model.intermediate_size=83968 data.tokenizer.vocabulary_size=128256 training.sequence_length=4096 "
        "training.tokens_per_step=81920000 --gpu h100 --nodes 1250 --target-tokens 10T"
    )
    program = (
        "import resource, sys; from bmscale.cli import main; code = main(sys.argv[1:])\n"
        "print('KIB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, *words.split()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1T parameters")
    assert "1,250 nodes × 8 h100" in result.stdout
    assert int(result.stdout.split("KIB")[1]) < 2**20


@pytest.mark.parametrize("words", [["--price", "nan"], ["--price", "-1"], ["--ram-gib", "nan"], ["--nvme-gib", "-1"]])
def test_numbers_that_are_none(words, capsys):
    assert main(["plan", "toy", "--gpu", "h100", *words]) == 2
    assert f"{words[0]}: must be a number" in capsys.readouterr().err
