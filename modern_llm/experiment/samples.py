"""Texts that a model writes for the page of its run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modern_llm.checks import require
from modern_llm.models.decoding.sampling import Sampling

if TYPE_CHECKING:
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.runtime import Runtime


@dataclass(frozen=True)
class Samples:
    """What is written.

    Args:
        prompts: one sample each.
        max_new_tokens: length of each.
        sampling: how a token is chosen.
    """

    prompts: list[str]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "task.samples.max_new_tokens", self.max_new_tokens, "must be at least 1",
                "Raise it, or use task.samples.prompts=[] for no samples")  # fmt: skip

    def continued(self, loaded: LoadedModel, runtime: Runtime, seed: int) -> list[dict[str, str]]:
        """Each prompt continued as plain text."""
        from modern_llm.models.decoding.generation import generate_text

        texts = []
        for number, prompt in enumerate(self.prompts):
            with runtime.autocast():
                (text,) = generate_text(
                    loaded.decoder,
                    loaded.tokenizer,
                    prompt,
                    max_new_tokens=self.max_new_tokens,
                    sampling=self.sampling,
                    seed=seed + number,
                )
            texts.append({"prompt": prompt, "text": text})
        return texts

    def answered(self, loaded: LoadedModel, runtime: Runtime, seed: int) -> list[dict[str, str]]:
        """Each prompt answered as the first turn of a conversation."""
        from modern_llm.data.chat import ChatWriter
        from modern_llm.models.decoding.generation import continue_ids

        writer, texts = ChatWriter(loaded.tokenizer), []
        for number, prompt in enumerate(self.prompts):
            with runtime.autocast():
                (answer,) = continue_ids(
                    loaded.decoder,
                    loaded.tokenizer,
                    [writer.prompt([{"role": "user", "content": prompt}])],
                    max_new_tokens=self.max_new_tokens,
                    sampling=self.sampling,
                    seed=seed + number,
                )
            texts.append({"prompt": prompt, "text": f" → {answer.text.strip()}"})
        return texts
