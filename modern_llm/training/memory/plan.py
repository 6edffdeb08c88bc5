"""How much memory a training run will need, before it starts. Closed forms over the configuration; no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from modern_llm.models.config import ModernLLMConfig
from modern_llm.processes import world
from modern_llm.training.settings import Hardware, TrainerSettings

_CHUNK_BYTES = 3 * 2**26  # the fused loss holds a chunk of logits, its softmax and a 16-bit copy
_CONTEXT_BYTES = 600e6  # CUDA context and kernels, which the GPU counts as used


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose at the peak of a training step, in each process.

    Attributes:
        weights: parameters in fp32, their 16-bit copies under autocast, and their average where there is one.
        gradients: in fp32, the head's gradient inside the loss included.
        optimizer: its state.
        activations: what the backward pass keeps, for one micro-batch.
        workspace: chunk of logits or capped scores of attention, whichever is larger, and the device's own overhead.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    workspace: float

    @property
    def total(self) -> float:
        """Bytes in all."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.workspace

    def table(self) -> str:
        """One line a purpose, in GB (10^9 bytes)."""
        rows = [*vars(self).items(), ("total", self.total)]
        return "\n".join(f"{name:<12}{size / 1e9:8.2f} GB" for name, size in rows)


def activation_bytes_per_token(model: ModernLLMConfig, half: bool) -> float:
    """What one block keeps for its backward pass, per token, on average over the blocks.

    Args:
        half: 16-bit autocast; the residual stream and the norms stay in fp32.
    """
    size = 2 if half else 4
    d, head = model.d_model, model.head_size
    q, kv = head * model.n_heads, head * model.n_kv_heads
    stream = 2 * 4 * d if model.norm_place != "behind" else 0  # the inputs of both norms
    if model.norm_place != "before":
        stream += 2 * (4 if model.norm.keeps_exact else size) * d  # and of those behind the branches
    normed = 2 * size * d  # the inputs of both projections
    # Queries and keys behind the rotation and values; with norms on the heads, the whole projection in front of them.
    projected = size * (2 * (q + kv) + kv if model.qk_norm else q + 2 * kv)
    attended = size * q + 4 * model.n_heads
    if model.moe is None:
        fed = model.ffn.parts * size * model.ffn_size  # gate and up; what they come to is made again
    else:
        # Each token as often as it has experts: gathered, gate and up, and the output that is weighted.
        fed = model.moe.top_k * size * (model.ffn.parts * model.expert_size + 2 * d) + 4 * 4 * model.moe.n_experts
    parts = sum(
        4 * part.kept_per_token(model.sizes, layer) + size * part.half_kept_per_token(model.sizes, layer)
        for part, layers in model.placed_parts
        for layer in layers
    )
    plain = model.plain_layers * (stream + normed + fed) + model.softmax_layers * (projected + attended)
    return (plain + parts) / model.n_layers


def plan_memory(
    model: ModernLLMConfig, seq_len: int, trainer: TrainerSettings, hardware: Hardware, processes: int = 1
) -> MemoryPlan:
    """The plan of a training step in each process.

    Args:
        model: with `vocab_size` set.
        seq_len: tokens per sequence.
        trainer, hardware: settings; precision `auto` is planned as fp32, the larger.
        processes: that train together.
    """
    half = hardware.precision in ("bf16", "fp16")
    kinds = model.parameters()
    parameters = kinds.total()
    rows = -(-trainer.batch_size // processes)
    micro = min(hardware.micro_batch_size or rows, rows)
    sharded = processes if hardware.sharding in ("optimizer", "full") else 1
    cut = processes if hardware.sharding == "full" else 1
    average = 4 if trainer.average is not None else 0
    # Of cut weights, those around the blocks and two blocks are whole at a time, and the gradients of one.
    a_block = (parameters - model.outside_blocks) / model.n_layers
    gathered = 4 * (model.outside_blocks + 2 * a_block) if cut > 1 else 0
    summed_late = cut == 1 or micro < rows  # gradients are whole until the last micro-batch
    block = activation_bytes_per_token(model, half) * micro * seq_len
    boundary = 4 * model.d_model * micro * seq_len
    blocks = block + model.n_layers * boundary if hardware.activation_checkpointing else model.n_layers * block
    head = (model.vocab_size or 0) * model.d_model
    on_gpu = hardware.device == "cuda"
    # Scores with a cap, of one layer at a time: they, their slopes and their gradients.
    scores = 4 * 4 * micro * model.n_heads * seq_len**2 if model.attention_softcap is not None else 0
    return MemoryPlan(
        weights=parameters * ((4 + average) / cut + (2 if half else 0)) + gathered,
        gradients=4 * (parameters if summed_late else parameters / cut + a_block) + 4 * head,
        optimizer=sum(trainer.optimizer.state_bytes(kind) * count for kind, count in kinds.items()) / sharded,
        activations=blocks + 4 * boundary,
        workspace=max(_CHUNK_BYTES, scores) + (_CONTEXT_BYTES if on_gpu else 0),
    )


def check_memory(model: ModernLLMConfig, seq_len: int, trainer: TrainerSettings, hardware: Hardware) -> MemoryPlan:
    """The plan, held against `hardware.memory_limit_gb`.

    Raises:
        ValueError: it does not fit; the message says what would.
    """
    processes = world().count
    plan = plan_memory(model, seq_len, trainer, hardware, processes)
    if hardware.memory_limit_gb is None or plan.total <= hardware.memory_limit_gb * 1e9:
        return plan
    ways = []
    micro = hardware.micro_batch_size or trainer.batch_size
    for checkpointing in sorted({hardware.activation_checkpointing, True}):
        for size in (2**k for k in reversed(range(micro.bit_length()))):
            changed = replace(hardware, micro_batch_size=size, activation_checkpointing=checkpointing)
            needed = plan_memory(model, seq_len, trainer, changed, processes).total
            if size <= micro and needed <= hardware.memory_limit_gb * 1e9:
                extra = (
                    " hardware.activation_checkpointing=true" * (not hardware.activation_checkpointing) * checkpointing
                )
                ways.append(f"hardware.micro_batch_size={size}{extra}")
                break
    raise ValueError(
        f"hardware.memory_limit_gb={hardware.memory_limit_gb}: the run is planned to need {plan.total / 1e9:.1f} GB.\n"
        f"{plan.table()}\n" + (f"What fits: {' | '.join(ways)}." if ways else "Use a smaller model or task.seq_len.")
    )
