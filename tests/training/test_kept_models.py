"""Which models of validations stay, and that nothing of anybody else's is touched."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bmscale.errors import BadInput
from bmscale.experiment import RunFolder
from bmscale.training import kept_models

STARTED = "2026-01-01T00:00:00+00:00"


def make(run: RunFolder, step: int, *, started: str = STARTED, **figures) -> Path:
    folder = kept_models.folder_of(run, step)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    record = {"step": step, "validation": figures, "kept_by": {"run_started": started}}
    (folder / "provenance.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def run(tmp_path) -> RunFolder:
    values = {"experiment": {}, "identity": {}, "total_steps": 9, "starts": [{"time": STARTED}, {"time": "later"}]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return RunFolder(tmp_path)


def names(run: RunFolder) -> list[int]:
    return [int(path.name.split("-")[1]) for path in sorted(run.models.glob("step-*"))]


@pytest.mark.parametrize(
    ("select", "expected"), [("loss", [2, 3, 6, 7]), ("bleu", [1, 5, 6, 7]), ("chrf", [1, 2, 6, 7])]
)
def test_the_newest_and_the_best_stay(run, select, expected):
    losses, bleus = (9.0, 1.0, 2.0, 8.0, 7.0, 6.0, 5.0), (9.0, 1.0, 2.0, 3.0, 8.0, 4.0, 5.0)
    for step, (loss, bleu) in enumerate(zip(losses, bleus, strict=True), start=1):
        make(run, step, loss=loss, bleu=bleu, chrf=3.0)  # of equal ones the earlier are the best
    kept_models.retain(run, 2, select)
    assert names(run) == expected
    assert not list(run.models.glob(".*"))


def test_what_the_run_did_not_write_is_neither_removed_nor_overwritten(run):
    foreign = make(run, 1, started="2025-01-01T00:00:00+00:00", loss=9.0)
    marked = make(run, 2, loss=8.0)
    (marked / "notes.txt").write_text("mine")
    copied = run.models / "step-00000003"
    shutil.copytree(make(run, 4, loss=7.0), copied)  # a copy under another step
    bare = run.models / "step-00000005"
    bare.mkdir()
    make(run, 6, loss=1.0)
    link = run.models / "step-00000007"
    link.symlink_to(kept_models.folder_of(run, 6))
    for step in (8, 9):
        make(run, step, loss=0.5)
    kept_models.retain(run, 1, "loss")
    assert names(run) == [1, 2, 3, 5, 7, 8, 9]
    kept_models.forget_after(run, 0)
    assert names(run) == [1, 2, 3, 5, 7]
    for folder in (foreign, marked, copied, bare, link):
        assert not kept_models.may_write(run, int(folder.name.split("-")[1]))
    assert kept_models.may_write(run, 10)


def test_figures_that_were_not_computed_are_the_worst(run):
    make(run, 1, loss=1.0, bleu=None)
    make(run, 2, loss=2.0, bleu=3.0)
    make(run, 3, loss=3.0)
    assert [model.step for model in kept_models.best(kept_models.list_kept(run), 2, "bleu")] == [2, 1]


def test_a_run_keeps_models_over_a_resume_and_averages_them(bmscale, prepared):
    """Killed after a validation that its last state knows nothing of, the run goes on to keep its own."""
    options = ["tiny.yaml", "evaluation.every_steps=2", "evaluation.keep_models=2", "evaluation.pairs=0"]
    bmscale("train", *options, "run=runs/whole", folder=prepared)
    program = (
        "import sys\nfrom bmscale.cli import main\nfrom bmscale.training.models import Models\n"
        "keep = Models.keep\n"
        "def die(models, standing, result):\n"
        "    keep(models, standing, result)\n"
        "    if standing.data_step == 10: raise KeyboardInterrupt\n"
        "Models.keep = die\n"
        f"sys.exit(main(['train', *{options!r}, 'run=runs/cut']))"
    )
    died = subprocess.run([sys.executable, "-c", program], cwd=prepared, capture_output=True, text=True, check=False)
    assert died.returncode == 130, died.stderr
    cut, whole = (RunFolder(prepared / "runs" / name) for name in ("cut", "whole"))
    assert names(cut) == [8, 10]
    mine = cut.models / "step-00000012"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    resumed = bmscale("train", *options, "run=runs/cut", folder=prepared)
    assert "step-00000012: was not written by this run" in resumed.stderr
    assert (mine / "thesis.txt").read_text() == "mine"
    shutil.rmtree(mine)
    assert names(whole) == [10, 12]
    assert names(cut) == [8, 10]
    same = [load_file(kept_models.folder_of(run, 10) / "model.safetensors") for run in (cut, whole)]
    assert all(torch.equal(same[0][name], tensor) for name, tensor in same[1].items())

    shown = json.loads(bmscale("average", "runs/whole", "--last", "2", folder=prepared).stdout)
    assert shown["averaged"] == [{"folder": f"step-{step:08d}", "step": step} for step in (10, 12)]
    best = json.loads(bmscale("average", "runs/whole", "--best", "2", "--to", "b", folder=prepared).stdout)
    losses = {step: provenance(whole, step)["validation"]["loss"] for step in (10, 12)}
    assert [one["step"] for one in best["averaged"]] == sorted(losses, key=lambda step: losses[step])
    results = json.loads(bmscale("evaluate", "runs/whole", "--model", "average", folder=prepared).stdout)
    assert results["test"]["toy-test"]["model"] == "model/average"
    assert results["test"]["toy-test"]["step"] is None
    assert results["validation"]["loss"] > 0
    with pytest.raises(BadInput, match=r"--best: .* must hold 3 models .* it has 2 \(step-00000010, step-00000012\)"):
        kept_models.choose(whole, best_by=3)
    with pytest.raises(BadInput, match="--last: must be at least 2 models; got 1"):
        kept_models.choose(whole, last=1)


def provenance(run: RunFolder, step: int) -> dict:
    return json.loads((kept_models.folder_of(run, step) / "provenance.json").read_text())
