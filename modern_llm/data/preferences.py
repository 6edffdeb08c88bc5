"""Pairs of answers to one prompt, of which one is preferred: as rows of three texts, or as Anthropic's dialogues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modern_llm.data.batches import Batch, padded
from modern_llm.models.fused_loss import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Ids of one pair.

    Attributes:
        index: of the row in its split.
        prompt_ids: what both answers continue; not empty.
        chosen_ids, rejected_ids: the answers, end of text included; not empty.
        reference: log-probabilities of the chosen and of the rejected answer under the reference, in nats; None
            where they are not known.
    """

    index: int
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    reference: tuple[float, float] | None = None

    @property
    def length(self) -> int:
        """Tokens that are computed: the prompt once, and of each answer all but the last."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids) - 2


class PairBatch:
    """Prompt, chosen and rejected answer of a pair in one row, the answers as branches behind their shared prompt.

    Padding stands on the right; every padding token is a branch of its own, so that it is seen by nobody and stands
    right behind the prompt, inside the context.

    Args:
        fill_id: at padding.

    Returns (when called):
        `input_ids`, `branch_ids` (B, T), 0 in the prompt, 1 in the chosen and 2 in the rejected answer;
        `target_positions`, `labels` (B, 2, K); `lengths`, `sequence_ids` (B,); where they are known,
        `reference_log_probs` (B, 2) in float64.
    """

    def __init__(self, fill_id: int) -> None:
        self.fill_id = fill_id

    def __call__(self, items: Sequence[EncodedPair]) -> Batch:
        rows = [[*p.prompt_ids, *p.chosen_ids[:-1], *p.rejected_ids[:-1]] for p in items]
        input_ids = padded(rows, self.fill_id)
        B, T = input_ids.shape
        K = max(max(len(p.chosen_ids), len(p.rejected_ids)) for p in items)
        branch_ids = torch.arange(T).expand(B, T) + 3
        branch_ids = branch_ids.clone()
        positions = torch.zeros(B, 2, K, dtype=torch.long)
        labels = torch.full((B, 2, K), IGNORE_INDEX)
        for row, pair in enumerate(items):
            start = len(pair.prompt_ids)
            branch_ids[row, :start] = 0
            for branch, answer in enumerate((pair.chosen_ids, pair.rejected_ids)):
                n = len(answer)
                labels[row, branch, :n] = torch.tensor(answer)
                # The first token of either answer is predicted at the end of the prompt.
                positions[row, branch, 0] = len(pair.prompt_ids) - 1
                positions[row, branch, 1:n] = torch.arange(start, start + n - 1)
                branch_ids[row, start : start + n - 1] = branch + 1
                start += n - 1
        batch = {
            "input_ids": input_ids,
            "branch_ids": branch_ids,
            "target_positions": positions,
            "labels": labels,
            "lengths": torch.tensor([pair.length for pair in items]),
            "sequence_ids": torch.tensor([pair.index for pair in items]),
        }
        known = [pair.reference for pair in items if pair.reference is not None]
        if len(known) == len(items):
            batch["reference_log_probs"] = torch.tensor(known, dtype=torch.float64)
        return batch
