"""Finetuning a pretrained model, or a decoder of an earlier run, on inputs and answers; and measuring it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modern_llm.checks import require
from modern_llm.data.labelled import LabelledData
from modern_llm.data.rows import look_at
from modern_llm.defaults import Defaults
from modern_llm.experiment.contract import say
from modern_llm.experiment.examples import FormName, chosen_metric, require_form
from modern_llm.experiment.training import Parts, Selection, Session, TrainingTask, require_metric
from modern_llm.objectives.settings import NextToken, TextObjective
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel

if TYPE_CHECKING:
    from modern_llm.experiment.record import Measured
    from modern_llm.objectives.base import Objective
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.memory.plan import Step
    from modern_llm.training.runtime import Runtime


_DEFAULTS = Defaults("task/finetuning")


@dataclass(frozen=True, kw_only=True)
class Finetuning(TrainingTask):
    """Train on inputs and answers, choose the best checkpoint on held-out training examples, report on another split.

    Args:
        model, trainer, hardware, logger, paths, seed, suggested_steps, objective_metric: as in `TrainingTask`; an empty
            objective is the first of the data's metrics.
        data: the examples, and how they become text.
        form: `classification` (a head on the last real token), `label_words` (the label is written, and the most
            likely word counts), `answer` (free text is written); `auto`: classification for labelled data and
            decoders, label_words for labelled data and T5, else answer.
        objective: what is minimised where a decoder writes the answers.
        train: false: measure the model as it is.
        max_tokens: longest text, answer included; longer inputs are shortened, and counted.
        max_train_examples, max_evaluation_examples: samples drawn by the seed; null: all.

    Raises:
        ValueError: an impossible combination.
    """

    model: PretrainedModel | ModelFromRun
    data: LabelledData
    form: FormName = _DEFAULTS("form")
    objective: TextObjective = field(default_factory=NextToken)
    train: bool = _DEFAULTS("train")
    max_tokens: int = _DEFAULTS("max_tokens")
    max_train_examples: int | None = _DEFAULTS("max_train_examples")
    max_evaluation_examples: int | None = _DEFAULTS("max_evaluation_examples")
    suggested_steps: int = _DEFAULTS("suggested_steps")
    objective_metric: str = _DEFAULTS("objective_metric")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_form(self.form, self.data)
        object.__setattr__(self, "objective_metric", chosen_metric(self.objective_metric, self.data))
        require_metric(self, self.data.metrics, ("loss", *self.data.metrics))

    def trains(self) -> bool:
        return self.train

    def machine(self) -> Runtime:
        from modern_llm.experiment.examples import machine_for

        return machine_for(self.model, self.hardware, self.paths.mirror)

    def read(self, at: Session) -> None:
        look_at(self.data, self.paths.mirror)

    def load(self, at: Session) -> LoadedModel:
        from modern_llm.experiment.examples import load_in_form

        return load_in_form(self.model, self.data, self.form, at.runtime, self.paths.mirror, self.train)

    def parts(self, at: Session) -> Parts:
        from modern_llm.data.batches import LengthBatches
        from modern_llm.experiment.examples import form_of

        mirror, form = self.paths.mirror, form_of(at.loaded, self.data, self.max_tokens)
        train = self.data.examples("train", mirror, self.max_train_examples, self.seed)
        if self.max_train_examples is None:
            self._require_all_labels({example.label for example in train.rows})
        selection = self.data.examples("selection", mirror)
        items, held_out = form.encode(train.rows), form.encode(selection.rows)
        left_out = train.empty + len(train.rows) - len(items)
        say(
            f"train: {len(items):,} examples ({left_out} left out, {form.truncated} shortened), "
            f"{len(held_out)} more are held out to choose the best checkpoint"
        )
        identity = f"{train.fingerprint} {at.loaded.tokenizer.fingerprint}"
        stream = LengthBatches(items, self.trainer.batch_size, self.seed, form.collate, identity)
        objective = self._objective(at.loaded)
        further = None
        if self.trainer.monitor != "validation_loss":

            def scored() -> dict[str, float]:
                from modern_llm.experiment.examples import answer_examples

                device = at.runtime.device
                return answer_examples(at.loaded, form, selection.rows, at.rows, device, self.seed).metrics

            further = (self.data.metrics, scored)
        return Parts(stream, objective, Selection(at, objective, held_out, form.collate, further=further))

    def rehearsal(self, at: Session) -> Step:
        from modern_llm.data.batches import Encoded
        from modern_llm.experiment.examples import form_of
        from modern_llm.training.memory.plan import Step

        form = form_of(at.loaded, self.data, self.max_tokens)
        answer = min(self.data.max_new_tokens, form.max_tokens // 2)
        if self.data.labels:  # words, which a head stands for or which are written, with the end of text
            answer = 0 if at.loaded.labels else 1 + max(map(len, form.answers(self.data.labels)))
        item = Encoded(0, [0] * (form.max_tokens - answer), [0] * answer, 0)
        return Step(at.loaded.model, self._objective(at.loaded), lambda rows: form.collate([item] * rows))

    def measure(self, at: Session) -> Measured:
        from modern_llm.experiment.examples import answer_examples, form_of, measured_answers

        form = form_of(at.loaded, self.data, self.max_tokens)
        examples = self.data.examples("evaluation", self.paths.mirror, self.max_evaluation_examples, self.seed)
        scored = answer_examples(at.loaded, form, examples.rows, at.rows, at.runtime.device, self.seed)
        measured = measured_answers(at.folder, self.data, examples, examples.rows, scored)
        measured.protocol |= {"form": type(form).__name__, "shortened_inputs": form.truncated}
        return measured

    def _require_all_labels(self, found: set[int | None]) -> None:
        """Refuse labels that no example has: one word too many shifts none, and is never answered."""
        never = [word for number, word in enumerate(self.data.labels) if number not in found]
        require(not never, "task.data.labels", self.data.labels,
                f"names {', '.join(never)}, which no training example has", "Leave it out")  # fmt: skip

    def _objective(self, loaded: LoadedModel) -> Objective:
        from modern_llm.objectives.classification import Classification
        from modern_llm.objectives.seq2seq import Seq2Seq

        if loaded.labels or loaded.is_seq2seq:
            what = "a classifier" if loaded.labels else "an encoder-decoder"
            require(isinstance(self.objective, NextToken), "task.objective", type(self.objective).__name__,
                    f"is for decoders that write, and this is {what}",
                    "Leave it out, or use task.form=label_words with a decoder")  # fmt: skip
        if loaded.labels:
            return Classification()
        return Seq2Seq() if loaded.is_seq2seq else self.objective.build()
