"""A conversation with a model in the terminal, or with lines from a pipe."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from modern_llm.checks import require
from modern_llm.defaults import ROOT, Defaults
from modern_llm.experiment.contract import Paths, RunFolder, say
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.reporting.tables import visible
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    from modern_llm.evaluation.conversation import Conversation
    from modern_llm.training.runtime import Runtime

_COMMANDS = "/reset begins anew, /quit ends (so does Ctrl-D); Ctrl-C stops an answer"


_DEFAULTS = Defaults("task/chat")


@dataclass(frozen=True)
class Chat:
    """Read a line, answer it, until the input ends.

    Args:
        model, hardware, paths, seed: of the same names in the configuration.
        system: what a system turn in front of the conversation says; empty: none.
        max_new_tokens: longest answer.
        sampling: how a token is chosen.
    """

    model: PretrainedModel | ModelFromRun
    hardware: Hardware
    paths: Paths = field(default_factory=Paths)
    seed: int = ROOT("seed")
    system: str = _DEFAULTS("system")
    max_new_tokens: int = _DEFAULTS("max_new_tokens")
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, top_p=0.95))
    objective_metric: ClassVar[str] = "answers"

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "task.max_new_tokens", self.max_new_tokens, "must be at least 1", "Raise it")

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Talk, and keep what was said. Returns how many answers there were and how fast they came."""
        from modern_llm.evaluation.conversation import Conversation
        from modern_llm.experiment.loading import load_chat_model
        from modern_llm.experiment.training import tell_model
        from modern_llm.training.runtime import Runtime

        runtime = Runtime(self.hardware)
        loaded = load_chat_model(self.model, runtime, self.paths.mirror, train=False)
        tell_model(loaded, runtime, train=False)
        with runtime.autocast():  # the cache has the precision that is computed in
            talk = Conversation(
                loaded.decoder,
                loaded.tokenizer,
                None if loaded.endless else loaded.context,
                self.sampling,
                self.max_new_tokens,
                self.seed,
                self.system,
            )
        end = "without end, on a cache that stays as it is" if loaded.endless else f"{loaded.context} tokens"
        say(f"context: {end}")
        say(_COMMANDS)
        said, tokens, seconds = self._talk(talk, runtime)
        metrics: dict[str, float] = {
            "answers": sum(turn["role"] == "assistant" for turn in said),
            "tokens": tokens,
            "tokens_per_second": tokens / seconds if seconds else 0.0,
        }
        folder.write_json("conversation.json", said)
        folder.write_result(self.objective_metric, metrics, runtime=runtime.describe())
        say(f"conversation: {folder.path / 'conversation.json'}")
        return metrics

    def _talk(self, talk: Conversation, runtime: Runtime) -> tuple[list[dict[str, Any]], int, float]:
        """The loop: every turn of the sitting, tokens of answers, and seconds that they took."""
        from modern_llm.evaluation.conversation import ContextFullError

        said: list[dict[str, Any]] = []
        tokens, seconds = 0, 0.0
        while (line := _read()) is not None:
            if line == "/quit":
                break
            if line == "/reset":
                with runtime.autocast():
                    talk.reset()
                say("the conversation begins anew")
            elif line.startswith("/") and " " not in line:
                say(f"{line}: no such command. {_COMMANDS}")
            elif line:
                start = time.perf_counter()
                try:
                    with runtime.autocast():
                        for piece in (answer := talk.answer(line)):
                            sys.stdout.write(visible(piece))
                            sys.stdout.flush()
                except ContextFullError as full:
                    say(str(full))
                    continue
                except KeyboardInterrupt:
                    answer.close()  # type: ignore[attr-defined]
                print(flush=True)
                seconds += time.perf_counter() - start
                if talk.cut_off:
                    limit = "the context is full" if talk.cut_off == "context" else "task.max_new_tokens is reached"
                    say(f"[the answer is not at its end: {limit}]")
                said += talk.messages[-2:]
                tokens += len(talk.tokenizer.encode(talk.messages[-1]["content"]))
        return said, tokens, seconds


def _read() -> str | None:
    """The next line, or None at the end of the input; a person gets a prompt and can edit the line."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    with suppress(ImportError):  # not everywhere
        import readline  # noqa: F401 - gives `input` its editing
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return None
