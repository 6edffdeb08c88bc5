"""The verifier: is this answer right? A small bidirectional encoder made of the decoder's blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.attention.plan import plan_encoding
from modern_llm.models.attention.rotary import Rotary
from modern_llm.models.block import DecoderBlock
from modern_llm.models.initialisation.draw import draw_weights
from modern_llm.models.kernels import compute_dtype
from modern_llm.models.linear import Linear
from modern_llm.models.norm import RMSNorm
from modern_llm.models.parts.part import Carried
from modern_llm.models.recomputing import HostMemory, recomputed
from modern_llm.models.verifier_config import VerifierConfig


class VerifierModel(nn.Module):
    """Problem and answer as one text, read in both directions, pooled, and given to a linear head (the verifier of
    Cobbe et al. 2021, arXiv 2110.14168, with the judgement on the whole answer).

    Args:
        config: hyper-parameters, with `vocab_size` set.
        labels: words of the C classes.

    Raises:
        ValueError: `config.vocab_size` is None.
    """

    def __init__(self, config: VerifierConfig, labels: list[str]) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size=None: not known yet. Call config.with_vocab_size(tokenizer size) first.")
        self.config, self.labels = config, labels
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(config.vocab_size, config.d_model), freeze=False)
        self.rotary = Rotary(config.rope, config.blocks.head_size, config.max_seq_len)
        self.blocks = nn.ModuleList(DecoderBlock(config.blocks, layer) for layer in range(config.n_layers))
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        self.score = Linear(config.d_model, len(labels), bias=False)
        self.activation_checkpointing = False
        self.host_memory: HostMemory | None = None
        draw_weights(self, config.init, config.n_layers)

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, d_model) after the final norm, for texts (B, T) padded on either side; attention_mask (B, T) is 0 at
        padding, whose own states mean nothing."""
        plan = plan_encoding(self.rotary, input_ids.shape[1], attention_mask, compute_dtype(self.score.weight))
        x = F.dropout(self.embedding(input_ids), self.config.dropout, self.training)  # (B, T, d_model)
        carried: Carried = {"input_ids": input_ids, "embedded": x, "before": None}
        for layer, block in enumerate(self.blocks):
            every = int(self.activation_checkpointing)
            if every and layer % every == 0 and self.training:
                x, _, carried = recomputed(block, x, plan, carried, memory=self.host_memory)
            else:
                x, _, carried = block(x, plan, carried)
        return self.final_norm(x)

    def pooled(self, hidden: Tensor, last: Tensor) -> Tensor:
        """(B, d_model) of states (B, T, d_model) of texts whose last real tokens stand at `last` (B,)."""
        if self.config.pooling == "first":
            return hidden[:, 0]
        real = _real(hidden.shape[1], last)[:, :, None].to(hidden.dtype)  # (B, T, 1)
        return (hidden * real).sum(1) / real.sum(1)

    def logits(self, input_ids: Tensor, last: Tensor) -> Tensor:
        """(B, C) logits of texts (B, T) padded on the right, whose last real tokens stand at `last` (B,)."""
        hidden = self.hidden_states(input_ids, _real(input_ids.shape[1], last))
        return self.score(self.pooled(hidden, last))


def _real(tokens: int, last: Tensor) -> Tensor:
    """(B, T) True up to and with `last` (B,)."""
    return torch.arange(tokens, device=last.device) <= last[:, None]
