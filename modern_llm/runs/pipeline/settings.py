"""What is measured of every policy of a pipeline, and on what. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from modern_llm.checks import require
from modern_llm.data.text.sources import Source
from modern_llm.defaults import Defaults
from modern_llm.evaluation.protocol import PerplexityProtocol
from modern_llm.experiment.judges import require_judge
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.tasks.best_of_n import BestOfN
from modern_llm.tasks.dpo import DPO
from modern_llm.tasks.rl import RL
from modern_llm.tasks.sft import SFT

_DEFAULTS = Defaults("task/pipeline", "measures")


@dataclass(frozen=True)
class Measures:
    """What is measured of every policy.

    Args:
        prompts: answered by every policy, side by side on the page.
        max_new_tokens: of an answer.
        perplexity_tokens: of the text, from its beginning; null: all.
        max_conversations, max_pairs, max_problems: of the held-out parts; null: all.
        duels: held-out prompts to which the answers of two policies are compared.
        judge: folder of a run of task=reward_model or task=verifier that compares them; null: the pipeline's own
            reward_model stage, or else none. Prompts that it was trained or chosen on are left out.
    """

    prompts: list[str] = _DEFAULTS("prompts")
    max_new_tokens: int = _DEFAULTS("max_new_tokens")
    perplexity_tokens: int | None = _DEFAULTS("perplexity_tokens")
    max_conversations: int | None = _DEFAULTS("max_conversations")
    max_pairs: int | None = _DEFAULTS("max_pairs")
    max_problems: int | None = _DEFAULTS("max_problems")
    duels: int = _DEFAULTS("duels")
    judge: str | None = _DEFAULTS("judge")

    def __post_init__(self) -> None:
        for key in ("max_new_tokens", "perplexity_tokens", "max_conversations", "max_pairs", "max_problems", "duels"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"task.measures.{key}", value, "must be at least 1", "Raise it")
        if self.judge is not None:
            require_judge("task.measures.judge", self.judge, ", or null for none")


@dataclass(frozen=True)
class StageSettings:
    """On what the policies are measured.

    Args:
        text, protocol: of the perplexity.
        sft: whose held-out conversations are scored; None: none are.
        dpo: whose held-out pairs are scored; None: none are.
        asked: whose held-out problems are put to every policy; None: none are.
        judge: folder of the run whose verifier or reward model compares answers; None: there is none.
    """

    text: Source
    protocol: PerplexityProtocol
    sft: SFT | None
    dpo: DPO | None
    asked: RL | BestOfN | None = None
    judge: str | None = None


@dataclass(frozen=True)
class Policy:
    """A policy of the pipeline.

    Args:
        choice: its model.
        before: name of the policy that it was trained from; None: of the first one.
        control_of: name of the policy that it is a control of; None: it is none.
    """

    choice: PretrainedModel | ModelFromRun
    before: str | None = None
    control_of: str | None = None
