"""Prompts with examples in them (Brown et al. 2020, arXiv 2005.14165)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from modern_llm.data.chat import Message, render_chat
from modern_llm.data.labelled import Example, LabelledData
from modern_llm.data.text.tokenizers import Tokenizer


class Prompt(NamedTuple):
    """What a model is to continue."""

    ids: list[int]
    shots: int  # examples in it


def draw_shots(examples: Sequence[Example], num_shots: int, n_labels: int, seed: int) -> list[Example]:
    """Examples to show, drawn by seed; with labels, as many of each as can be, in a random order.

    Args:
        examples: of the training split.
        num_shots: how many.
        n_labels: classes; 0: free text.

    Raises:
        ValueError: there are too few.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, 2]))
    pools = [[e for e in examples if e.label == label] for label in range(n_labels)] or [list(examples)]
    # Which label gets one more, where they cannot all have the same, is drawn as well.
    turns = random.permutation(len(pools))
    drawn: list[Example] = []
    for turn, label in enumerate(turns):
        wanted = num_shots // len(pools) + (turn < num_shots % len(pools))
        if wanted > len(pools[label]):
            raise ValueError(
                f"task.num_shots={num_shots}: the training split has only {len(pools[label])} examples of label "
                f"{label}. Lower it."
            )
        drawn += [pools[label][i] for i in random.choice(len(pools[label]), wanted, replace=False)]
    return [drawn[i] for i in random.permutation(len(drawn))]


class PromptWriter:
    """Instruction, examples and question as ids.

    Args:
        data: the templates.
        tokenizer: of the model.
        start_ids: what every text begins with.
        shots: examples to show.
        chat: as turns of a conversation, through the model's chat template.
        encoder: the prompt is a source for an encoder.

    Raises:
        ValueError: a chat without a template, or for an encoder-decoder.
    """

    def __init__(
        self,
        data: LabelledData,
        tokenizer: Tokenizer,
        start_ids: list[int],
        shots: Sequence[Example],
        chat: bool = False,
        encoder: bool = False,
    ) -> None:
        self.data, self.tokenizer, self.start_ids, self.shots = data, tokenizer, start_ids, list(shots)
        self.chat, self.encoder = chat, encoder
        if chat and encoder:
            raise ValueError(
                "task.chat=True: an encoder-decoder reads no conversation. Use task.chat=false, or a chat model."
            )
        if chat and tokenizer.chat_template is None:
            raise ValueError(
                "task.chat=True: the model's tokenizer has no chat template. Use task.chat=false, or a chat model."
            )

    def answer(self, text: str) -> str:
        """An answer as it follows the prompt."""
        return text if self.chat or self.encoder else f" {text}"

    def text(self, example: Example, num_shots: int) -> str:
        """The prompt for an example behind the first `num_shots` shots."""
        question = self.data.encoder_text_of if self.encoder else self.data.prompt_of
        shots = self.shots[:num_shots]
        if self.chat:
            return self._conversation(example, shots)
        separator = self.data.shot_separator
        # An encoder-decoder's source names its task itself.
        parts = [self.data.instruction] if self.data.instruction and not self.encoder else []
        parts += [f"{question(shot)} {shot.target}" for shot in shots]
        return separator.join([*parts, question(example)])

    def _conversation(self, example: Example, shots: Sequence[Example]) -> str:
        messages: list[Message] = []
        for turn in (*shots, example):
            content = self.data.prompt_of(turn)
            if not messages and self.data.instruction:
                content = f"{self.data.instruction}\n\n{content}"
            messages.append({"role": "user", "content": content})
            if turn is not example:
                messages.append({"role": "assistant", "content": turn.target})
        template, tokenizer = self.tokenizer.chat_template, self.tokenizer
        assert template is not None
        eos, bos = tokenizer.token(tokenizer.eos_id), tokenizer.token(tokenizer.bos_id)
        return render_chat(template, messages, answer_follows=True, eos=eos, bos=bos)

    def ids(self, examples: Sequence[Example], num_shots: int) -> list[list[int]]:
        """Prompts with the first `num_shots` shots, whatever their length."""
        texts = [self.text(example, num_shots) for example in examples]
        start = [] if self.chat else self.start_ids  # the template writes its own beginning
        ends = [self.tokenizer.eos_id] if self.encoder else []
        return [[*start, *ids, *ends] for ids in self.tokenizer.encode_batch(texts)]

    def prompts(self, examples: Sequence[Example], room: int | None) -> list[Prompt | None]:
        """Prompts of at most `room` ids: a longer one drops its last shots; None where the question alone is too
        long."""
        prompts: list[Prompt | None] = [None] * len(examples)
        left = list(range(len(examples)))
        for num_shots in range(len(self.shots), -1, -1):
            ids = self.ids([examples[i] for i in left], num_shots)
            fits = [room is None or len(row) <= room for row in ids]
            for i, row, fit in zip(left, ids, fits, strict=True):
                if fit:
                    prompts[i] = Prompt(row, num_shots)
            left = [i for i, fit in zip(left, fits, strict=True) if not fit]
            if not left:
                break
        return prompts
