"""Next-token prediction, on every token of packed text or on the answers of prompts alone."""

from __future__ import annotations

import torch

from modern_llm.models.fused_loss import IGNORE_INDEX, linear_cross_entropy
from modern_llm.models.generation import CausalLM
from modern_llm.objectives.base import Batch, LossOutput


class LanguageModeling:
    """Cross-entropy of every label, plus the model's auxiliary losses (load balance and router z-loss of experts).

    The auxiliary losses are means over a micro-batch's tokens and enter with the weight of its targets.
    """

    def count(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def tokens(self, batch: Batch) -> int:
        return int(batch["lengths"].sum()) if "lengths" in batch else batch["input_ids"].numel()

    def __call__(self, model: CausalLM, batch: Batch) -> LossOutput:
        """batch: `input_ids` (B, T); `labels` (B, T), or (B, K) with `target_positions` (B, K), where they are
        predicted: the head is then computed there alone; optionally `attention_mask`, `document_ids` (B, T)."""
        output = model.hidden_states(
            batch["input_ids"], batch.get("attention_mask"), document_ids=batch.get("document_ids")
        )
        hidden, labels = output.hidden, batch["labels"]
        if "target_positions" in batch:
            places = batch["target_positions"][:, :, None].expand(-1, -1, hidden.shape[-1])
            hidden = hidden.gather(1, places)  # (B, K, d)
        loss = linear_cross_entropy(hidden, model.head_weight, labels)
        count = (labels != IGNORE_INDEX).sum()
        metrics = {}
        if output.aux_losses:
            metrics["cross_entropy"] = loss.detach()
        for name, value in output.aux_losses.items():
            loss = loss + value * count
            metrics[name] = value.detach() * count
        if output.expert_load is not None:
            # 1 where every expert gets its share, E where one expert gets all.
            busiest = output.expert_load.amax(dim=1) * output.expert_load.shape[1]
            idle = (output.expert_load == 0).float().mean(dim=1)
            metrics["busiest_expert_load"] = busiest.mean() * count
            metrics["idle_experts"] = idle.mean() * count
            for layer, load in enumerate(busiest):
                metrics[f"busiest_expert_load/layer{layer}"] = load * count
        return LossOutput(loss, {name: torch.as_tensor(value) for name, value in metrics.items()})
