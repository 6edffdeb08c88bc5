"""Conversations as text, through a model's own chat template (jinja, Hugging Face's format)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Message = dict[str, str]  # role: system, user or assistant; content


def render_chat(template: str, messages: Sequence[Message], answer_follows: bool, eos: str = "", bos: str = "") -> str:
    """The text of a conversation.

    Args:
        template: jinja, run in transformers' sandbox.
        messages: `role` and `content` of each turn.
        answer_follows: end with what stands in front of the assistant's next turn.
        eos, bos: tokens that the template may name.

    Raises:
        ValueError: the template refuses the conversation.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered: Any = render_jinja_template(
            conversations=[[dict(m) for m in messages]],
            chat_template=template,
            add_generation_prompt=answer_follows,
            eos_token=eos,
            bos_token=bos,
        )[0]
    except TemplateError as cause:
        raise ValueError(f"the chat template refuses the conversation: {cause}") from cause
    return str(rendered[0])
