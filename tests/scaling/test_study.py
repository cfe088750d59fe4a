"""Planning a study: which runs a YAML stands for, and what they cost."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bmscale.cli import main
from bmscale.config import preset_names
from bmscale.errors import BadInput
from bmscale.model.flops import training_flops
from bmscale.scaling import runs
from bmscale.scaling.outcome import Parameters
from bmscale.scaling.runs import choose, describe, savings
from bmscale.scaling.study import STUDIES, Study, read_study
from bmscale.training.row_data import RowData
from bmscale.training.schedule import rate_factor

MINE = """\
experiment:
  data:
    source_language: sx
    target_language: sy
    train: {synthetic: train, pairs: 100000}
    valid: {synthetic: valid, pairs: 10}
    tokenizer: {type: word, vocabulary_size: 260}
  training: {tokens_per_step: 1000, precision: fp32}
head_dim: 8
sizes:
  - {width: 16, layers: 1, learning_rate: 1.0e-2}
  - {width: 32, layers: [2, 1], name: deep}
learning_rate: 5.0e-3
"""


def mine(folder: Path, *lines: str) -> Study:
    (folder / "mine.yaml").write_text(MINE + "\n".join(lines), encoding="utf-8")
    return read_study(str(folder / "mine.yaml"), [], str(folder / "out"))


@pytest.mark.parametrize("name", preset_names(STUDIES))
def test_shipped_studies_are_studies(name):
    study = read_study(name, [])
    assert study.config.name == name
    assert str(study.folder) == f"studies/{name}"
    lines = list(describe(study, choose(study, None, None, holdouts=True)))
    assert sum(len(trunk.cells) for trunk in study.trunks) == sum(line.startswith("   ") for line in lines)
    for trunk in study.trunks:
        assert study.trunk_experiment(trunk, trunk.branches[-1].branch_step).training.precision == "fp32"


def test_a_cell_is_a_branch_of_the_trunk_of_its_size_and_seed(tmp_path):
    study = mine(tmp_path, "tokens: [2.0e4, 8.0e4]", "repeats: [{size: deep, budget: 8.0e4, seeds: [1, 2]}]")
    assert [(trunk.name, len(trunk.cells)) for trunk in study.trunks] == [
        *(("w16-l1-s0-trunk", 2), ("deep-s0-trunk", 2), ("deep-s1-trunk", 1), ("deep-s2-trunk", 1))
    ]
    trunk = study.trunks[1]
    short, long = trunk.cells
    assert (short.name, long.name) == ("deep-2e4-s0", "deep-8e4-s0")
    assert (short.steps, long.steps) == (20, 81)
    assert {t.warmup_steps for t in study.trunks} == {2}  # a tenth of the shortest, for other seeds too
    base, cell = study.trunk_experiment(trunk, 65), study.cell_experiment(trunk, long)
    assert study.trunk_experiment(trunk, 16).training.branch_steps == [16]
    assert base.training.max_steps == long.branch_step == 81 - 16
    assert base.training.branch_steps == [16, 65]
    assert cell.branch_from == str(base.run_folder.states / "step-00000065")
    assert (cell.training.max_steps, cell.training.optimizer.learning_rate) == (81, 5e-3)
    assert study.trunk_experiment(study.trunks[0], 65).training.optimizer.learning_rate == 1e-2
    rates = [rate_factor(step, cell.training.schedule, 81) for step in range(81)]
    assert rates[: long.branch_step] == [rate_factor(step, base.training.schedule, 65) for step in range(65)]
    assert rates[long.branch_step] == 1.0
    assert 1.0 > rates[long.branch_step + 1] > rates[-1] > 0
    shape = study.shape("deep")
    assert (shape.num_encoder_layers, shape.num_decoder_layers, shape.num_attention_heads) == (2, 1, 4)


def test_budgets_of_flop_are_what_the_model_computes(tmp_path):
    study = mine(tmp_path, "flops: [1.0e10, 4.0e10]", "tokens_per_parameter: [1, 30]")
    lengths = np.array([10, 13, 16, 19])  # 3 to 6 words of 3 syllables, and </s>
    for trunk in study.trunks:
        flops = training_flops(study.shape(trunk.size), lengths, lengths)
        assert trunk.flops_per_step == pytest.approx(flops.sum() / lengths.sum() * study.tokens_per_step, rel=1e-2)
        for cell in trunk.cells:
            assert cell.flops == pytest.approx(cell.budget, rel=0.5 / cell.steps)
            tokens = cell.steps * study.tokens_per_step
            assert 1 <= tokens / Parameters.of(study.shape(trunk.size)).all <= 30
    assert len(study.trunks[0].cells) == 1  # the small model on 4e10 has more than 30 tokens a parameter


# Hägele 2024 from a formula: 39 % fewer for 5 doublings, 55 % for 9 budgets that grow by the root of 2.
@pytest.mark.parametrize(("factor", "count", "saved"), [(2, 5, 0.39), (2**0.5, 9, 0.555)])
def test_trunks_save_what_the_literature_says(tmp_path, factor, count, saved):
    budgets = ", ".join(f"{1.0e6 * factor**k:.1f}" for k in range(count))
    study = mine(tmp_path, f"tokens: [{budgets}]", "from_scratch: [{size: deep, budget: 1.0e6}]")
    made, scratch = savings(choose(study, None, None, holdouts=False))
    assert 1 - made / scratch == pytest.approx(saved, abs=0.005)


def test_holdouts_are_trained_only_when_asked_for(tmp_path):
    study = mine(tmp_path, "tokens: [2.0e4]", "holdouts: [{size: deep, budget: 2.0e5}]")
    names = [
        [cell.name for _, cells in choose(study, None, None, holdouts=holdouts) for cell in cells]
        for holdouts in (False, True)
    ]
    assert names == [["w16-l1-2e4-s0", "deep-2e4-s0"], ["w16-l1-2e4-s0", "deep-2e4-s0", "deep-2e5-s0"]]
    assert [cell.name for _, cells in choose(study, "w16*", None, holdouts=True) for cell in cells] == names[0][:1]
    assert [trunk.size for trunk, _ in choose(study, None, 1, holdouts=True)] == ["deep"]
    with pytest.raises(BadInput, match=r"--trunk: must be 0 to 1.*got 2"):
        choose(study, None, 2, holdouts=True)
    with pytest.raises(BadInput, match=r"--only: must be the pattern of a cell's name.*got 'x'"):
        choose(study, "x", None, holdouts=True)


def test_every_convention_of_n(tmp_path):
    study = mine(tmp_path, "tokens: [2.0e4]")
    shape = study.shape("deep")
    model = study.plain.model.task.model(shape)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    encoder, decoder = (
        sum(size for name, size in sizes.items() if f".{stack}." in name and ".embed." not in name)
        for stack in ("encoder", "decoder")
    )
    found = Parameters.of(shape)
    assert found.all == sum(sizes.values())
    assert (found.encoder, found.decoder) == (encoder, decoder)
    assert found.non_embedding == encoder + decoder
    assert found.with_head == found.non_embedding + 260 * 32
    shape.tie_word_embeddings = False
    apart = Parameters.of(shape)
    assert (apart.all, apart.with_head) == (found.all + 2 * 260 * 32, found.with_head)


MISTAKES = {
    "no budget": ([], "exactly one of flops and tokens must be given; got neither"),
    "both": (["tokens: [1e5]", "flops: [1e12]"], "exactly one of flops and tokens must be given; got both"),
    "a size": (["tokens: [1e5]", "holdouts: [{size: dep, budget: 1e6}]"], "must be one of w16-l1, deep; got 'dep'"),
    "seeds": (["tokens: [1e5]", "holdouts: [{size: deep, budget: 1e6, seeds: [1]}]"], "seeds belong to repeats"),
    "too short": (["tokens: [5000]"], "w16-l1 with budget 5000: must have at least 10 steps, it has 5"),
    "no cell": (["tokens: [1e5]", "tokens_per_parameter: [1e6, 1e7]"], "tokens_per_parameter: leaves no cell"),
    "no cell but repeats": (
        ["tokens: [1e5]", "tokens_per_parameter: [1e6, 1e7]", "repeats: [{size: deep, budget: 1e5, seeds: [1]}]"],
        "tokens_per_parameter: leaves no cell",
    ),
    "a window": (["tokens: [1e5]", "tokens_per_parameter: [5, 1]"], "the least and the most, in this order; got [5.0"),
    "a seed": (["tokens: [1e5]", "seed: 4294967296"], "seed: must be less than 4294967296"),
    "a repeat's seed": (
        ["tokens: [1e5]", "repeats: [{size: deep, budget: 1e5, seeds: [-1]}]"],
        "must be greater than or equal to 0; got -1",
    ),
    "a budget": (["tokens: [1e300]"], f"tokens.0: must be less than or equal to 1{'0' * 30}; got 1e+300"),
    "twice": (["tokens: [1e5]", "holdouts: [{size: deep, budget: 1e5}]"], "deep-1e5-s0: is in the study twice"),
    "heads": (["tokens: [1e5]", "head_dim: 12"], "width must be a multiple of head_dim, 12; got 16"),
    "task": (["tokens: [1e5]", "base: toy-labels"], "must be one of translation, language_model for a study"),
    "a key": (["token: [1e5]"], "did you mean 'tokens'"),
}


@pytest.mark.parametrize(("lines", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(tmp_path, lines, said):
    text = MINE.replace("head_dim: 8\n", "") if any("head_dim" in line for line in lines) else MINE
    (tmp_path / "mine.yaml").write_text(text + "\n".join(lines), encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(said)):
        _ = read_study(str(tmp_path / "mine.yaml"), []).trunks


@pytest.mark.parametrize("key", ["init_from", "branch_from"])
def test_a_study_trains_from_scratch(tmp_path, key):
    """Said when it is read, with the place, and null takes it out of the base."""
    base, path = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text(f"preset: toy\n{key}: runs/other\n", encoding="utf-8")
    text = "base: base.yaml\nsizes: [{width: 16, layers: 1}]\ntokens: [1e5]\n"
    path.write_text(text, encoding="utf-8")
    said = f"{key}: must not be given for a study, which trains every size from scratch; got 'runs/other'"
    with pytest.raises(BadInput, match=re.escape(f"{base}:2: {said}")):
        read_study(str(path), [])
    with pytest.raises(BadInput, match=re.escape(f"override 'experiment.{key}=runs/other': {said}")):
        read_study("ci", [f"experiment.{key}=runs/other"])
    path.write_text(f"{text}experiment: {{{key}: runs/other}}\n", encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(f"{path}:4: {said}")):
        read_study(str(path), [])
    path.write_text(f"{text}experiment: {{{key}: null}}\n", encoding="utf-8")
    assert getattr(read_study(str(path), []).plain, key) is None


def test_an_experiment_that_is_not_complete_is_named_with_its_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("sizes: [{width: 16, layers: 1}]\ntokens: [1e5]\n", encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(f"{path}: data.train: must be given")):
        _ = read_study(str(path), []).trunks


def test_an_empty_folder_is_refused(capsys):
    assert main(["scaling", "run", "ci", "--dry-run", "--folder", ""]) == 2
    assert "--folder: must name where the study is; got an empty name" in capsys.readouterr().err


def test_the_example_of_the_readme_is_a_study(tmp_path):
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"```yaml\n# (\w+)\.yaml\n(.*?)```", readme, re.DOTALL):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    study = read_study(str(tmp_path / "study.yaml"), [], str(tmp_path / "out"))
    assert [study.shape(size).num_encoder_layers for size in study.sizes] == [2, 4, 4]
    assert study.plain.data.train[0].path == "corpus/train.tsv.xz"
    with pytest.raises(BadInput, match=r"must be prepared before budgets can be counted.*scaling run STUDY --prepare"):
        _ = study.trunks


def test_a_study_on_pairs_of_people_prepares_them_first(tmp_path, monkeypatch):
    """Its budgets are counted by them."""
    pairs = "".join(f"the number {k}\tdie Zahl {k} ist {k * k}\n" for k in range(400))
    (tmp_path / "pairs.tsv").write_text(pairs, encoding="utf-8")
    text = re.sub(r"\{synthetic: \w+, pairs: \d+\}", f"{{path: {tmp_path}/pairs.tsv}}", MINE)
    text = text.replace("{type: word, vocabulary_size: 260}", "{type: word, vocabulary_size: 100}")
    (tmp_path / "mine.yaml").write_text(f"{text}tokens: [2.0e4]\n", encoding="utf-8")
    begun: list[str] = []
    monkeypatch.setattr(runs, "_run_trunk", lambda study, trunk, cells, *_: begun.extend(cell.name for cell in cells))
    assert not runs.run_study(read_study(str(tmp_path / "mine.yaml"), [], str(tmp_path / "out")))
    assert begun == ["w16-l1-2e4-s0", "deep-2e4-s0"]


def test_documents_that_do_not_see_each_other_cost_their_own_lengths(tmp_path):
    """As training counts them: a row is more than its documents where attention sees all of it."""
    text = ("base: toy-text", "sizes: [{width: 16, layers: 1}]", "tokens: [1.0e5]")
    (tmp_path / "mine.yaml").write_text("\n".join(text), encoding="utf-8")
    overrides = [
        *("experiment.data.train.documents=300", "experiment.data.tokenizer.vocabulary_size=320"),
        *("experiment.data.valid.documents=20", "experiment.training.tokens_per_step=2560"),
        "experiment.training.sequence_length=512",
    ]
    study, joined = (
        read_study(str(tmp_path / "mine.yaml"), [*overrides, f"experiment.data.directory={tmp_path}/data", *more])
        for more in ([], ["experiment.training.attend_across_documents=true"])
    )
    with pytest.raises(BadInput, match="must be prepared before"):
        study.flops_per_step("w16-l1")
    runs.prepare(study.plain.data)
    data = RowData(study.plain)
    plan = data.plan()
    epoch = range(plan.steps_in_epoch(0))
    steps = [data.read_step(plan, step, study.shape("w16-l1"), 0, 1) for step in epoch]
    counted = sum(step.flops for step in steps) / sum(step.tokens for step in steps) * 2560
    assert study.flops_per_step("w16-l1") == pytest.approx(counted, rel=0.03)
    assert joined.flops_per_step("w16-l1") > 1.1 * counted


def test_holdouts_without_a_forecast_are_warned_of(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "run_study", lambda *_, **__: True)
    command = ["scaling", "run", "ci", "--folder", str(tmp_path), "--holdouts"]
    assert main(command) == 0
    assert "the hold-outs are not forecast yet" in capsys.readouterr().err
    (tmp_path / "forecast.json").write_text("{}", encoding="utf-8")
    assert main(command) == 0
    assert "not forecast yet" not in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    command = [sys.executable, "-m", "bmscale", "scaling", "run", "ci", "--dry-run"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "0  w16-l1-s0-trunk: 11,904 parameters" in result.stdout
    assert re.search(r"\d+% fewer than from scratch", result.stdout)
    assert not list(tmp_path.iterdir())
