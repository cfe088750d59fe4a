"""What a run begins with when it goes on from another one's model (`init_from`)."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import nn

from bmscale.data.tokenizer import Tokenizer
from bmscale.errors import BadInput
from bmscale.experiment import Experiment
from bmscale.model.config import TransformerConfig
from bmscale.model.folder import ModelFolder, open_model_folder, tensor_files
from bmscale.training import checkpoint, record

log = logging.getLogger("bmscale")


@dataclass(frozen=True)
class Inheritance:
    """The parameters of a model folder, by name; of none, nothing."""

    folder: ModelFolder | None = None
    files: dict[str, Path] = field(default_factory=dict)
    """The weight file of each tensor."""
    config: TransformerConfig | None = None
    """The shape of the model that is inherited from."""

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """What the experiment begins with. A run that has a training state needs no more than its own record: the
        folder may be gone by then.

        Raises BadInput for a folder that is missing or damaged, or of an architecture that is not ours.
        """
        if experiment.init_from is None:
            return cls()
        run = experiment.run_folder
        if run.record.is_file() and checkpoint.list_states(run.states):
            return cls(config=experiment.model.task.configure(**record.read(run).identity.get("model", {})))
        folder = open_model_folder(experiment.init_from, task=None)
        if not isinstance(folder.config, TransformerConfig):
            raise BadInput(
                f"init_from: {folder.path} must be a model that bmscale trained; got the architecture "
                f"{folder.config.model_type}"
            )
        return cls(folder, tensor_files(folder), folder.config)

    def shape(self, experiment: Experiment, tokenizer: Tokenizer, **of_data: Any) -> TransformerConfig:
        """The shape of the experiment's model. Raises BadInput where the data has another tokenizer than the model."""
        if self.folder is not None and Tokenizer.load(self.folder.tokenizer).sha256 != tokenizer.sha256:
            raise BadInput(
                f"init_from: {experiment.data.directory} must be prepared with the tokenizer of {self.folder.path}, "
                f"and was with another. Set data.tokenizer.path: {self.folder.tokenizer} and prepare the data again"
            )
        return experiment.model.build(tokenizer.vocabulary_size, self.config, **of_data)

    def check(self, model: nn.Module) -> None:
        """Say what `model` takes over. Raises BadInput where that is nothing, or a parameter has another shape."""
        if self.folder is None:
            return
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        for name in shapes.keys() & self.files.keys():
            with safe_open(self.files[name], framework="pt") as file:
                found = torch.Size(file.get_slice(name).get_shape())
            if found != shapes[name]:
                raise BadInput(
                    f"init_from: {name} must have the shape {tuple(shapes[name])} that `model` asks for; "
                    f"{self.folder.path} has {tuple(found)}. Leave the options of its shape out of `model`"
                )
        new = [name for name in shapes if name not in self.files]
        if len(new) == len(shapes):
            raise BadInput(
                f"init_from: {self.folder.path}, {self.folder.task.noun}, must share parameters with the model of this "
                "task; it shares none"
            )
        log.info("%d of %d parameters are those of %s", len(shapes) - len(new), len(shapes), self.folder.path)
        if new:
            log.info("new ones: %s", ", ".join(new))

    def value(self, name: str) -> torch.Tensor | None:
        """The inherited value of a parameter, fp32 on CPU; None where it begins anew."""
        if name not in self.files:
            return None
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name).float()
