"""Who attends to whom: the attention probabilities of every layer and head of a causal model on one text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modern_llm.data.text.tokenizers import Tokenizer
from modern_llm.models.transformer import ModernDecoderLM


@dataclass(frozen=True)
class AttentionMaps:
    """What each token attends to.

    Attributes:
        weights: (L, H, T, S + T) fp32, of which the first S columns are learned sinks; rows sum to 1.
        n_sinks: S.
        kept_tokens: first tokens that count as sinks besides: those that a cache keeps, at least one.
    """

    weights: Tensor
    n_sinks: int
    kept_tokens: int = 1

    def sink_mass(self) -> Tensor:
        """(L, H) attention to the sinks, learned ones and first tokens, by the tokens behind them, in the mean."""
        first = self.n_sinks + self.kept_tokens
        return self.weights[:, :, self.kept_tokens :, :first].sum(-1).mean(-1)

    def entropy(self) -> Tensor:
        """(L, H) entropy of what a token attends to, in nats, in the mean over the tokens."""
        return torch.special.entr(self.weights).sum(-1).mean(-1)


@torch.no_grad()
def attention_maps(model: nn.Module, ids: Sequence[int]) -> AttentionMaps:
    """Read a text and look.

    Args:
        model: a `ModernDecoderLM`, or a decoder of transformers.
        ids: the text, at least two tokens.

    Raises:
        ValueError: a model whose attention cannot be looked at.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        input_ids = torch.tensor([list(ids)], device=device)
        if isinstance(model, ModernDecoderLM):
            return _of_our_own(model, input_ids)
        return _of_transformers(model, input_ids)
    finally:
        model.train(was_training)


def _of_our_own(model: ModernDecoderLM, input_ids: Tensor) -> AttentionMaps:
    """From the queries and keys of the modules themselves."""
    if model.config.softmax_layers < model.config.n_layers:
        key = "model.attention" if model.config.block is None else "model.block"
        raise ValueError(f"{key}: blocks without softmax attention have no maps. Choose another model.")
    found: list[Tensor] = []

    def look(module: Any, arguments: tuple[Any, ...]) -> None:
        found.append(module.weights(*arguments[:3])[0].cpu())

    blocks: Any = model.blocks
    hooks = [block.attention.register_forward_pre_hook(look) for block in blocks]
    try:
        model.hidden_states(input_ids)
    finally:
        for hook in hooks:
            hook.remove()
    weights = torch.stack(found)
    return AttentionMaps(weights, weights.shape[-1] - weights.shape[-2], max(model.config.kept_tokens, 1))


def _of_transformers(model: Any, input_ids: Tensor) -> AttentionMaps:
    """As transformers' own unfused attention gives them."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        found = model(input_ids=input_ids, output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation(before)
    if not found or any(weights is None for weights in found):
        raise ValueError(f"{model.config.model_type}: transformers gives no attention of it. Choose another model.")
    return AttentionMaps(torch.stack([weights[0].float().cpu() for weights in found]), n_sinks=0)


_SHOWN = {" ": "␣", "\n": "↵", "\t": "⇥"}


def token_labels(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Each token as a person reads it: blanks and line ends as signs; a part of a character as the tokenizer's own
    symbols, in brackets."""
    labels = []
    for token in ids:
        text = tokenizer.decode([token])
        if not text or "\ufffd" in text:
            text = f"⟨{tokenizer.token(token)}⟩"
        labels.append("".join(_SHOWN.get(character, character) for character in text))
    return labels
