"""A decoder of a person's own, as generation, evaluation and the objectives know decoders."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modern_llm.models.custom import CustomModel, FromScratch
from modern_llm.models.output_head import OutputHead
from modern_llm.models.transformer import ModelOutput, ModernDecoderLM


class _Text(NamedTuple):
    """One text of a batch, which the module reads alone."""

    row: int
    places: Tensor  # (n,) where its tokens stand in the row
    known: int  # of them, those at the beginning that belong to another text as well, which gives what they come to


class Reread:
    """In place of a cache: the ids that were read, which are read again.

    Attributes:
        ids, real: (B, n), False at padding.
    """

    def __init__(self, ids: Tensor, real: Tensor) -> None:
        self.ids, self.real = ids, real

    @property
    def length(self) -> int:
        """Tokens seen so far, padding included."""
        return self.ids.shape[1]

    def repeated(self, batch_size: int, max_tokens: int | None) -> Reread:
        """For `batch_size` texts that all begin with the one text held here."""
        return Reread(*(held.expand(batch_size, -1) for held in (self.ids, self.real)))

    def keep(self, rows: Tensor) -> bool:
        """Hold the texts of the rows (n,) alone, each as often as it is named; always possible here."""
        self.ids, self.real = self.ids[rows], self.real[rows]
        return True

    def make_reversible(self) -> bool:
        """From here on, let the last tokens be forgotten again; always possible here."""
        return True

    def forget(self, tokens: int) -> None:
        """Forget the last `tokens` tokens."""
        self.ids, self.real = (held[:, : self.length - tokens] for held in (self.ids, self.real))

    def extend(self, ids: Tensor, real: Tensor | None) -> None:
        """Hold ids (B, T) as well; real: False at padding."""
        real = torch.ones_like(ids, dtype=torch.bool) if real is None else real.bool()
        self.ids, self.real = torch.cat([self.ids, ids], 1), torch.cat([self.real, real], 1)


class CustomDecoder(nn.Module):
    """A module that knows only whole texts, wherever a decoder is asked for: padding, packed documents and branches are
    taken apart in front of it, and texts that begin alike are read once each.

    Args:
        config: that builds the module.

    Raises:
        ValueError: `vocab_size` is not known yet, or the module has no head as `CustomModel.build` says.
    """

    balances_experts = False

    def __init__(self, config: CustomModel) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size=None: not known yet. Call config.with_vocab_size(tokenizer size) first.")
        self.config, name = config, type(config).__name__
        self.model: Any = config.build()
        head = getattr(self.model, "head", None)
        if not isinstance(head, nn.Linear) or head.bias is not None or head.out_features < config.vocab_size:
            raise ValueError(
                f"{name}: its module needs a head, an nn.Linear without a bias to {config.vocab_size} ids or more. "
                "Name it head."
            )
        known = inspect.signature(self.model.forward).parameters
        self.takes_mask: bool = "attention_mask" in known
        if hasattr(self.model, "new_cache") and "cache" not in known:
            raise ValueError(f"{name}: its module has new_cache, but its forward takes no cache. Give it one.")

    @property
    def blocks(self) -> list[nn.Module]:
        """All but the head."""
        return [module for module in self.model.children() if module is not self.model.head]

    @property
    def output_head(self) -> OutputHead:
        """From hidden states to logits."""
        return OutputHead(self.model.head.weight)

    def new_cache(self, batch_size: int, max_tokens: int | None) -> Any:
        """The module's own, or the ids to be read again."""
        if hasattr(self.model, "new_cache"):
            return self.model.new_cache(batch_size, max_tokens)
        none = torch.zeros(batch_size, 0, dtype=torch.long, device=self.output_head.weight.device)
        return Reread(none, none.bool())

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Any | None = None,
        branch_ids: Tensor | None = None,
        branch_lengths: Tensor | None = None,
    ) -> ModelOutput:
        """Everything but the output head. Arguments as in `ModernDecoderLM.hidden_states`."""
        if isinstance(cache, Reread):
            cache.extend(input_ids, attention_mask)
            hidden = self._texts_apart(cache.ids, cache.real, None, None) if not cache.real.all() else None
            hidden = self.model(cache.ids) if hidden is None else hidden
            return ModelOutput(hidden[:, -input_ids.shape[1] :], cache=cache)  # type: ignore[arg-type]
        if cache is not None:
            padded = attention_mask is not None and not bool(attention_mask.all())
            if padded and not self.takes_mask:
                raise ValueError(
                    f"{type(self.config).__name__}: texts of several lengths need a forward that takes attention_mask "
                    "beside its cache, (B, T) 0 at padding. Add it, or leave new_cache out."
                )
            marks = {"attention_mask": attention_mask} if self.takes_mask else {}
            return ModelOutput(self.model(input_ids, cache=cache, **marks), cache=cache)
        if attention_mask is None and document_ids is None and branch_ids is None:
            return ModelOutput(self.model(input_ids))
        return ModelOutput(self._texts_apart(input_ids, attention_mask, document_ids, branch_ids))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: Any | None = None) -> ModelOutput:
        """Logits of ids (B, T)."""
        output = self.hidden_states(input_ids, attention_mask, cache=cache)
        output.logits = self.output_head.logits(output.hidden)
        return output

    def _texts_apart(
        self, ids: Tensor, mask: Tensor | None, document_ids: Tensor | None, branch_ids: Tensor | None
    ) -> Tensor:
        """(B, T, d) of texts that are read one by one, 0 at padding. Texts are padded on their right, where a causal
        module does not look."""
        texts = list(_texts(ids, mask, document_ids, branch_ids))
        longest = max(len(text.places) for text in texts)
        rows = torch.zeros(len(texts), longest, dtype=ids.dtype, device=ids.device)
        for row, text in zip(rows, texts, strict=True):
            row[: len(text.places)] = ids[text.row, text.places]
        read = self.model(rows)
        hidden = read.new_zeros(*ids.shape, read.shape[-1])
        into = torch.cat([text.row * ids.shape[1] + text.places[text.known :] for text in texts])
        found = torch.cat([r[text.known : len(text.places)] for r, text in zip(read, texts, strict=True)])
        return hidden.flatten(0, 1).index_copy(0, into, found).view_as(hidden)


def _texts(ids: Tensor, mask: Tensor | None, document_ids: Tensor | None, branch_ids: Tensor | None) -> Iterator[_Text]:
    """The texts of a batch: of each row each document, and of a document with branches its trunk with each of them."""
    every = torch.arange(ids.shape[1], device=ids.device)
    for row in range(len(ids)):
        real = torch.ones_like(every, dtype=torch.bool) if mask is None else mask[row].bool()
        documents = torch.zeros_like(every) if document_ids is None else document_ids[row]
        branches = torch.zeros_like(every) if branch_ids is None else branch_ids[row]
        for document in documents[real].unique().tolist():
            own = real & (documents == document)
            trunk = every[own & (branches == 0)]
            if len(trunk):
                yield _Text(row, trunk, 0)
            for branch in branches[own & (branches != 0)].unique().tolist():
                yield _Text(row, torch.cat([trunk, every[own & (branches == branch)]]), len(trunk))


def decoder_of(config: FromScratch) -> ModernDecoderLM | CustomDecoder:
    """The decoder that settings describe, with random weights."""
    return CustomDecoder(config) if isinstance(config, CustomModel) else ModernDecoderLM(config)
