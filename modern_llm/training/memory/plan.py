"""How much memory a training run will need, before it starts: one of its own steps, on tensors without content."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modern_llm.models.kernels import Device
from modern_llm.models.transformer import ModernDecoderLM
from modern_llm.objectives.base import Batch, Objective
from modern_llm.processes import alone
from modern_llm.training.memory.compiled import kept_by_the_compiler
from modern_llm.training.memory.ledger import Ledger
from modern_llm.training.memory.simulation import simulated
from modern_llm.training.runtime import Runtime, attend_flexibly
from modern_llm.training.settings import Hardware, TrainerSettings
from modern_llm.training.trainer import Trainer

_COMPILED = 1.7  # times the activations of plain blocks, of models that the compiler is not asked about
_CONTEXT_BYTES = 600e6  # CUDA context and kernels, which the GPU counts as used
_ASSUMED = (8, 6)  # capability of a card that is not here


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose where a training step needs most, in each process.

    Attributes:
        weights: parameters and buffers, frozen ones and those of other models included, and copies in 16 bits.
        average: of the weights, where one is taken.
        gradients: of the parameters.
        optimizer: its state.
        activations: what the backward pass still needs.
        workspace: what operations hold while they run, and inputs of blocks that are computed again.
        device: context and kernels of CUDA, which `peak_memory_gb` does not count.
    """

    weights: float
    average: float
    gradients: float
    optimizer: float
    activations: float
    workspace: float
    device: float

    @property
    def tensors(self) -> float:
        """Bytes of tensors, which torch counts as well."""
        return self.total - self.device

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(vars(self).values())

    def in_gb(self) -> dict[str, float]:
        """By purpose and in all, in GB (10^9 bytes)."""
        return {name: size / 1e9 for name, size in [*vars(self).items(), ("total", self.total)]}

    def table(self) -> str:
        """One line a purpose."""
        return "\n".join(f"{name:<12}{size:9.3f} GB" for name, size in self.in_gb().items())


@dataclass(frozen=True)
class Step:
    """What a training step is made of.

    Attributes:
        model: that is trained.
        objective: what is minimised.
        batch: makes one of so many rows, each as long as the task lets it be.
        beside: other models on the device meanwhile.
    """

    model: nn.Module
    objective: Objective
    batch: Callable[[int], Batch]
    beside: Sequence[nn.Module] = field(default_factory=tuple)


class _Rehearsal(Trainer):
    """The loop without records: it writes, evaluates and logs nothing.

    Args:
        ledger: told what the tensors that stay are for.
        is_whole: whether a batch is computed at once.
        settings, runtime, folder: as in `Trainer`.
    """

    def __init__(
        self, ledger: Ledger, is_whole: bool, settings: TrainerSettings, runtime: Runtime, folder: Path
    ) -> None:
        super().__init__(settings, runtime, folder)
        self.ledger, self.is_whole = ledger, is_whole

    def _restore(self) -> None:
        """Stand where a run stands once the optimiser and the average have their state and, if the batch is cut, the
        first micro-batches their gradients."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
            parameter.register_post_accumulate_grad_hook(self._note_gradient)
            self._note_gradient(parameter)
        self.optimizer.step()
        self.averaged.take(1, 1.0)
        state = [t for values in self.optimizer.state.values() for t in values.values() if isinstance(t, torch.Tensor)]
        self.ledger.rename(state, "optimizer")
        self.ledger.rename(self.averaged.share().values(), "average")
        if self.is_whole:
            self.model.zero_grad(set_to_none=True)
        self.ledger.forget_peak()

    def _note_gradient(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self.ledger.rename([parameter.grad], "gradients")

    def _log(self) -> None:
        pass

    def _save(self) -> None:
        pass


class _Same:
    """A stream of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def facts(self) -> dict[str, float]:
        return {}


