"""A reward model: trained on preferences, it gives an answer a number that tells how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modern_llm.checks import require
from modern_llm.data.preferences.settings import PreferenceData
from modern_llm.data.rows import PARTS
from modern_llm.defaults import Defaults
from modern_llm.experiment.conversations import ConversationTask
from modern_llm.experiment.judges import REWARD_FILE, REWARD_LABELS
from modern_llm.experiment.training import Parts, Selection, Session, require_metric, tell_skipped
from modern_llm.tasks.dpo import longest_pair, worst_pairs

if TYPE_CHECKING:
    from modern_llm.experiment.record import Measured
    from modern_llm.objectives.reward import BradleyTerry
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.memory.plan import Step

_MEASURED = ("evaluation_preference_accuracy", "evaluation_reward_margin", "evaluation_loss")
_WORST = 50

_DEFAULTS = Defaults("task/reward_model")


@dataclass(frozen=True, kw_only=True)
class RewardModel(ConversationTask):
    """Train a scalar head on a body to order pairs of answers, choose the best checkpoint on held-out pairs, report on
    others.

    Args:
        data: the pairs; the others as in `ConversationTask`.
        margin, centering: of the loss, as in `objectives.reward.BradleyTerry`.

    Raises:
        ValueError: an impossible combination.
    """

    data: PreferenceData
    margin: float = _DEFAULTS("margin")
    centering: float = _DEFAULTS("centering")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("margin", "centering"):
            value = getattr(self, key)
            require(value >= 0, f"task.{key}", value, "must not be negative", "Use 0 for none")
        require_metric(self, _MEASURED, ("loss", "preference_accuracy", "reward_margin"))

    def load(self, at: Session) -> LoadedModel:
        from modern_llm.experiment.loading import load_chat_model

        return load_chat_model(self.model, at.runtime, self.paths.mirror, train=True, labels=REWARD_LABELS)

    def parts(self, at: Session) -> Parts:
        from modern_llm.data.batches import LengthBatches
        from modern_llm.data.preferences.read import RewardBatch, read_preferences

        writer, room = self.writer(at)
        at.data = {}
        for part in PARTS:
            # One token less: an answer's last token, which a language model only writes, is read here.
            limit, mirror = self.limits.get(part), self.paths.mirror
            found = read_preferences(self.data, writer, part, room - 1, mirror, limit, self.seed)
            tell_skipped(part, len(found.pairs), found.skipped)
            at.data[part] = found
        train, collate = at.data["train"], RewardBatch(at.loaded.tokenizer.eos_id)
        stream = LengthBatches(train.pairs, self.trainer.batch_size, self.seed, collate, train.fingerprint)
        objective = self._objective()
        return Parts(stream, objective, Selection(at, objective, at.data["selection"].pairs, collate))

    def rehearsal(self, at: Session) -> Step:
        from modern_llm.data.preferences.read import RewardBatch
        from modern_llm.training.memory.plan import Step

        collate, pair = RewardBatch(at.loaded.tokenizer.eos_id), longest_pair(self.writer(at)[1] - 1)
        return Step(at.loaded.model, self._objective(), lambda rows: collate([pair] * rows))

    def measure(self, at: Session) -> Measured:
        from modern_llm.evaluation.rewards import pair_rewards, score_rewards
        from modern_llm.experiment.record import Measured, evaluated_on
        from modern_llm.pretrained.classifier import Classifier

        train, evaluation, model = at.data["train"], at.data["evaluation"], at.loaded.classifier
        assert isinstance(model, Classifier)
        pairs = evaluation.pairs
        rewards = pair_rewards(model, pairs, at.rows, at.runtime.device)
        measured = score_rewards(self._objective(), rewards, self.seed)
        worst = worst_pairs(pairs, rewards[:, 0] - rewards[:, 1], at.loaded.tokenizer)
        at.folder.write_lines("errors.jsonl", worst)
        assert at.checkpoint is not None
        facts = {
            "checkpoint": at.checkpoint.relative_to(at.folder.path).as_posix(),
            "max_tokens": self.writer(at)[1],
            "system": self.data.system,
            "known_problems": sorted(self.known_problems()),
        }
        at.folder.write_json(REWARD_FILE, facts)
        return Measured(
            {f"evaluation_{name}": value for name, value in measured.items()},
            _MEASURED[:2],
            {"": evaluated_on(evaluation.content, len(pairs))},
            {
                "data": self.data.source.name,
                "train_pairs": len(train.pairs),
                "train_fingerprint": train.fingerprint,
                "left_out_of_training": train.skipped,
                "evaluation_split": evaluation.split,
                "left_out_of_evaluation": evaluation.skipped,
            },
            {"errors": worst[:_WORST]},
        )

    def _objective(self) -> BradleyTerry:
        from modern_llm.objectives.reward import BradleyTerry

        return BradleyTerry(self.margin, self.centering)

    def known_problems(self) -> frozenset[str]:
        """`problem_id` of the user's last turns in the parts that the model and its checkpoint were chosen by."""
        from modern_llm.data.preferences.read import prompt_ids

        return prompt_ids(self.data, PARTS[:2], self.paths.mirror, self.limits, self.seed)
