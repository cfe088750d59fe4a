"""`bmscale submit` with a stand-in for sbatch; tests/slurm submits to a real one and runs the scripts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from bmscale.cli import main
from bmscale.cluster.submit import fill_in
from bmscale.config import shipped_file
from bmscale.experiment import read_experiment
from bmscale.training import record

SBATCH = """\
#!/usr/bin/env bash
printf '%s|' "$PWD" "$@" >>"$RECORD"
[ -z "${REFUSE:-}" ] || { echo "sbatch: error: $REFUSE" >&2; exit 1; }
echo '4711;here'
"""


@pytest.fixture
def work(prepared, tmp_path, monkeypatch) -> Path:
    """A folder with tiny.yaml and its data, where sbatch is on PATH."""
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(SBATCH)
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("BMSCALE_ENV", "my env")
    return folder


def calls(work: Path) -> list[str]:
    record = work.parent / "record"
    return record.read_text().split("|")[:-1] if record.exists() else []


def test_a_submission_trains_what_was_given_then(work, capsys):
    command = "submit tiny.yaml training.seed=7 --nodes=4 --gpus=8 --new-schedule"
    assert main(command.split()) == 0
    output = capsys.readouterr()
    assert output.out == "4711\n"
    assert "job 4711 trains runs/tiny" in output.err

    (folder,) = (work / "runs/tiny/submitted").iterdir()
    name = folder.relative_to(work)
    assert calls(work) == [str(work), "--parsable", f"{name}/train.sh"]
    given = read_experiment("tiny.yaml", ["training.seed=7", "run=runs/tiny"])
    assert read_experiment(str(name / "experiment.yaml"), []) == given
    script = (folder / "train.sh").read_text()
    assert script == fill_in([f"{name}/experiment.yaml", "--new-schedule"], ["--nodes=4", "--gpus=8"])
    facts = yaml.safe_load((folder / "submission.yaml").read_text())
    assert facts["job"] == "4711"
    if facts["git_commit"]:  # the package is not in a clone everywhere
        assert len(facts["git_commit"]) == 40
        assert (folder / "code.diff").exists() == bool(facts["git_changes"])
    # The snapshot does not make the run folder one of another run; a second one lies beside it.
    assert not record.check(given.run_folder, {}, given, 1, new_schedule=False)
    assert main(command.split()) == 0
    assert len(list((work / "runs/tiny/submitted").iterdir())) == 2


def test_the_script_is_ours_with_options_and_arguments():
    template = shipped_file("slurm", "train.sh")
    assert template is not None
    lines = template.read_text().splitlines()
    filled = fill_in(
        ["my own.yaml", "a=1"], ["--nodes=4", "--time=1:00:00", "--comment=a b", "--exclusive"]
    ).splitlines()
    gone = ["#SBATCH --nodes=1", "##SBATCH --time=24:00:00"]
    assert [line for line in lines if line not in filled] == gone
    added = [line for line in filled if line not in lines]
    assert added[:4] == [
        "#SBATCH --nodes=4",
        "#SBATCH --time=1:00:00",
        "#SBATCH '--comment=a b'",
        "#SBATCH --exclusive",
    ]
    assert added[5] == "set -- 'my own.yaml' a=1"
    first_command = next(number for number, line in enumerate(filled) if line and not line.startswith("#"))
    assert filled[first_command] == added[5]
    assert max(number for number, line in enumerate(filled) if line.startswith("#SBATCH ")) < first_command
    subprocess.run(["bash", "-n", "-c", "\n".join(filled)], check=True)


@pytest.mark.parametrize(
    ("words", "options", "overrides"),
    [
        ("--nodes 4 a.b=1", ["--nodes=4"], ["a.b=1"]),
        ("a.b=1 --nodes=4 c=2 --qos=high", ["--nodes=4", "--qos=high"], ["a.b=1", "c=2"]),
        ("a.b=1 -- --qos=high -N4", ["--qos=high", "-N4"], ["a.b=1"]),
        ("--time=1:00:00 -- --signal=B:USR1@60", ["--time=1:00:00", "--signal=B:USR1@60"], []),
    ],
)
def test_options_of_sbatch_go_anywhere(work, capsys, monkeypatch, words, options, overrides):
    monkeypatch.setattr("bmscale.experiment.read_experiment", lambda config, given: seen.append(given))
    seen: list[list[str]] = []
    assert main(["submit", "tiny.yaml", "--dry-run", *words.split()]) == 0
    assert seen == [overrides]
    assert capsys.readouterr().out == fill_in(["tiny.yaml", *overrides], options)


def test_a_dry_run_prints_the_script_and_writes_nothing(work, capsys):
    assert main(["submit", "tiny.yaml", "training.seed=7", "--nodes=4", "--dry-run"]) == 0
    assert capsys.readouterr().out == fill_in(["tiny.yaml", "training.seed=7"], ["--nodes=4"])
    assert not (work / "runs").exists()
    assert not calls(work)


def test_an_unknown_option_of_another_command_is_still_refused(work, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "tiny.yaml", "--nodes=4"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --nodes=4" in capsys.readouterr().err


def refused(work: Path, capsys: pytest.CaptureFixture[str], command: str) -> tuple[int, str]:
    code = main(command.split())
    output = capsys.readouterr()
    assert output.out == ""
    assert not list(work.glob("runs/*/submitted/*"))
    return code, output.err


def test_nothing_is_submitted_that_cannot_run(work, capsys, monkeypatch):
    code, said = refused(work, capsys, "submit tiny.yaml training.sede=7 --nodes=4")
    assert code == 2
    assert "did you mean 'seed'?" in said
    unprepared = "submit tiny.yaml data.directory=nowhere"
    code, said = refused(work, capsys, unprepared)
    assert code == 2
    assert "nowhere: no prepared data here" in said
    assert not calls(work)
    assert main([*unprepared.split(), "--dependency=afterok:17"]) == 0  # which prepares it
    assert capsys.readouterr().out == "4711\n"


def test_a_refusal_of_sbatch_is_shown_and_nothing_stays(work, capsys, monkeypatch):
    monkeypatch.setenv("REFUSE", "invalid partition specified: fast")
    code, said = refused(work, capsys, "submit tiny.yaml --partition=fast")
    assert code == 1
    assert "bmscale: error: sbatch refused the job: sbatch: error: invalid partition specified: fast" in said
    assert not list(work.glob("runs/*"))


def test_where_there_is_no_sbatch(work, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    code, said = refused(work, capsys, "submit tiny.yaml")
    assert code == 2
    assert "bmscale: error: sbatch: must be on PATH" in said
