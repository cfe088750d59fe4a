"""The seam to DeepSpeed: build a model on its ranks, take one optimizer step, see its parameters by name.

One class serves ZeRO 0 to 3, offload and no DeepSpeed at all, so that nothing above it asks which one runs. What is
different between them stands in the methods below, each with its reason.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bmscale.engine import deepspeed_config, host_memory, process_group
from bmscale.engine.disk import Disk
from bmscale.engine.sub_groups import SubGroups
from bmscale.experiment import TrainingConfig
from bmscale.model.loss import LossSums

log = logging.getLogger("bmscale")

InitialValue = Callable[[str, torch.Size], torch.Tensor]
"""(parameter name, full shape) -> its first value, fp32 on CPU."""

STATE_KINDS = ("master", "exp_avg", "exp_avg_sq")
"""What a training state holds for each parameter, all in fp32; besides them AVERAGE, where one is kept."""

AVERAGE = "ema"
"""The running mean of a parameter (training.ema_decay). It lies among the optimizer's own states, under whatever piece
of the parameters this rank steps, so that all that finds a moment by name finds it as well."""

ReadPiece = Callable[[str, str, int, int], torch.Tensor]
"""(parameter name, kind, first element, number of elements) -> these elements of the flat tensor, fp32 on CPU."""

LossFunction = Callable[[nn.Module, Any], LossSums]


@dataclass(frozen=True)
class Piece:
    """A run of elements of one parameter's master weight or moment, whatever the ZeRO stage."""

    name: str
    """The parameter."""
    kind: str
    """One of `Engine.state_kinds`."""
    start: int
    """The first element, counted in the flat full parameter."""
    values: torch.Tensor
    """1-D, fp32, on CPU, this piece's own memory."""


@dataclass(frozen=True)
class StepOutcome:
    """One optimizer step, the same on every rank."""

    loss: float
    """Smoothed loss a target token, over the whole global step (nats)."""
    nll: float
    """Negative log-likelihood a target token (nats)."""
    grad_norm: float
    """Global gradient norm before clipping."""
    skipped: bool
    """Weights, moments and running mean were left as they were: the step was refused or its gradient not finite."""
    refused: bool
    """Skipped for its loss, which was not finite or which the caller refused."""


