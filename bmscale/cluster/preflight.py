"""What is checked before ranks are started: once for the job, and between its nodes."""

import os
import shutil
import sys
from datetime import timedelta

from bmscale.engine import deepspeed_config
from bmscale.engine.trackers import choose_trackers
from bmscale.errors import BadInput
from bmscale.experiment import Experiment
from bmscale.model.sizes import count_parameters
from bmscale.training.checkpoint import list_states
from bmscale.training.inheritance import Inheritance
from bmscale.training.train import planned


def check(experiment: Experiment, *, new_schedule: bool = False) -> None:
    """Whether training would begin: data, shape, run folder, choice of DeepSpeed and trackers, room. Writes nothing.

    Raises BadInput. What only the ranks can check, training itself checks.
    """
    planned(experiment, new_schedule=new_schedule)
    choose_trackers(experiment.training.trackers)
    choice = deepspeed_config.choose(experiment.training.deepspeed, os.environ, 1)
    if choice is not None:
        deepspeed_config.read(choice)
    check_room(experiment)


def check_room(experiment: Experiment) -> None:
    """Raises BadInput unless the states that are still to come and two model folders find room.

    A parameter takes 12 bytes in a training state (fp32 weight, two moments), 4 more with a running mean, and 4 in a
    model folder. One state more than `keep_states` is there while it is written.
    """
    training, run = experiment.training, experiment.run_folder
    shape = experiment.model.build(experiment.data.tokenizer.vocabulary_size, Inheritance.of(experiment).config)
    parameters = count_parameters(shape).total
    there = len(list_states(run.states)) if run.states.is_dir() else 0
    to_come = max(1, training.keep_states + 1 - there)
    state_bytes = parameters * (12 if training.ema_decay is None else 16)
    needed = to_come * state_bytes + 2 * 4 * parameters
    folder = next(path for path in [run.path.absolute(), *run.path.absolute().parents] if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BadInput(
            f"{run.path}: its file system must have room for {to_come} training states of {_gib(state_bytes)} and the "
            f"models, {_gib(needed)}; free: {_gib(free)}. Make room, lower training.keep_states, or choose another "
            "run=FOLDER"
        )


def _gib(count: float) -> str:
    return f"{count / 2**30:.3g} GiB"


def meet(host: str, port: str, nodes: str, node: str, seconds: str) -> None:
    """Add one number up over all nodes, at the place where the ranks will meet; numbers come as a shell has them.

    One process a node calls it, over NCCL where there are GPUs, else over gloo. Exits with a message of one line when
    that does not end in time.
    """
    import torch
    import torch.distributed as dist

    count, rank, limit = int(nodes), int(node), timedelta(seconds=float(seconds))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stage = "the first node was not reached, or not all nodes reached it"
    try:
        store = dist.TCPStore(host, int(port), count, is_master=rank == 0, timeout=limit)
        stage = "the nodes reached the first one, but do not exchange data with each other"
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, world_size=count, rank=rank, timeout=limit)
        total = torch.ones(1, device=device)
        dist.all_reduce(total)
        found = int(total.item())
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:  # torch raises several kinds, none of which a person has to tell apart
        reason = str(error).split("\n")[0].strip()
        sys.exit(f"bmscale: {stage}: {type(error).__name__}: {reason}")
    if found != count:
        sys.exit(f"bmscale: the sum of 1 over {count} nodes was {found}")
