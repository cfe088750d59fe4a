"""ZeRO-3's masters and moments: flat sub-groups of parameters, stepped one after the other, in memory or on disk.

DeepSpeed's public calls for them (deepspeed/utils/tensor_fragment.py) read a whole sub-group from disk for each moment
of each parameter, and those that set one fail for parameters on disk, where they meet the size of a placeholder. So
sub-groups are taken as `DeepSpeedZeroOptimizer_Stage3.step` of DeepSpeed 0.19.8 takes them: each is read once, its
parameters are views of it, and it is written once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class SubGroups:
    """The sub-groups of one rank. Nothing here but `whole` and `finish_weights` is collective."""

    def __init__(self, zero: Any) -> None:
        """`zero` is DeepSpeed's optimizer of stage 3, which has no types."""
        self._zero = zero

    def members(self, parameters: Mapping[str, nn.Parameter]) -> list[list[str]]:
        """The names of the parameters by sub-group; the same on every rank."""
        names = {id(parameter): name for name, parameter in parameters.items()}
        return [[names[id(parameter)] for parameter in group] for group in self._zero.fp16_groups]

    @contextmanager
    def in_memory(self, group: int, *, modified: bool = False) -> Iterator[None]:
        """Within it `local` gives the members of a sub-group; at its end what was `modified` is on disk again."""
        zero = self._zero
        if not zero._swappable_optimizer_subgroup(group):
            yield
            return
        zero._optimizer_states_and_gradient_swap_in(group)
        try:
            yield
        finally:
            if modified:
                zero._optimizer_states_and_gradient_swap_out(group)
            else:
                zero._release_swap_buffers(group)

    def local(self, parameter: nn.Parameter, kind: str) -> torch.Tensor:
        """This rank's flat part of a master or moment, its padding included: a view of the sub-group in memory."""
        zero = self._zero
        group, start, count = zero.grad_position[zero.get_param_id(parameter)]
        masters = zero.fp32_partitioned_groups_flat[group]
        flat: torch.Tensor = masters if kind == "master" else zero.optimizer.state[masters][kind]
        return flat.detach().narrow(0, start, count)

    def whole(self, parameter: nn.Parameter, kind: str) -> torch.Tensor:
        """The full master or moment in its shape, gathered from all ranks. Collective."""
        gathered: torch.Tensor = self._zero._fp32_state_allgather(parameter, self.local(parameter, kind))
        return gathered

    def begin_weights(self) -> None:
        """Before `to_weights`: let go of every weight that is whole now, as a step does before it changes them."""
        self._zero._partition_all_parameters()

    def to_weights(self, group: int) -> None:
        """Make this rank's part of the weights that the model computes with from a sub-group's masters in memory."""
        self._zero._reassign_or_swap_out_partitioned_parameters(group)

    def finish_weights(self) -> None:
        """After `to_weights`: gather the small parameters again that every rank keeps whole. Collective."""
        persistent = self._zero.persistent_parameters
        if persistent:
            persistent[0].all_gather(persistent)
