"""Text of ids that come one at a time."""

from __future__ import annotations

from modern_llm.data.text.tokenizers import Tokenizer

_INCOMPLETE = "\ufffd"  # what stands for bytes that are no character, or not one yet


class TextStream:
    """Turns ids into pieces of text whose sum is the text of all ids.

    A character may be spread over several tokens, so the one at the end is held back while its bytes are incomplete.

    Args:
        tokenizer: of the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        # Some tokenizers write a token differently at the beginning of a text, so the last whole ones stay in front.
        self._context: list[int] = []
        self._pending: list[int] = []
        self._told = 0  # characters of the pending ids' text that are out already

    def add(self, token_id: int) -> str:
        """The text that is certain now and was not before."""
        self._pending.append(token_id)
        text = self._text()
        if not text.endswith(_INCOMPLETE):
            self._context, self._pending, piece = self._pending, [], text[self._told :]
            self._told = 0
            return piece
        # An incomplete character is one mark at the end, however many bytes it has; what stands before it is certain.
        piece = text[self._told : -1]
        self._told = len(text) - 1
        return piece

    def finish(self) -> str:
        """What is left, bytes that are no character as `\\ufffd`."""
        rest = self._text()[self._told :] if self._pending else ""
        self._context, self._pending, self._told = [], [], 0
        return rest

    def _text(self) -> str:
        """Of the pending ids, as they stand behind those before them."""
        before = self.tokenizer.decode(self._context)
        return self.tokenizer.decode([*self._context, *self._pending])[len(before) :]
