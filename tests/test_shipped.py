"""Every file that is shipped is loaded: presets as experiments, launch files by accelerate itself, scripts by bash."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from bmscale.config import preset_names, shipped_file, shipped_names
from bmscale.engine import deepspeed_config
from bmscale.experiment import read_experiment
from bmscale.model.sizes import SIZES

ROOT = Path(__file__).parent.parent
SCRIPTS = [(folder, name) for folder in ("launch", "slurm") for name in shipped_names(folder) if name.endswith(".sh")]
LAUNCH_FILES = [name for name in shipped_names("launch") if name.endswith(".yaml")]


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_experiments(name):
    experiment = read_experiment(name, [])
    assert experiment.name == name
    assert experiment.model.build(vocabulary_size=1000).vocab_size == 1000


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("preset", ["modern", "gemma", "vanilla"])
def test_every_size_goes_with_every_preset(size, preset):
    experiment = read_experiment("toy", [f"model.size={size}", f"model.preset={preset}"])
    assert experiment.model.build(vocabulary_size=32_000).hidden_size == SIZES[size]["hidden_size"]


@pytest.mark.parametrize("name", LAUNCH_FILES)
def test_launch_files_are_taken_by_accelerate(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = shipped_file("launch", name)
    config = load_config_from_file(str(path))
    assert config.distributed_type == "DEEPSPEED"
    assert config.deepspeed_config["deepspeed_multinode_launcher"] == "standard"  # the default is pdsh
    assert deepspeed_config.read(config.deepspeed_config["deepspeed_config_file"]).stage == 2
    assert config.num_processes % config.num_machines == 0


def test_slurm_scripts_are_shipped():
    assert {"train.sh", "evaluate.sh"} <= set(shipped_names("slurm"))


@pytest.mark.parametrize("folder", ["ds_configs", "launch", "slurm"])
def test_the_wheel_has_the_folder(folder):
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["force-include"][folder] == f"bmscale/shipped/{folder}"


@pytest.mark.parametrize(("folder", "name"), SCRIPTS)
def test_scripts_are_bash(folder, name):
    subprocess.run(["bash", "-n", str(shipped_file(folder, name))], check=True)


def test_scripts_pass_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [str(shipped_file(folder, name)) for folder, name in SCRIPTS]
    scripts += [str(ROOT / "tests" / "run.sh"), str(ROOT / ".ci" / "run")]
    result = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_ci_installs_what_it_can(tmp_path):
    """One package that cannot be had keeps no other out, and the tests run all the same."""
    commands = {
        "bin/apt-get": 'case "$*" in *chromium*) exit 100 ;; esac\necho "$*" >>"$LOG"',
        "bin/id": "echo 0",
        "tests/run.sh": 'echo tests >>"$LOG"',
    }
    for name, lines in commands.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    for tool in ("bash", "dirname"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    (tmp_path / ".ci").mkdir()
    script = shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    environment = {"PATH": str(tmp_path / "bin"), "LOG": str(tmp_path / "log")}
    result = subprocess.run([str(script)], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "apt-get could not install chromium" in result.stderr
    log = (tmp_path / "log").read_text().splitlines()
    assert (log[0], log[-1]) == ("update", "tests")
    assert "install -y --no-install-recommends shellcheck" in log


@pytest.mark.parametrize("name", [name for folder, name in SCRIPTS if folder == "slurm"])
def test_options_of_sbatch_stand_where_sbatch_reads_them(name):
    """sbatch ignores, without a word, every #SBATCH line after the first command."""
    lines = (ROOT / "slurm" / name).read_text(encoding="utf-8").splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert options
    assert max(options) < first_command


@pytest.mark.parametrize("name", ["my", "mixed", "text", "masked", "labels"])
def test_the_examples_of_the_readme_are_experiments(tmp_path, name):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for other in re.findall(r"```yaml\n# (\w+)\.yaml\n(.*?)```", readme, re.DOTALL):
        (tmp_path / f"{other[0]}.yaml").write_text(other[1], encoding="utf-8")
    experiment = read_experiment(str(tmp_path / f"{name}.yaml"), [])
    assert experiment.name == name
    assert str(experiment.run_folder.path) == f"runs/{name}"
