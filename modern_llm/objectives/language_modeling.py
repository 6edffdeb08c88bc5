"""Next-token prediction, on every token of packed text or on the answers of prompts alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from modern_llm.models.decoding.generation import CausalLM
from modern_llm.models.fused_loss import IGNORE_INDEX, linear_cross_entropy
from modern_llm.objectives.base import Batch, LossOutput, Objective, add_expert_losses, survey_experts


class LanguageModeling(Objective):
    """Cross-entropy of every label, plus the model's auxiliary losses (load balance and router z-loss of experts)."""

    smaller_steps = ("shorter texts, such as a smaller task.seq_len", "a smaller model")

    def count(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def tokens(self, batch: Batch) -> int:
        return int(batch["lengths"].sum()) if "lengths" in batch else batch["input_ids"].numel()

    def survey(self, model: CausalLM, micro_batches: Iterable[Batch]) -> Batch:
        return survey_experts(model, micro_batches, self._read)

    def __call__(self, model: CausalLM, batch: Batch) -> LossOutput:
        """batch: `input_ids` (B, T); `labels` (B, T), or (B, K) with `target_positions` (B, K), where they are
        predicted: the head is then computed there alone; optionally `attention_mask`, `document_ids` (B, T)."""
        states = self._read(model, batch)
        hidden = states.hidden
        if "target_positions" in batch:
            positions = batch["target_positions"][:, :, None].expand(-1, -1, hidden.shape[-1])
            hidden = hidden.gather(1, positions)  # (B, K, d)
        loss = linear_cross_entropy(hidden, model.output_head, batch["labels"])
        output = LossOutput(loss)
        if states.aux_losses:
            output.metrics["cross_entropy"] = loss
        add_expert_losses(output, states, len(batch["input_ids"]))
        return output

    def _read(self, model: CausalLM, batch: Batch) -> Any:
        known: Any = {name: batch[name] for name in ("expert_load",) if name in batch}
        return model.hidden_states(
            batch["input_ids"], batch.get("attention_mask"), document_ids=batch.get("document_ids"), **known
        )
