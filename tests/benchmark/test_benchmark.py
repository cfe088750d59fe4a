"""`bmscale benchmark` from the command line, on the toy corpus and the smallest shape."""

import json
import os
import subprocess
import sys

import pytest
import torch

from bmscale.benchmark import benchmark, peer_case, process
from bmscale.benchmark.figures import Figures
from bmscale.benchmark.setting import Setting
from bmscale.benchmark.shape import SHAPES, shape
from bmscale.benchmark.training_case import EngineChoice
from bmscale.cli import main
from bmscale.data.workers import cores
from bmscale.errors import BadInput, BmscaleError
from bmscale.model.tasks import TASKS

QUICK = ("--repeats", "1", "--steps", "2", "--warmup-steps", "1", "--tokens-per-step", "600")


def setting(folder, **changes):
    return Setting(folder, None, 1, 2, 600, 600, 60.0, **changes)


@pytest.fixture
def two_ranks(monkeypatch):
    monkeypatch.setattr(benchmark, "most_ranks", lambda: 2)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("name", benchmark.USUAL)
def test_usual_cases_exist(name, tmp_path):
    benchmark.check(setting(tmp_path), [name], [])


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_models(name):
    options = shape(name)
    task = TASKS[options["task"]]
    model = dict(options["model"])
    preset, size = task.presets[model.pop("preset")], task.sizes.get(model.pop("size", ""), {})
    config = task.configure(**{**preset, **size, **model})
    assert config.hidden_size % config.num_attention_heads == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trian/d256/fp32", "must begin with one of train"),
        ("train/d256", "must have the form train/SHAPE/PRECISION"),
        ("train/d265/fp32", "the shape must be one of .*d256"),
        ("train/d256/fp16", "precision: must be fp32 or bf16; got 'fp16'"),
        ("train/d256/fp32/zero4", "engine: must be none, bare, or zero0 to zero3"),
        ("train/d256/fp32/nonex2", "none runs on one rank"),
        ("train/d256/fp32/zero2x0", "engine: must be"),
        ("step/d256/fp32/zero1_offload", "engine: must be one of none, bare, zero0, .*; got 'zero1_offload'"),
        ("step/d256/fp32/zero2x3", "step/d256/fp32/zero2x3: must have at most 2 ranks on this machine.*; got 3"),
        ("train/d256/fp32/bare", "`bare` is a loop of steps; use step/ in place of train/"),
        ("start/decoder-125m/fp32", "decoder-125m is a decoder; use step/"),
        ("eole/d256/fp32", "--peer: eole must be measured by an interpreter"),
        ("eole/d256/fp32/zero2", "must have the form eole/SHAPE/PRECISION"),
        ("decode/d256/int8/greedy", "precision: decode is measured in fp32 or bf16"),
        ("decode/d256/fp32/beam", "search: must be greedy, or beam"),
        ("answer/what", "answer/help or answer/import"),
        ("prepare/d256", "must have the form prepare"),
    ],
)
@pytest.mark.usefixtures("two_ranks")
def test_cases_that_do_not_exist(name, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        benchmark.check(setting(tmp_path), [name], [])


def test_where_there_is_one_core_the_usual_cases_are_of_one_rank(monkeypatch):
    monkeypatch.setattr(benchmark, "most_ranks", lambda: 1)
    assert benchmark.matching([]) == [name for name in benchmark.USUAL if not name.endswith("x2")]
    assert "train/d256/bf16/zero2x2" not in benchmark.matching(["train/*"])
    with pytest.raises(BadInput, match="at most 1 rank on this machine"):
        benchmark.check_engine("train/d256/bf16/zero2x2")


def test_one_rank_a_gpu_or_a_core(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    assert benchmark.most_ranks() == 5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.most_ranks() == cores()


def test_the_list_names_every_word_of_a_case(capsys):
    assert main(["benchmark", "--list"]) == 0
    listed = capsys.readouterr().out
    lines = dict(line.split(": ", 1) for line in listed.splitlines() if ": " in line)
    for shape_name in SHAPES:
        assert shape_name in lines["SHAPE"]
    for engine in lines["ENGINE"].split(", with")[0].split(", "):
        EngineChoice.parse(engine)
        benchmark.check_engine(f"step/tiny/fp32/{engine}")
    assert lines["PRECISION"].startswith("fp32, bf16")
    assert lines["SEARCH"].startswith("greedy, beam5")
    assert all(name in listed for name in benchmark.USUAL)


def test_engines_share_the_cores_out():
    two = EngineChoice.parse("zero2x2")
    assert (two.name, two.ranks) == ("zero2", 2)
    assert two.threads == max(1, EngineChoice.parse("none").threads // 2)
    assert EngineChoice.parse("zero3_offload").name == "zero3_offload"


@pytest.mark.parametrize(("ratio", "message"), [("no", "must be a number"), ("0", "above 0"), ("nan", "above 0")])
def test_ratios_that_make_no_sense(ratio, message):
    with pytest.raises(BadInput, match=message):
        benchmark.parse_ratios([("prepare", "answer/help", ratio)])


def test_ratios_of_cases_that_are_not_measured(tmp_path):
    with pytest.raises(BadInput, match="answer/help is not among the cases"):
        benchmark.check(setting(tmp_path), ["prepare"], [("prepare", "answer/help", 1.0)])


@pytest.mark.parametrize(
    ("given", "message"),
    [("eole", "NAME=PYTHON"), ("fairseq=python", "NAME being one of"), ("eole=/no/such", "can be run")],
)
def test_interpreters_that_cannot_be(given, message):
    with pytest.raises(BadInput, match=message):
        peer_case.parse_peers([given])


def test_table_and_ratios():
    found = {
        "train/d256/fp32": [Figures(1.0, 2, 100, 50, 200, 1e9, 2e9, losses=(5.0, 4.0)), Figures(1.0, 2, 120, 50, 200)],
        "answer/help": [Figures(0.25)],
        "prepare": [Figures(2.0, work=50, unit="pairs")],
        "eole/d256/fp32": [],
    }
    lines = benchmark.table(found).splitlines()
    assert lines[0].startswith("| case | target tokens/s (range) |")
    assert "| `train/d256/fp32` | 110 (100–120) | 50 | 0.500 | 1 | 50.0 % | 20.0 % | 5.00 to 4.00 |" in lines
    assert any("0.25 s (0.25–0.25)" in line for line in lines)
    assert any("25 pairs/s" in line for line in lines)
    assert len(lines) == 5  # none of a case that failed
    found["answer/help"].append(Figures(0.25))
    text, reached = benchmark.ratio_lines(found, [("train/d256/fp32", "answer/help", 3.0)])
    assert reached
    assert "27.50" in text[0]
    text, reached = benchmark.ratio_lines(found, [("train/d256/fp32", "answer/help", 30.0)])
    assert not reached
    assert "NOT reached" in text[0]
    text, reached = benchmark.ratio_lines(found, [("train/d256/fp32", "eole/d256/fp32", 1.0)])
    assert not reached
    assert "not measured" in text[0]


def test_a_case_that_fails_leaves_the_others_alone(tmp_path, monkeypatch):
    def measure(setting, name):
        if name == "prepare":
            raise BmscaleError("no room")
        return Figures(1.0)

    monkeypatch.setattr(benchmark, "find", lambda name: measure)
    found = benchmark.benchmark(setting(tmp_path), ["prepare", "answer/help"], 2)
    assert [len(measured) for measured in found.values()] == [0, 2]
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["failed"] == {"prepare": "no room"}
    assert content["machine"]["cores"] >= 1


@pytest.fixture
def one_core():
    """Threads that wait for each other while other tests run beside them take for ever: measure with one."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_core")
def test_training_measured_for_real(bmscale, tmp_path):
    found = measured(bmscale, tmp_path, "train/tiny/fp32", "step/tiny/fp32/none", "step/tiny/fp32/bare")
    for figures in found.values():
        assert figures["steps"] == 2
        assert 600 < figures["target_tokens"] <= 1200
        assert 0 < figures["padding"] < 0.5
        assert 0 < figures["mfu"] < 5  # of a peak that was measured while other tests ran
    # What the engine does and what a loop of torch does are the same steps.
    assert found["step/tiny/fp32/none"]["losses"] == pytest.approx(found["step/tiny/fp32/bare"]["losses"], rel=1e-5)
    assert found["step/tiny/fp32/none"]["target_tokens"] == found["train/tiny/fp32"]["target_tokens"]


def test_commands_measured_for_real(bmscale, tmp_path, request):
    rest = ("checkpoint/tiny/fp32", "decode/tiny/fp32/greedy", "step/tiny/bf16/zero1x2", "prepare")
    full = request.config.getoption("--full")
    found = measured(bmscale, tmp_path, "start/tiny/fp32", "answer/import", *(rest if full else ()))
    assert found["start/tiny/fp32"]["seconds"] > found["answer/import"]["seconds"]
    if full:
        assert found["decode/tiny/fp32/greedy"]["target_tokens"] == 128 * 24
        assert found["checkpoint/tiny/fp32"]["work"] > 0


def measured(bmscale, folder, *cases):
    result = bmscale("benchmark", *cases, *QUICK, "--output", "out", folder=folder)
    assert all(f"| `{case}` |" in result.stdout for case in cases)
    content = json.loads((folder / "out/results.json").read_text())
    return {name: figures[0] for name, figures in content["cases"].items()}


def test_what_takes_too_long_is_gone_with_its_children(tmp_path):
    child = "import subprocess, sys, time; subprocess.Popen(['sleep', '61.7']); time.sleep(60)"
    with pytest.raises(BmscaleError, match="did not end within 1 s"):
        process.run([sys.executable, "-c", child], 1, tmp_path / "log", timeout=1.0)
    shown = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in shown.splitlines() if "sleep 61.7" in line and not line.startswith("Z")]


def test_a_case_that_failed_in_a_later_turn_reaches_no_ratio():
    twice, once = [Figures(1.0), Figures(1.0)], [Figures(1.0)]
    found = {"prepare": twice, "answer/help": once, "answer/import": once}
    for one in ("prepare", "answer/import"):
        text, reached = benchmark.ratio_lines(found, [(one, "answer/help", 0.5)])
        assert not reached
        assert "not measured" in text[0]


def test_ranks_are_launched_under_the_deepspeed_file_of_the_case():
    words = EngineChoice.parse("zero1x2").start()
    assert words[words.index("--deepspeed_config_file") + 1] == "ds_configs/zero1.json"
    assert words[-2:] == ["--num_processes", "2"]
    assert EngineChoice.parse("zero1").start() == [sys.executable]
