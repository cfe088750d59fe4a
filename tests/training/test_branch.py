"""Branches: the same numbers as a run from scratch, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bmscale.errors import BadInput
from bmscale.experiment import Experiment, RunFolder, read_experiment
from bmscale.training import branch, checkpoint, record
from bmscale.training.standing import Standing
from bmscale.training.train import planned

COOLDOWN = (
    *("training.schedule.type=wsd", "training.schedule.cooldown_fraction=0.2", "training.schedule.cooldown_shape=sqrt"),
    "training.max_steps=10",
)
STATE = "runs/tiny/state/step-00000008"


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def branched(bmscale, trained, tmp_path_factory) -> Path:
    """runs/tiny at a constant rate, and from its step 8 of 10 a branch."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("branched") / "work")
    bmscale("train", "tiny.yaml", "run=runs/branch", f"branch_from={STATE}", *COOLDOWN, folder=folder)
    return folder


def test_a_branch_is_the_run_from_scratch_bit_by_bit(bmscale, branched):
    bmscale("train", "tiny.yaml", "run=runs/scratch", *COOLDOWN, folder=branched)
    branch, scratch = branched / "runs/branch", branched / "runs/scratch"
    tensors = [load_file(run / "model/last/model.safetensors") for run in (branch, scratch)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    logged = [[line for line in lines(run) if line["step"] == 10 and "event" not in line] for run in (branch, scratch)]
    for key in ("tokens", "loss", "nll", "lr", "grad_norm", "valid_loss"):
        of_each = [next(line[key] for line in found if key in line) for found in logged]
        assert of_each[0] == of_each[1], key
    assert [line["step"] for line in lines(branch) if "lr" in line] == [10]
    assert lines(scratch)[-1]["step"] == lines(branch)[-1]["step"] == 10


def test_a_branch_needs_its_beginning_once_only(bmscale, branched):
    shutil.move(branched / "runs/tiny", branched / "runs/gone")
    result = bmscale("train", "tiny.yaml", "run=runs/branch", f"branch_from={STATE}", *COOLDOWN, folder=branched)
    assert "trained to its end already" in result.stderr
    shutil.move(branched / "runs/gone", branched / "runs/tiny")


def test_a_branch_may_move_with_its_trunk_and_not_to_another(branched, monkeypatch):
    """Its identity is which run and step it began with, not where these lay."""
    monkeypatch.chdir(branched)
    shutil.move("runs", "moved")
    state = "moved/tiny/state/step-00000008"
    given, other = ["run=moved/branch", *COOLDOWN], f"branch_from=moved/branch/{state[-19:]}"
    try:
        planned(read_experiment("tiny.yaml", [*given, f"branch_from={state}"]), new_schedule=False)
        with pytest.raises(BadInput, match=r"another experiment; branch_from\.run: the run has '\w+', now"):
            planned(read_experiment("tiny.yaml", [*given, other]), new_schedule=False)
        with pytest.raises(BadInput, match=r"branch_from\.state: the run has 'step-00000008', now 'step-00000012'"):
            planned(read_experiment("tiny.yaml", [*given, f"branch_from={state[:-2]}12"]), new_schedule=False)
    finally:
        shutil.move("moved", "runs")


def experiment(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Experiment:
    monkeypatch.chdir(folder)
    given = ("run=runs/other", f"branch_from={STATE}", *COOLDOWN, *overrides)
    return read_experiment("tiny.yaml", list(given))


REFUSED = {
    "another seed": (["training.seed=1"], "length, schedule and resources only; training.seed: 0 there, 1 here"),
    "another rate": (["training.optimizer.learning_rate=1"], "learning_rate: 0.005 there, 1.0 here"),
    "another shape": (["model.hidden_size=64"], "hidden_size"),
    "no state": (["branch_from=runs/tiny/state/step-00000007"], "there is no folder runs/tiny/state/step-00000007"),
    "no run": (["branch_from=prepared"], "not a run folder"),
    "its end": (["training.max_steps=8"], "must be before the run's end; the run has 8 steps"),
    "two beginnings": (["init_from=runs/tiny/model/best"], "init_from or with branch_from; got both"),
}


@pytest.mark.parametrize(("overrides", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_branch_is_refused_before_the_start(trained, monkeypatch, overrides, said):
    with pytest.raises(BadInput, match=said):
        planned(experiment(trained, monkeypatch, *overrides), new_schedule=False)


def test_a_damaged_state_is_refused(trained, tmp_path, monkeypatch):
    """What is missing before the ranks start; the hashes, which take long, once and by all ranks together."""
    folder = shutil.copytree(trained, tmp_path / "work")
    given = experiment(folder, monkeypatch)
    file = next((folder / STATE).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    *_, identity = planned(given, new_schedule=False)
    with pytest.raises(BadInput, match=r"branch_from: .*has other bytes than were written"):
        branch.check(given, identity)
    file.unlink()
    with pytest.raises(BadInput, match=r"branch_from: .*is missing; choose another state"):
        planned(given, new_schedule=False)


def test_a_run_that_began_with_a_model_can_be_branched(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "work")
    run = RunFolder(folder / "runs/tiny")
    values = yaml.safe_load(run.record.read_text())
    values["identity"]["init_from"] = "runs/first/model/best"
    run.record.write_text(yaml.safe_dump(values))
    own = checkpoint.read_manifest(folder / STATE)
    own = own.model_copy(update={"run": record.fingerprint(values["identity"])})
    (folder / STATE / checkpoint.MANIFEST).write_text(json.dumps(checkpoint._sealed(own)))
    *_, identity = planned(experiment(folder, monkeypatch), new_schedule=False)
    assert identity["branch_from"] == {"run": own.run, "state": "step-00000008"}
    with pytest.raises(BadInput, match=r"hidden_size: 32 there, 64 here; .*that run began with init_from"):
        planned(experiment(folder, monkeypatch, "model.hidden_size=64"), new_schedule=False)


@pytest.mark.parametrize(("overrides", "warned"), [([], False), (["training.schedule.warmup_steps=5"], True)])
def test_other_rates_before_the_state_are_said(trained, monkeypatch, caplog, overrides, warned):
    monkeypatch.setattr(branch.log, "propagate", True)
    planned(experiment(trained, monkeypatch, *overrides), new_schedule=False)
    assert ("the rates before step 8 are not those" in caplog.text) == warned


def test_the_branch_knows_nothing_of_the_models_of_its_trunk():
    trunk = Standing(optimizer_step=8, data_step=9, target_tokens=70, seconds=3.0, best_value=2.0, best_step=6)
    found = branch.standing(trunk.with_(validated_step=9, finished=True, trackers={"wandb": "x"}, rollbacks=1))
    assert found == Standing(optimizer_step=8, data_step=9, target_tokens=70, seconds=3.0)


def test_branch_steps_are_saved_and_stay(bmscale, prepared):
    schedule = ("training.schedule.type=constant", "training.save_every_steps=4", "training.branch_steps=[3,5]")
    bmscale("train", "tiny.yaml", "run=runs/kept", *schedule, folder=prepared)
    run = RunFolder(prepared / "runs/kept")
    assert [state.name[-2:] for state in checkpoint.list_states(run.states)] == ["03", "05", "08", "12"]
    own = record.fingerprint(record.read(run).identity)
    assert [state.name[-2:] for state in checkpoint.prune(run.states, 2, own, staying=[3])] == ["05"]
    assert [state.name[-2:] for state in checkpoint.prune(run.states, 2, own)] == ["03"]