class Engine:
    """A model and its AdamW on the ranks of one process group."""

    def __init__(self, training: TrainingConfig, run_folder: Path = Path()) -> None:
        """Start the process group with the ZeRO stage that launcher or experiment choose. Raises BadInput, LostRank.

        Where that keeps states on disk, they lie in `run_folder` unless another place is named.
        """
        world_size = process_group.launched_world_size(os.environ)
        choice = deepspeed_config.choose(training.deepspeed, os.environ, world_size)
        self.file = deepspeed_config.read(choice) if choice else None
        self.training = training
        self._disk = Disk(self.file, training, run_folder) if self.file and self.file.on_disk else None
        nvme_path = None if self._disk is None else self._disk.folder
        self.config = deepspeed_config.complete(self.file, training, world_size, nvme_path) if self.file else None
        # A hang is for the training to find, which knows whose it is; collectives give up after that.
        timeout_minutes = max(30.0, 2 * (training.hang_minutes or 0))
        self.accelerator = process_group.start(
            self.config, training.precision, timeout_minutes, save_memory=self._disk is not None
        )
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self._names: dict[str, nn.Parameter] = {}
        self._keepers: dict[str, int] = {}
        self._groups: SubGroups | None = None
        self.moved: Callable[[], None] = lambda: None
        """Called with each forward of the model and each parameter that is read: long work comes forward."""
        # Without DeepSpeed the module itself, else DeepSpeed's engine around it, which has no types.
        self.wrapped: Any = None

    # -- what runs ---------------------------------------------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs and folders."""
        return self.rank == 0

    @property
    def stage(self) -> int:
        """ZeRO stage; 0 also without DeepSpeed."""
        return self.file.stage if self.file else 0

    @property
    def partitioned(self) -> bool:
        """Whether a rank holds only a piece of each weight, so that even a forward pass is collective (ZeRO-3)."""
        return self.stage == 3

    @property
    def device_name(self) -> str:
        """The accelerator's model, or `cpu`."""
        return torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type

    def describe(self) -> str:
        """`ZeRO-2 (zero2.json), 2 ranks on cpu, bf16`."""
        sharding = f"ZeRO-{self.stage} ({self.file.path.name})" if self.file else "no DeepSpeed"
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        return f"{sharding}, {ranks} on {self.device.type}, {self.training.precision}"

    # -- building ----------------------------------------------------------------------------------------------------

    def build(
        self,
        make_model: Callable[[], nn.Module],
        initial_value: InitialValue,
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    ) -> None:
        """Make the model on this rank, partitioned from the start under ZeRO-3, and its optimizer.

        Every stage starts from the same weights: each parameter's first value is a function of its name and shape.
        (ZeRO 1 to 3 in bf16 round it to bf16 first, since they make their fp32 masters of bf16 weights.)
        """
        if self._disk is not None:
            with torch.device("meta"):
                self._disk.prepare(make_model(), self.training.precision)
        with self._construction():
            model: Any = make_model()
        for name, parameter in model.named_parameters():
            with self._whole(parameter, modified=True), torch.no_grad():
                if not self.partitioned or self.is_main:
                    parameter.copy_(initial_value(name, parameter.shape))
        if not self.partitioned:
            model.to(self.device)
        optimizer = make_optimizer(model)
        if self.file:
            model, optimizer = self.accelerator.prepare(model, optimizer)
        self.wrapped, self.optimizer = model, optimizer
        self.module: nn.Module = model.module if self.file else model
        self._groups = SubGroups(model.optimizer) if self.partitioned else None
        self.module.register_forward_pre_hook(lambda *_: self.moved())
        self._names = dict(self.module.named_parameters())
        self._make_moments()
        self._keepers = _even_shares(self.shapes(), self.world_size)
        self._base_rates = [group["lr"] for group in self._param_groups]
        if self.file:
            self._check_deepspeed()

    def _make_moments(self) -> None:
        """Make AdamW's moments now, and not in its first step: there they would lie behind what a step needs besides,
        and keep its place from being one. Those that are offloaded come with the first step, as DeepSpeed has it."""
        if self.file and self.file.offloads("optimizer"):
            return
        parameters = (
            self.wrapped.optimizer.fp32_partitioned_groups_flat
            if self.partitioned
            else [parameter for group in self.adam.param_groups for parameter in group["params"]]
        )
        for parameter in parameters:
            self.adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }

    def _construction(self) -> AbstractContextManager[Any]:
        if not self.partitioned:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.Init(config_dict_or_path=self.config)

    def _whole(self, parameter: nn.Parameter, *, modified: bool = False) -> AbstractContextManager[Any]:
        """Within it the full parameter is there, also under ZeRO-3; what rank 0 changes reaches every rank."""
        if not self.partitioned:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if modified else None)

    def _check_deepspeed(self) -> None:
        """DeepSpeed and accelerate both rewrite configurations: believe only what they ended up with."""
        for what, wanted, got in (
            ("gradient accumulation", 1, self.wrapped.gradient_accumulation_steps()),
            ("gradient clipping", self.training.clip_norm or 0.0, self.wrapped.gradient_clipping()),
            ("ZeRO stage", self.stage, self.wrapped.zero_optimization_stage()),
            ("data-parallel size", self.world_size, self.wrapped.dp_world_size),
        ):
            if wanted != got:
                raise RuntimeError(f"DeepSpeed runs with {what} {got} where {wanted} was configured")

    @property
    def _param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    # -- one optimizer step ------------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 over fp32 weights where no ZeRO stage holds bf16 weights itself; nothing otherwise."""
        if self.training.precision == "bf16" and self.stage == 0:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def seed_micro_batch(self, data_step: int, index: int) -> None:
        """Seed dropout from (seed, data step, rank, micro-batch): so no generator state needs saving."""
        key = f"{self.training.seed}/{data_step}/{self.rank}/{index}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little"))

    def train_step(
        self,
        micro_batches: Sequence[Any],
        loss_function: LossFunction,
        *,
        target_tokens: int,
        data_step: int,
        rate_factor: float,
        before_step: Callable[[], None] = lambda: None,
        refuse: Callable[[float], bool] | None = None,
    ) -> StepOutcome:
        """One optimizer step over this rank's micro-batches, of which every rank has the same number.

        `target_tokens` counts the whole global step, so that the loss is a true mean over its tokens however they are
        spread. DeepSpeed averages gradients over ranks, which the factor world_size undoes.

        A loss or a gradient that is not finite skips the step. `refuse` is asked, on every rank, whether to skip it for
        its finite loss (`StepOutcome.loss`) as well; all of them must answer alike. `before_step` is called once the
        gradients are there.
        """
        for group, rate in zip(self._param_groups, self._base_rates, strict=True):
            group["lr"] = rate * rate_factor
        wide = torch.float32 if self.device.type == "mps" else torch.float64  # Apple's GPUs have no fp64
        sums = torch.zeros(2, dtype=wide, device=self.device)
        self.wrapped.train()
        refused = False
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            self.seed_micro_batch(data_step, index)
            with self.autocast():
                losses = loss_function(self.wrapped, batch)
            sums += torch.stack([losses.loss.detach(), losses.nll.detach()]).to(wide)
            scaled = losses.loss * (self.world_size / target_tokens)
            if last and refuse is not None:
                process_group.sum_over_ranks(sums)
                loss = float(sums[0]) / target_tokens
                refused = math.isfinite(loss) and refuse(loss)
            if last:
                scaled = scaled * self._veto(sums[0], refused)
            self._backward(scaled, last=last)
        before_step()
        grad_norm, skipped = self._step()
        if refuse is None:
            process_group.sum_over_ranks(sums)
        loss, nll = (sums / target_tokens).tolist()
        refused = refused or not math.isfinite(loss)
        if refused and not skipped:
            raise RuntimeError(f"data step {data_step}: loss {loss} was refused, and the step was taken all the same")
        if not skipped and self.training.ema_decay is not None:
            self._update_average(self.training.ema_decay)
        return StepOutcome(loss, nll, grad_norm, skipped, refused)

    def _veto(self, loss_sum: torch.Tensor, refused: bool) -> torch.Tensor:
        """The factor of the last loss of a step: NaN makes it a step that is skipped, 1 lets it be.

        A gradient that is not finite is the only one that every ZeRO stage drops whole, with what it has accumulated
        of earlier micro-batches. A loss that is not finite may have a finite gradient, so it is looked at as well: of
        this rank's micro-batches, on the device and without waiting for it, since one NaN reaches every rank.
        """
        good = torch.isfinite(loss_sum) & (not refused)
        return torch.where(good, 1.0, math.nan)

    def _backward(self, loss: torch.Tensor, *, last: bool) -> None:
        if not self.file:
            loss.backward()
            return
        self.wrapped.set_gradient_accumulation_boundary(last)
        self.wrapped.backward(loss, scale_wrt_gas=False)

    def _step(self) -> tuple[float, bool]:
        """Apply the gradients. Returns (norm before clipping, whether the step was skipped as not finite)."""
        if self.stage > 0:
            self.wrapped.step()
            norm = float(self.wrapped.get_global_grad_norm())
            # DeepSpeed reports a norm that is not finite as -1 or leaves the last one, and sets `overflow`.
            skipped = bool(getattr(self.wrapped.optimizer, "overflow", False))
            if skipped and self.stage == 2:
                # With offload in bf16 it keeps what it has accumulated, and would skip every later step as well
                # (DeepSpeed 0.19.8, stage_1_and_2.py `step`; without offload it does this itself).
                accumulated = self.wrapped.optimizer.averaged_gradients
                accumulated.update(dict.fromkeys(accumulated))
            return (math.nan if skipped else norm), skipped
        # Stage 0 neither reports the norm in fp32 nor skips a step that is not finite.
        gradients = [parameter.grad for parameter in self._names.values() if parameter.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).float()))
        if not math.isfinite(norm):
            self._zero_gradients()
            return math.nan, True
        if self.file:
            self.wrapped.step()
        else:
            if self.training.clip_norm is not None and norm > self.training.clip_norm:
                torch._foreach_mul_(gradients, self.training.clip_norm / (norm + 1e-6))
            self.optimizer.step()
            self._zero_gradients()
        return norm, False

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        """ema <- decay ema + (1 - decay) weights.

        The decay grows into its value, min(decay, (1 + t) / (10 + t)) in step t, so that the first weights are soon
        forgotten (TensorFlow's ExponentialMovingAverage).
        """
        for parameter, state in self.adam.state.items():
            if "exp_avg" not in state:
                continue
            if AVERAGE not in state:
                state[AVERAGE] = parameter.detach().clone()
            step = float(state["step"])
            weight = 1 - min(decay, (1 + step) / (10 + step))
            state[AVERAGE].lerp_(parameter.detach().to(state[AVERAGE].dtype), weight)

    @property
    def adam(self) -> torch.optim.Optimizer:
        """The AdamW itself, inside accelerate's wrapper and ZeRO's."""
        optimizer = self.optimizer
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        return optimizer

    def _zero_gradients(self) -> None:
        for parameter in self._names.values():
            parameter.grad = None

    # -- parameters by name ------------------------------------------------------------------------------------------

    def weights(self, kind: str = "master") -> Iterator[tuple[str, torch.Tensor]]:
        """Each full weight in fp32 on CPU, one at a time. Collective: every rank must exhaust the iterator.

        fp32 masters where ZeRO holds them, since its module weights are only bf16; or their AVERAGE.
        """
        if kind != "master":
            self._link_moments()
        for name in self._in_turn():
            yield name, self._read(self._names[name], kind)

    def _in_turn(self) -> Iterator[str]:
        """The names of all parameters, each at a time when its master and moments are in memory."""
        groups = self._groups.members(self._names) if self._groups else [list(self._names)]
        for group, names in enumerate(groups):
            with self._groups.in_memory(group) if self._groups else nullcontext():
                for name in names:
                    self.moved()
                    yield name

    @property
    def state_kinds(self) -> tuple[str, ...]:
        """What a training state of this run holds for each parameter."""
        return STATE_KINDS if self.training.ema_decay is None else (*STATE_KINDS, AVERAGE)

    def shapes(self) -> dict[str, torch.Size]:
        """The full shape of each parameter."""
        return {name: self._full_shape(parameter) for name, parameter in self._names.items()}

    def pieces(self) -> Iterator[Piece]:
        """What this rank keeps of the state: over all ranks every element of every kind exactly once.

        ZeRO's own partition from stage 1 on; whole parameters in turn below it, where every rank has them all. Not
        collective, and no rank sees more than its own share.
        """
        self._link_moments()
        for name in self._in_turn():
            parameter = self._names[name]
            start, count = self._share(name, parameter)
            for kind in self.state_kinds if count else ():
                # A copy: DeepSpeed gives views of buffers that it uses again.
                values = self._local(parameter, kind)[:count].detach().to("cpu", torch.float32, copy=True)
                yield Piece(name, kind, start, values)

    def _share(self, name: str, parameter: nn.Parameter) -> tuple[int, int]:
        """(first element, number of elements) of the flat parameter that this rank keeps."""
        whole = self._full_shape(parameter).numel()
        if self.partitioned:  # equal parts, the last ones padded
            part = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
            start = part * self.rank
            return start, max(0, min(part, whole - start))
        if self.stage > 0:
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            address = None if mapping is None else mapping.lp_fragment_address
            return (0, 0) if address is None else (address.start, address.numel)
        return 0, whole if self._keepers[name] == self.rank else 0

    def _local(self, parameter: nn.Parameter, kind: str) -> torch.Tensor:
        """This rank's flat part of a parameter, as the optimizer has it (padding of ZeRO-3 included)."""
        if self._groups:
            return self._groups.local(parameter, kind)
        if self.stage > 0:
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            return mapping.get_hp_fragment(None if kind == "master" else kind).view(-1)
        return (parameter if kind == "master" else self._plain_state(parameter)[kind]).view(-1)

    def _link_moments(self) -> None:
        """Have ZeRO-1 and 2 find the moments of every parameter group.

        They link moments to parameters once, right after the first group's first step, when under offload the later
        groups have none yet, and would say that those have no moments (DeepSpeed 0.19.8, stage_1_and_2.py
        `_optimizer_step`).
        """
        zero: Any = getattr(self.wrapped, "optimizer", None)
        if self.stage > 0 and hasattr(zero, "_hp_optimizer_states_linked"):
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def _read(self, parameter: nn.Parameter, kind: str) -> torch.Tensor:
        if self._groups:
            value = self._groups.whole(parameter, kind)
        elif self.stage > 0:
            from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

            value = (
                safe_get_full_fp32_param(parameter)
                if kind == "master"
                else safe_get_full_optimizer_state(parameter, kind)
            )
        elif kind == "master":
            value = parameter.detach()
        else:
            value = self._plain_state(parameter)[kind]
        # A copy: DeepSpeed returns its own buffers.
        return value.detach().to("cpu", torch.float32, copy=True).reshape(self._full_shape(parameter))

    @staticmethod
    def _full_shape(parameter: nn.Parameter) -> torch.Size:
        return getattr(parameter, "ds_shape", parameter.shape)

    def _plain_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate's wrapper around stage 0
        state: dict[str, Any] = optimizer.state[parameter]
        return state

    def load_state(self, read: ReadPiece, optimizer_step: int, empty_step: Callable[[], None]) -> None:
        """Set masters, moments, model weights and the optimizer's own step count. Collective.

        `read` gives any range of a flat parameter, and each rank asks for no more than it holds. `empty_step` takes one
        step at rate 0 on nothing, after which there are moments, in whatever shape this ZeRO stage keeps them.
        """
        empty_step()
        self._link_moments()
        if self._groups:
            self._groups.begin_weights()
            for group, names in enumerate(self._groups.members(self._names)):
                with self._groups.in_memory(group, modified=True):
                    for name in names:
                        self._load_parameter(name, read)
                    self._groups.to_weights(group)
            self._groups.finish_weights()
        else:
            for name in self._names:
                self._load_parameter(name, read)
            if self.stage > 0:  # DeepSpeed's masters are other tensors than the module's weights
                self.wrapped.optimizer.update_lp_params()
        self._set_step_count(optimizer_step)

    @torch.no_grad()
    def _load_parameter(self, name: str, read: ReadPiece) -> None:
        """Set what this rank holds of a parameter's master and moments."""
        parameter = self._names[name]
        start, count = self._share(name, parameter)
        if self.stage == 0:
            start, count = 0, parameter.numel()  # every rank has them all
        for kind in self.state_kinds if count else ():
            local = self._local(parameter, kind)
            local[:count].copy_(read(name, kind, start, count))
            local[count:].zero_()  # padding of ZeRO-3

    def _set_step_count(self, optimizer_step: int) -> None:
        for state in self.adam.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"].fill_(optimizer_step)
            elif "step" in state:
                state["step"] = optimizer_step

    def close(self) -> None:
        """Remove what states on disk have left there: the engine cannot be used any more. Not collective."""
        if self._disk is not None:
            self._disk.remove()

    # -- evaluation --------------------------------------------------------------------------------------------------

    def evaluation(self) -> AbstractContextManager[Any]:
        """No gradients, dropout off, the precision of training."""
        return _Evaluation(self)

    def memory_gib(self) -> list[float]:
        """Peak memory of each rank since the start: of the accelerator where there is one, else of the process."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**30
        else:
            peak = host_memory.peak() / 2**30
        return [round(value, 3) for value in process_group.gather_objects(peak)]


def _even_shares(shapes: Mapping[str, torch.Size], world_size: int) -> dict[str, int]:
    """Which rank keeps which parameter where every rank has them all: the largest first, to whoever has least."""
    loads = [0] * world_size
    keepers = {}
    for name in sorted(shapes, key=lambda name: (-shapes[name].numel(), name)):
        keepers[name] = loads.index(min(loads))
        loads[keepers[name]] += shapes[name].numel()
    return keepers


class _Evaluation:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._contexts = (torch.no_grad(), engine.autocast())

    def __enter__(self) -> nn.Module:
        self._engine.module.eval()
        for context in self._contexts:
            context.__enter__()
        return self._engine.module

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*error)
        self._engine.module.train()
