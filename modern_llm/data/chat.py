"""Conversations as text, through a model's own chat template (jinja, Hugging Face's format)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from modern_llm.data.bounded import bounded
from modern_llm.data.text.tokenizers import Tokenizer

# What a conversation may take to be written: a template may come from anyone.
_SECONDS, _BYTES = 5.0, 500 * 10**6
Message = dict[str, str]  # role: system, user or assistant; content
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def messages_of(turns: Sequence[Mapping[str, Any]] | None, index: int) -> list[Message]:
    """Turns with `role` and `content`, or `from` and `value`, as messages up to the assistant's last one; empty where
    the assistant has none.

    Args:
        turns: in their order.
        index: of the example, for messages.

    Raises:
        ValueError: a turn without a role that is known; the message names the example.
    """
    messages: list[Message] = []
    for turn in turns or []:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role not in _ROLES or content is None:
            raise ValueError(
                f"example {index}: a turn {str(turn)[:80]!r} has no content, or a role that is none of "
                f"{', '.join(_ROLES)}. Mend it, or leave it out."
            )
        messages.append({"role": _ROLES[role], "content": str(content).strip()})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages


def with_system(system: str, messages: list[Message]) -> list[Message]:
    """A conversation behind a system turn, where there is a text for one and the conversation has none."""
    has_one = bool(messages) and messages[0]["role"] == "system"
    return messages if not system or has_one else [{"role": "system", "content": system}, *messages]


def render_chat(template: str, messages: Sequence[Message], answer_follows: bool, eos: str = "", bos: str = "") -> str:
    """The text of a conversation.

    Args:
        template: jinja, run in transformers' sandbox, with bounds on its time and memory.
        messages: `role` and `content` of each turn.
        answer_follows: end with what stands in front of the assistant's next turn.
        eos, bos: tokens that the template may name.

    Raises:
        ValueError: the template refuses the conversation, or fails on it.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    require_no_powers(template)
    try:
        with bounded(_SECONDS, _BYTES):
            rendered: Any = render_jinja_template(
                conversations=[[dict(m) for m in messages]],
                chat_template=template,
                add_generation_prompt=answer_follows,
                eos_token=eos,
                bos_token=bos,
            )[0]
    except Exception as cause:  # whatever a template can make fail
        why = "it asks for too much memory" if isinstance(cause, MemoryError) else str(cause)
        raise ValueError(f"the chat template refuses the conversation: {why}") from cause
    return str(rendered[0])


@lru_cache
def require_no_powers(template: str) -> None:
    """Refuse a template with powers, which no conversation needs: one of large numbers cannot be stopped once it has
    begun.

    Raises:
        ValueError: it has one, or is no template.
    """
    from jinja2 import TemplateError
    from jinja2.nodes import Pow
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        # To compile it would be to compute what is constant in it.
        tree = _compile_jinja_template("").environment.parse(template)
        powers = next(tree.find_all(Pow), None)
    except (TemplateError, RecursionError) as cause:
        raise ValueError(f"the chat template is none: {cause}") from cause
    if powers is not None:
        raise ValueError("the chat template computes a power, which no conversation needs. Use another template.")


# For models that have learned no chat yet. It begins like every text of the model, and the assistant's turns end in
# the end of text, so that a model learns to stop.
DEFAULT_TEMPLATE = (
    "{{ bos_token or eos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def with_chat(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with its own chat template, or with the default one, which is then saved with it."""
    return tokenizer if tokenizer.chat_template is not None else tokenizer.with_chat_template(DEFAULT_TEMPLATE)


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """Ids of a conversation.

    Attributes:
        index: of the example in its split.
        ids: of the whole text.
        is_target: of each id, whether the model learns to write it: the assistant's turns, ends included.
    """

    index: int
    ids: list[int]
    is_target: list[bool]

    @property
    def length(self) -> int:
        """Tokens that are computed: all but the last."""
        return len(self.ids) - 1

    @property
    def answer_start(self) -> int:
        """Where the assistant's last turn begins."""
        return len(self.ids) - self.is_target[::-1].index(False)


class ChatWriter:
    """Conversations as ids, in training and at inference alike: a turn is told apart from what stands before it where
    the assistant would begin to write.

    Args:
        tokenizer: with a chat template.

    Raises:
        ValueError: without one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template. Use with_chat(tokenizer), or a chat model.")
        self.tokenizer, self.template = tokenizer, tokenizer.chat_template
        self._ends = {"eos": tokenizer.token(tokenizer.eos_id), "bos": tokenizer.token(tokenizer.bos_id)}

    def text(self, messages: Sequence[Message], answer_follows: bool) -> str:
        """The conversation through the template."""
        return render_chat(self.template, messages, answer_follows, **self._ends)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation that the assistant is to continue."""
        return self.tokenizer.encode(self.text(messages, answer_follows=True))

    def turns(self, messages: Sequence[Message], index: int) -> list[tuple[str, str]]:
        """Text in front of each of the assistant's turns, since the turn before, and the turn itself.

        Args:
            messages: the last one is the assistant's.
            index: of the example, for messages.

        Raises:
            ValueError: the template drops or rewrites a turn.
        """
        parts, done, seen = [], "", 0
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.text(messages[:k], answer_follows=True)
            after = self.text(messages[: k + 1], answer_follows=False)
            whole = before.startswith(done) and after.startswith(before)
            kept = whole and message["content"].strip() in after[len(before) :]
            if not kept or any(m["content"].strip() not in before[len(done) :] for m in messages[seen:k]):
                raise ValueError(
                    f"example {index}: the chat template drops or rewrites a turn before or at turn {k + 1} "
                    f"({message['role']}: {message['content'][:40]!r}), so that the model would learn another "
                    "conversation than the one given. Use a template that keeps every turn, or leave the example out."
                )
            parts.append((before[len(done) :], after[len(before) :]))
            done, seen = after, k + 1
        return parts

    def encode(self, conversations: Sequence[Sequence[Message]], indices: Sequence[int]) -> list[EncodedConversation]:
        """Ids of conversations that end in a turn of the assistant. What a template writes behind the end of text,
        such as a line break, is read and not learned; where it writes no end of text, one is added at the very end.

        Raises:
            ValueError: as in `turns`.
        """
        turns = [self.turns(m, i) for m, i in zip(conversations, indices, strict=True)]
        pieces = iter(self.tokenizer.encode_batch([text for parts in turns for turn in parts for text in turn]))
        encoded, eos = [], self.tokenizer.eos_id
        for index, parts in zip(indices, turns, strict=True):
            ids: list[int] = []
            is_target: list[bool] = []
            for number in range(len(parts)):
                prompt, answer = next(pieces), next(pieces)
                if number == len(parts) - 1 and eos not in answer:
                    answer = [*answer, eos]
                learned = len(answer) - answer[::-1].index(eos) if eos in answer else len(answer)
                ids += prompt + answer
                is_target += [False] * len(prompt) + [True] * learned + [False] * (len(answer) - learned)
            last = len(ids) - is_target[::-1].index(True)  # nothing is learned behind it
            encoded.append(EncodedConversation(index, ids[:last], is_target[:last]))
        return encoded
