"""A causal body with a linear head on the last real token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modern_llm.models.recomputing import HostMemory


class Classifier(nn.Module):
    """Logits of whole texts, from the last real token: the only one that has seen them whole.

    Args:
        body: meets `CausalLM`. A `HuggingFaceCausalLM` around a model for sequence classification brings that model's
            `score` along; any other body gets one.
        num_labels: classes C.

    Attributes:
        labels: their words.
    """

    def __init__(self, body: Any, labels: list[str]) -> None:
        super().__init__()
        self.body, self.labels = body, labels
        if not hasattr(getattr(body, "model", None), "score"):
            weight = body.output_head.weight
            self.score = nn.Linear(weight.shape[1], len(labels), bias=False, device=weight.device)
            nn.init.normal_(self.score.weight, std=0.02)

    @property
    def blocks(self) -> Any:
        """The body's layers."""
        return self.body.blocks

    @property
    def activation_checkpointing(self) -> int:
        """Of how many layers one is computed again in the backward pass; 0: none is."""
        return self.body.activation_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, on: int) -> None:
        self.body.activation_checkpointing = on

    @property
    def host_memory(self) -> HostMemory | None:
        """Where inputs of layers that are computed again lie until then; None: they stay."""
        return self.body.host_memory

    @host_memory.setter
    def host_memory(self, memory: HostMemory | None) -> None:
        self.body.host_memory = memory

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, C) logits of texts (B, T) padded on either side; attention_mask (B, T) is 0 at padding."""
        if attention_mask is None:
            last = torch.full((len(input_ids),), input_ids.shape[1] - 1, device=input_ids.device)
        else:
            index = torch.arange(input_ids.shape[1], device=input_ids.device)
            last = (index * attention_mask.bool()).amax(dim=1)
        return self._classify(self.body.hidden_states(input_ids, attention_mask).hidden, last)

    def logits(self, input_ids: Tensor, last: Tensor) -> Tensor:
        """(B, C) logits of texts (B, T) padded on the right, whose last real tokens stand at `last` (B,)."""
        return self._classify(self.body.hidden_states(input_ids).hidden, last)

    def branch_logits(self, input_ids: Tensor, branch_ids: Tensor, last: Tensor) -> Tensor:
        """(B, A, C) logits of the A texts of each row (B, T): branches behind one trunk, none of which sees another,
        whose last tokens stand at `last` (B, A). branch_ids (B, T) as in `hidden_states` of the body."""
        return self._classify(self.body.hidden_states(input_ids, branch_ids=branch_ids).hidden, last)

    def _classify(self, hidden: Tensor, last: Tensor) -> Tensor:
        """Logits (B, …, C) at the places `last` (B, …)."""
        # Adapters replace the head inside the Hugging Face model, so it is looked up at each call.
        score = self.score if "score" in self._modules else self.body.model.score
        rows = torch.arange(len(hidden), device=hidden.device).view(-1, *[1] * (last.dim() - 1))
        pooled = hidden[rows, last]  # (B, …, d)
        return score(pooled.to(next(score.parameters()).dtype))
