"""A conversation with a causal model, whose cache is kept from turn to turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from modern_llm.data.chat import ChatWriter, Message
from modern_llm.data.text.stream import TextStream
from modern_llm.data.text.tokenizers import Tokenizer
from modern_llm.models.decoding.generation import CausalLM, stream_tokens
from modern_llm.models.decoding.sampling import Sampling


class ContextFullError(ValueError):
    """The conversation has no room for another answer."""


class Conversation:
    """Turns of a user and of the model.

    Only what is new is computed: the text that the chat template puts behind the last answer. Where a template
    rewrites earlier turns, the conversation is read anew.

    Args:
        model: anything that meets `CausalLM`.
        tokenizer: with a chat template.
        context: tokens that the model was made for; None: any number, on a bounded cache.
        sampling: how a token is chosen.
        max_new_tokens: longest answer.
        seed: of the first answer; each further one has the next.
        system: what a system turn in front says; empty: none.

    Attributes:
        ids: what the model has read and written.
        messages: the turns.
        cut_off: whether the last answer ended because there was no room, or at `max_new_tokens`.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        context: int | None,
        sampling: Sampling,
        max_new_tokens: int,
        seed: int = 0,
        system: str = "",
    ) -> None:
        self.model, self.tokenizer, self.context, self.system = model, tokenizer, context, system
        self.sampling, self.max_new_tokens, self.seed = sampling, max_new_tokens, seed
        self.writer = ChatWriter(tokenizer)
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        self._forget()
        self.cut_off = ""

    def _forget(self) -> None:
        """Let the cache go; the turns stay."""
        self.ids: list[int] = []
        self._seen = ""  # the conversation as text, up to where the last answer ends
        self._cache: Any = self.model.new_cache(1, self.context)

    def answer(self, question: str) -> Iterator[str]:
        """Ask, and get the answer piece by piece. A reader who stops early keeps what came so far as the answer.

        Raises:
            ContextFullError: there is no room for the question and an answer; the conversation is as before.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": question}]
        whole = self.writer.text(asked, answer_follows=True)
        if not whole.startswith(self._seen):  # the template rewrites what was said before
            self._forget()
        new = self.tokenizer.encode(whole[len(self._seen) :])
        # The last token that came is not in the cache yet.
        unread = self.ids[self._cache.length :] + new
        room = None if self.context is None else self.context - len(self.ids) - len(new)
        if room is not None and room < 1:
            raise ContextFullError(
                f"the context of {self.context} tokens is full: {len(self.ids)} are taken, and the question has "
                f"{len(new)}. /reset begins anew; a model with attention sinks has no such end."
            )
        self.ids += new
        limit = self.max_new_tokens if room is None else min(self.max_new_tokens, room)
        pieces, stream, ended = list[str](), TextStream(self.tokenizer), False
        device = self.model.output_head.weight.device
        tokens = stream_tokens(
            self.model,
            torch.tensor([unread], device=device),
            max_new_tokens=limit,
            sampling=self.sampling,
            seed=self.seed + len(self.messages),
            cache=self._cache,
            known=self.ids[: self._cache.length],
        )
        try:
            for token in tokens:
                self.ids.append(int(token))
                if self.ids[-1] == self.tokenizer.eos_id:
                    ended = True
                    break
                pieces.append(stream.add(self.ids[-1]))
                if pieces[-1]:
                    yield pieces[-1]
            pieces.append(stream.finish())
            if pieces[-1]:
                yield pieces[-1]
        finally:
            tokens.close()  # type: ignore[attr-defined]
            text = "".join(pieces)
            self.messages = [*asked, {"role": "assistant", "content": text}]
            end = self.tokenizer.token(self.tokenizer.eos_id) if ended else ""
            self._seen = whole + text + end
            self.cut_off = "" if ended else "context" if limit == room else "length"