def rehearse(ledger: Ledger, step: Step, trainer: TrainerSettings, runtime: Runtime) -> None:
    """Make a step and enter it into a ledger.

    Args:
        ledger: of the mode that is on.
        step: what is done.
        trainer: settings.
        runtime: the machine.
    """
    rows = trainer.batch_size
    micro = runtime.hardware.rows_at_once(rows)
    for model in (step.model, *step.beside):
        ledger.rename([*model.parameters(), *model.buffers()], "weights")
    settings = replace(trainer, max_steps=1, max_tokens=None, max_minutes=None, batch_size=micro, callbacks={})
    stream = _Same(step.batch(micro))
    with tempfile.TemporaryDirectory() as folder, torch.autograd.graph.saved_tensors_hooks(ledger.keep, lambda t: t):
        _Rehearsal(ledger, micro == rows, settings, runtime, Path(folder)).fit(step.model, step.objective, stream)


def device_planned(hardware: Hardware) -> Device:
    """What a run will compute on. Of a card that is not here an RTX 30 is assumed."""
    if hardware.device in ("cpu", "mps") or (hardware.device == "auto" and not torch.cuda.is_available()):
        return Device("cpu")
    if not torch.cuda.is_available():
        return Device("cuda", _ASSUMED)
    facts = torch.cuda.get_device_properties()
    return Device("cuda", (facts.major, facts.minor), facts.total_memory)


def plan_memory(
    make: Callable[[Runtime], Step], trainer: TrainerSettings, hardware: Hardware, processes: int = 1
) -> MemoryPlan:
    """The plan of a training step in each process. What compiled blocks of a decoder of ours keep is what the compiler
    answers (`kept_by_the_compiler`); other models that are compiled are taken to keep 1.7 times as much.

    Args:
        make: the step, on the machine that it is given; called where tensors have no content.
        trainer, hardware: settings; precision `auto` is planned as fp32, the larger.
        processes: that train together.
    """
    device = device_planned(hardware)
    precision = "fp32" if hardware.precision == "auto" else hardware.precision
    here = replace(hardware, device="cpu", precision=precision, compile=False, attention="sdpa", sharding="none")
    share = replace(trainer, batch_size=-(-trainer.batch_size // processes))
    on_gpu = device.type == "cuda"
    factor = _by_the_compiler(make, here, hardware, device) if on_gpu and hardware.compile else 1.0
    ledger = Ledger(512 if on_gpu else 64, factor)
    with alone(), torch.random.fork_rng(devices=[]), simulated(ledger, device):
        step = make(Runtime(here))
        if hardware.attention == "flex":
            attend_flexibly(step.model)
        rehearse(ledger, step, share, Runtime(here))
        plan = MemoryPlan(**ledger.peak, device=_CONTEXT_BYTES if on_gpu else 0.0)
        return _divided(plan, step.model, share.batch_size, hardware, processes)


def _by_the_compiler(make: Callable[[Runtime], Step], here: Hardware, hardware: Hardware, device: Device) -> float:
    """Activations of a compiled model as a multiple of those of a plain one."""
    with alone(), torch.random.fork_rng(devices=[]), simulated(Ledger(512), device):
        model = make(Runtime(here)).model
    if not isinstance(model, ModernDecoderLM):
        return _COMPILED
    return kept_by_the_compiler(model.config, hardware.compile == "whole", _COMPILED)


def _divided(plan: MemoryPlan, model: nn.Module, rows: int, hardware: Hardware, processes: int) -> MemoryPlan:
    """What a process has of a plan where weights or the optimiser's state are divided."""
    if processes == 1 or hardware.sharding == "none":
        return plan
    plan = replace(plan, optimizer=plan.optimizer / processes, average=plan.average / processes)
    if hardware.sharding == "optimizer":
        return plan
    every = float(sum(p.numel() * p.element_size() for p in model.parameters()))
    blocks: Any = getattr(model, "blocks", [])
    each = max((sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks), default=0)
    # Those around the blocks and two blocks are whole at a time, and the gradients of one; all of the gradients until
    # the last micro-batch.
    outside = every - each * len(blocks)
    gradients = plan.gradients
    if hardware.rows_at_once(rows) == rows:
        gradients = plan.gradients / processes + each
    weights = plan.weights - every * (1 - 1 / processes) + outside + 2 * each
    return replace(plan, weights=weights, gradients=gradients)
