"""What is needed to run a plan, as files: overrides of the experiment, DeepSpeed's JSON, Accelerate's YAML."""

import json
from pathlib import Path

import yaml

from bmscale.planning.plan import Plan, Way

DEEPSPEED, ACCELERATE, OVERRIDES, SCRIPT = "ds_config.json", "accelerate.yaml", "overrides.txt", "train.sh"


def overrides(plan: Plan, way: Way, folder: Path) -> list[str]:
    """Words for the command line of `bmscale train`."""
    return [
        f"training.deepspeed={folder / DEEPSPEED}",
        f"training.max_micro_batch_tokens={plan.workload.slots(way.rows)}",
        f"training.activation_checkpointing={str(way.checkpointing).lower()}",
    ]


def contents(plan: Plan, way: Way, folder: Path) -> dict[str, str]:
    """The files by name."""
    words = overrides(plan, way, folder)
    deepspeed = way.zero.to_json()
    return {
        OVERRIDES: "\n".join(words) + "\n",
        DEEPSPEED: json.dumps(deepspeed, indent=2) + "\n",
        ACCELERATE: yaml.safe_dump(_accelerate(plan, folder), sort_keys=False),
    }


def sbatch_options(plan: Plan) -> list[str]:
    """Options of the job."""
    machine = plan.machine
    options = [f"--nodes={machine.nodes}"]
    return options if machine.accelerator.is_cpu else [*options, f"--gpus-per-node={machine.gpus}"]


def _accelerate(plan: Plan, folder: Path) -> dict[str, object]:
    """As the files of launch/ are."""
    machine = plan.machine
    meeting: dict[str, object] = {"main_process_port": 0}
    if machine.nodes > 1:  # the same command on every node with its own --machine_rank and --main_process_ip
        meeting = {"main_process_ip": "127.0.0.1", "main_process_port": 29500}
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            "deepspeed_config_file": str(folder / DEEPSPEED),
            "deepspeed_multinode_launcher": "standard",
            "zero3_init_flag": False,
        },
        "machine_rank": 0,
        **meeting,
        "main_training_function": "main",
        "num_machines": machine.nodes,
        "num_processes": machine.world_size,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": machine.accelerator.is_cpu,
    }
