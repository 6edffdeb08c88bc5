"""Learning from preferences: DPO and its kin on pairs of answers, against the model as it was where the loss asks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modern_llm.data.preferences.settings import PreferenceData
from modern_llm.data.rows import PARTS
from modern_llm.defaults import Defaults
from modern_llm.experiment.contract import progress_of
from modern_llm.experiment.conversations import ConversationTask
from modern_llm.experiment.samples import Samples
from modern_llm.experiment.training import Parts, Selection, Session, require_metric, tell_skipped
from modern_llm.objectives.preference_losses import PreferenceLoss, SigmoidDPO
from modern_llm.processes import after_first

if TYPE_CHECKING:
    import numpy as np

    from modern_llm.data.preferences.read import EncodedPair
    from modern_llm.data.text.tokenizers import Tokenizer
    from modern_llm.experiment.record import Measured
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.memory.plan import Step

_MEASURED = ("preference_accuracy", "reward_margin", "log_prob_accuracy", "loss", "kl_estimate")
_WORST = 50


_DEFAULTS = Defaults("task/dpo")


@dataclass(frozen=True, kw_only=True)
class DPO(ConversationTask):
    """Train a policy on preferences, choose the best checkpoint on held-out pairs, report on others.

    The reference is the model as it was loaded. Its log-probabilities are computed once, with adapters switched off,
    and kept in `paths.cache` by content; there is no second model in memory. The policy has no dropout, so that at the
    start it is the reference.

    Args:
        data: the pairs; the others as in `ConversationTask`.
        loss: what is minimised, one of `objectives/preference_losses.py`.
        samples: prompts that the trained model answers.

    Raises:
        ValueError: an impossible combination.
    """

    data: PreferenceData
    loss: PreferenceLoss = field(default_factory=SigmoidDPO)
    samples: Samples

    def __post_init__(self) -> None:
        super().__post_init__()
        measured = [name for name in _MEASURED if self.loss.needs_reference or name != "kl_estimate"]
        require_metric(self, [f"evaluation_{n}" for n in measured], ("loss", "preference_accuracy", "reward_margin"))

    def load(self, at: Session) -> LoadedModel:
        from modern_llm.training.dropout import switch_off_dropout

        loaded = super().load(at)
        switch_off_dropout(loaded.model)
        return loaded

    def parts(self, at: Session) -> Parts:
        from modern_llm.data.batches import LengthBatches
        from modern_llm.data.preferences.read import PairBatch, read_preferences, with_mismatched
        from modern_llm.objectives.preference import PreferenceOptimisation

        writer, room = self.writer(at)
        at.data = {}
        for part in PARTS:
            found = read_preferences(self.data, writer, part, room, self.paths.mirror, self.limits.get(part), self.seed)
            tell_skipped(part, len(found.pairs), found.skipped)
            if self.loss.needs_mismatched:
                found = found._replace(pairs=with_mismatched(found.pairs, room, self.seed))
            at.data[part] = found
        # All before the first step: afterwards the model without adapters may be another one.
        known = self._with_reference(at, [at.data[part].pairs for part in PARTS])
        at.data = {part: at.data[part]._replace(pairs=pairs) for part, pairs in zip(PARTS, known, strict=True)}
        train, collate = at.data["train"], PairBatch(at.loaded.tokenizer.eos_id)
        stream = LengthBatches(train.pairs, self.trainer.batch_size, self.seed, collate, train.fingerprint)
        objective = PreferenceOptimisation(self.loss)
        return Parts(stream, objective, Selection(at, objective, at.data["selection"].pairs, collate))

    def rehearsal(self, at: Session) -> Step:
        from modern_llm.data.preferences.read import PairBatch
        from modern_llm.objectives.preference import PreferenceOptimisation
        from modern_llm.training.memory.plan import Step

        loss, collate = self.loss, PairBatch(at.loaded.tokenizer.eos_id)
        pair = longest_pair(self.writer(at)[1], loss.needs_reference, loss.needs_mismatched)
        return Step(at.loaded.model, PreferenceOptimisation(loss), lambda rows: collate([pair] * rows))

    def measure(self, at: Session) -> Measured:
        from modern_llm.evaluation.pairs import pair_log_probs, score_pairs
        from modern_llm.experiment.record import Measured, evaluated_on

        train, evaluation = at.data["train"], at.data["evaluation"]
        pairs = evaluation.pairs
        log_probs = pair_log_probs(at.loaded.decoder, pairs, at.rows, at.runtime.device)
        measured, margins = score_pairs(self.loss, pairs, log_probs, self.seed)
        metrics = {f"evaluation_{name}": value for name, value in measured.items()}
        if self.loss.needs_reference:
            ahead = [(pair.reference or (0.0, 0.0))[:2] for pair in pairs]
            metrics["reference_log_prob_accuracy"] = sum((c > r) + 0.5 * (c == r) for c, r in ahead) / len(ahead)
        worst = worst_pairs(pairs, margins, at.loaded.tokenizer)
        at.folder.write_lines("errors.jsonl", worst)
        return Measured(
            metrics,
            [f"evaluation_{name}" for name in _MEASURED[:2]],
            {"": evaluated_on(evaluation.content, len(pairs))},
            {
                "data": self.data.source.name,
                "train_pairs": len(train.pairs),
                "train_fingerprint": train.fingerprint,
                "left_out_of_training": train.skipped,
                "evaluation_split": evaluation.split,
                "left_out_of_evaluation": evaluation.skipped,
            },
            {"samples": self.samples.answered(at.loaded, at.runtime, self.seed), "errors": worst[:_WORST]},
        )

    def _with_reference(self, at: Session, parts: list[list[EncodedPair]]) -> list[list[EncodedPair]]:
        """The parts with the log-probabilities of the model as it was loaded, where the loss asks for them."""
        from modern_llm.evaluation.pairs import with_reference

        if not self.loss.needs_reference:
            return parts
        weights, runtime, tell = at.loaded.weights_hash(), at.runtime, progress_of("log-probabilities of the reference")
        with at.loaded.untrained(), runtime.autocast():
            reference, cache = at.loaded.decoder, self.paths.cache_folder

            def found() -> list[list[EncodedPair]]:
                return [
                    with_reference(pairs, reference, weights, runtime.precision, at.rows, runtime.device, cache, tell)
                    for pairs in parts
                ]

            return after_first(found)


def longest_pair(room: int, reference: bool = False, mismatched: bool = False) -> EncodedPair:
    """The longest that so many tokens let a pair be: the shortest prompt, and answers that fill the rest.

    Args:
        room: tokens of a prompt with an answer.
        reference, mismatched: whether there are log-probabilities, and a third answer.
    """
    from modern_llm.data.preferences.read import EncodedPair

    answer, answers = [0] * room, 3 if mismatched else 2
    return EncodedPair(0, [0], answer, answer, (0.0,) * answers if reference else None, answer if mismatched else None)


def worst_pairs(pairs: list[EncodedPair], margins: np.ndarray, tokenizer: Tokenizer) -> list[dict[str, object]]:
    """Pairs whose rejected answer has the larger reward, the largest first, as text."""
    wrong = sorted((float(margin), i) for i, margin in enumerate(margins) if margin < 0)
    return [
        {
            "index": pairs[i].index,
            "input": tokenizer.decode(pairs[i].prompt_ids),
            "reference": tokenizer.decode(pairs[i].chosen_ids),
            "prediction": tokenizer.decode(pairs[i].rejected_ids),
            "detail": f"margin {margin:.3f}",
        }
        for margin, i in wrong
    ]
