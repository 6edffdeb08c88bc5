"""Instructions and conversations: through the chat template, packed so that nothing sees its neighbour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from modern_llm.data.batches import padded
from modern_llm.data.chat import ChatWriter, EncodedConversation, Message, messages_of, with_system
from modern_llm.data.instructions.settings import InstructionData
from modern_llm.data.rows import Part, Row, content_fingerprint, require_columns
from modern_llm.models.fused_loss import IGNORE_INDEX
from modern_llm.objectives.base import Batch


class Instructions(NamedTuple):
    """A part of the data as ids.

    Attributes:
        items: the conversations.
        skipped: reason -> how many were left out.
        split: where they are from.
        fingerprint: of rows, template and tokenizer.
        content: fingerprint of the rows that are left, whatever the model.
    """

    items: list[EncodedConversation]
    skipped: dict[str, int]
    split: str
    fingerprint: str
    content: str


def conversation_of(data: InstructionData, row: Row, index: int) -> list[Message]:
    """The turns of a row, up to the assistant's last one; empty where the assistant says nothing.

    Raises:
        ValueError: as in `messages_of`.
    """
    if data.form == "chat":
        messages = messages_of(row[data.messages_column], index)
        said = bool(messages) and all(m["content"] for m in messages if m["role"] == "assistant")
        return with_system(data.system, messages) if said else []
    texts = [str(row.get(name) or "").strip() for name in (data.instruction_column, data.input_column)]
    answer = str(row[data.output_column] or "").strip()
    if not answer or not any(texts):
        return []
    instruction = "\n\n".join(text for text in texts if text)
    turns = [{"role": "user", "content": instruction}, {"role": "assistant", "content": answer}]
    return with_system(data.system, turns)


def read_instructions(
    data: InstructionData,
    writer: ChatWriter,
    part: Part,
    max_tokens: int,
    mirror: str | None,
    limit: int | None = None,
    seed: int = 0,
) -> Instructions:
    """Conversations of a part as ids. Those without an answer and those that are too long are left out, and counted.

    Args:
        data: where they are, and how they are read.
        writer: of the model's chat template.
        part, mirror, limit, seed: as in `RowSource.rows`.
        max_tokens: longest conversation.

    Raises:
        ValueError: a template that drops turns; nothing is left.
    """
    rows = data.source.rows(part, mirror, limit, seed)
    require_columns(data.source.name, rows, data.columns)
    skipped: Counter[str] = Counter()
    kept = []
    for index, row in zip(rows.indices, rows.rows, strict=True):
        messages = conversation_of(data, row, index)
        if messages:
            kept.append((index, messages))
        else:
            skipped["without an instruction or an answer"] += 1
    encoded = writer.encode([messages for _, messages in kept], [index for index, _ in kept])
    items = [item for item in encoded if item.length <= max_tokens]
    too_long = len(encoded) - len(items)
    if too_long:
        skipped[f"longer than {max_tokens} tokens"] = too_long
    if not items:
        raise ValueError(
            f"{data.source.name}, split {rows.split!r}: none of {len(rows.rows)} conversations can be learned "
            f"({dict(skipped)}). Raise task.max_tokens, or check task.data."
        )
    settings = [rows.fingerprint, repr(data), writer.template, writer.tokenizer.fingerprint, max_tokens]
    content = content_fingerprint([rows.fingerprint, [item.index for item in items]])
    return Instructions(items, dict(skipped), rows.split, content_fingerprint(settings), content)


class ConversationBatch:
    """Rows of one conversation or several, each a document of its own; the loss is on the assistant's turns alone.

    Padding stands on the right. Where every row holds one conversation, nothing behind it matters and no documents
    are given, so that the plain causal kernel serves.

    Args:
        fill_id: at padding.

    Returns (when called):
        `input_ids` (B, T); `target_positions`, `labels` (B, K), where the assistant's tokens are predicted, and those
        tokens; `document_ids` (B, T) where a row holds several; `lengths`, `sequence_ids` (B,), the first example.
    """

    def __init__(self, fill_id: int) -> None:
        self.fill_id = fill_id

    def __call__(self, rows: Sequence[Sequence[EncodedConversation]]) -> Batch:
        ids, documents, positions, labels = [], [], [], []
        for row in rows:
            ids.append([i for item in row for i in item.ids[:-1]])
            documents.append([number for number, item in enumerate(row) for _ in item.ids[:-1]])
            wanted = [
                (start + place - 1, item.ids[place])
                for start, item in zip(_starts(row), row, strict=True)
                for place in range(1, len(item.ids))
                if item.is_target[place]
            ]
            positions.append([place for place, _ in wanted])
            labels.append([token for _, token in wanted])
        batch = {
            "input_ids": padded(ids, self.fill_id),
            "target_positions": padded(positions, 0),
            "labels": padded(labels, IGNORE_INDEX),
            "lengths": torch.tensor([len(row) for row in ids]),
            "sequence_ids": torch.tensor([row[0].index for row in rows]),
        }
        if any(len(row) > 1 for row in rows):
            batch["document_ids"] = padded(documents, max(map(len, rows)))
        return batch

    def singly(self, items: Sequence[EncodedConversation]) -> Batch:
        """A batch with one conversation a row."""
        return self([[item] for item in items])


def _starts(row: Sequence[EncodedConversation]) -> list[int]:
    starts = [0]
    for item in row[:-1]:
        starts.append(starts[-1] + item.length)
    return starts
