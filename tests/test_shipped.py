"""Every file that is shipped is loaded: presets as experiments, launch files by accelerate itself."""

from pathlib import Path

import pytest

from bmscale.config import preset_names, shipped_file, shipped_names
from bmscale.engine import deepspeed_config
from bmscale.experiment import read_experiment
from bmscale.model.sizes import SIZES

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


def test_the_example_of_the_readme_is_an_experiment(tmp_path):
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    example = readme.split("```yaml\n# my.yaml\n")[1].split("```")[0]
    (tmp_path / "my.yaml").write_text(example, encoding="utf-8")
    experiment = read_experiment(str(tmp_path / "my.yaml"), [])
    assert experiment.name == "my"
    assert str(experiment.run_folder.path) == "runs/my"
