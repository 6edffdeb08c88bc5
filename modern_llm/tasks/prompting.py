"""Zero- and few-shot prompting: how well a model does without training, by the metrics of the finetuned ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.labelled import Example, LabelledData
from modern_llm.data.rows import look_at
from modern_llm.defaults import ROOT, Defaults
from modern_llm.experiment.contract import Paths, RunFolder, progress_of, say
from modern_llm.experiment.examples import chosen_metric, require_form
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from modern_llm.data.shots import Prompt, PromptWriter
    from modern_llm.evaluation.likelihood import BranchingCausalLM
    from modern_llm.evaluation.metrics.scoring import Scored
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.pretrained.seq2seq import HuggingFaceSeq2Seq


_DEFAULTS = Defaults("task/prompting")


@dataclass(frozen=True)
class Prompting:
    """Ask a model, with or without examples in the prompt. Labels and choices are ranked by the likelihood of their
    words; free text is generated greedily.

    Args:
        model, hardware, paths, seed: of the same names in the configuration.
        data: what is asked, and how it becomes text.
        num_shots: examples in the prompt, drawn by the seed from the training split; as many of each label.
        calibrate: divide each label's likelihood by the one it has behind inputs without content (Zhao et al. 2021,
            arXiv 2102.09690, eq. 1 with a diagonal W).
        chat: examples and question are turns of a conversation, through the model's chat template; a turn ends by
            itself, so stop strings do not count.
        max_tokens: longest prompt with its answer; null: the model's context. Longer ones drop shots.
        max_evaluation_examples: a sample drawn by the seed; null: all.
        objective_metric: final metric that a sweep optimises; empty: the first of the data's.

    Raises:
        ValueError: an impossible combination.
    """

    model: PretrainedModel | ModelFromRun
    hardware: Hardware
    data: LabelledData
    paths: Paths = field(default_factory=Paths)
    seed: int = ROOT("seed")
    num_shots: int = _DEFAULTS("num_shots")
    calibrate: bool = _DEFAULTS("calibrate")
    chat: bool = _DEFAULTS("chat")
    max_tokens: int | None = _DEFAULTS("max_tokens")
    max_evaluation_examples: int | None = _DEFAULTS("max_evaluation_examples")
    objective_metric: str = _DEFAULTS("objective_metric")

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "must not be negative", "Use 0 or more")
        require_form("auto", self.data)
        require(self.num_shots >= 0, "task.num_shots", self.num_shots, "must not be negative", "Use 0 for none")
        require(not self.calibrate or bool(self.data.labels), "task.calibrate", self.calibrate,
                "needs data with labels", "Use task.calibrate=false")  # fmt: skip
        require(not self.calibrate or bool(self.data.content_free), "task.data.content_free",
                self.data.content_free, "is empty, and task.calibrate needs inputs without content",
                "Use ['N/A', '[MASK]', '']")  # fmt: skip
        for key in ("max_tokens", "max_evaluation_examples"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"task.{key}", value, "must be at least 1", "Raise it, or use null")
        object.__setattr__(self, "objective_metric", chosen_metric(self.objective_metric, self.data))

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Ask, score and report. Returns the final metrics."""
        import time

        import torch

        from modern_llm.data.shots import PromptWriter, draw_shots
        from modern_llm.experiment.examples import load_in_form, machine_for, measured_answers
        from modern_llm.experiment.record import conclude
        from modern_llm.experiment.training import tell_model

        torch.manual_seed(self.seed)
        mirror, data = self.paths.mirror, self.data
        look_at(data, mirror)
        runtime = machine_for(self.model, self.hardware, mirror)
        loaded = load_in_form(self.model, data, "label_words", runtime, mirror, train=False)
        loaded.model.eval()
        tell_model(loaded, runtime, train=False)
        examples = data.examples("evaluation", mirror, self.max_evaluation_examples, self.seed)
        shots: list[Example] = []
        if self.num_shots:
            train = data.examples("train", mirror)
            shots = draw_shots(train.rows, self.num_shots, len(data.labels), self.seed)
        writer = PromptWriter(data, loaded.tokenizer, loaded.start_ids, shots, self.chat, encoder=loaded.is_seq2seq)
        rows, prompts = self._prompts(writer, loaded, examples.rows)
        say(f"{data.name}, {examples.split}: {len(rows)} questions, {self.num_shots} shots")
        start = time.perf_counter()
        with runtime.autocast():
            scored = self._ask(writer, loaded, rows, prompts)
        seconds = time.perf_counter() - start
        kept = Counter(prompt.shots for prompt in prompts)
        measured = measured_answers(folder, data, examples, rows, scored)
        measured.protocol |= {
            "num_shots": self.num_shots,
            "shots_kept": {str(n): count for n, count in sorted(kept.items())},
            "shot_rows": [shot.index for shot in shots],
            "left_out_questions": len(examples.rows) - len(rows),
            "base_fingerprint": loaded.fingerprint,
            "first_prompt": loaded.tokenizer.decode(prompts[0].ids),
        }
        measured.metrics |= {
            "num_shots": self.num_shots,
            "fewest_shots": min(kept),
            "seconds": seconds,
            "questions_per_second": len(rows) / seconds,
            "parameters": loaded.parameter_counts()[0],
            "peak_memory_gb": runtime.peak_memory_gb(),
        }
        return conclude(folder, runtime, self.objective_metric, measured)

    def _prompts(
        self, writer: PromptWriter, loaded: LoadedModel, examples: list[Example]
    ) -> tuple[list[Example], list[Prompt]]:
        """Examples and their prompts; those whose question alone is too long are left out, and told of."""
        data = self.data
        given = self._answers(writer, examples)
        longest = max([len(ids) for answers in given for ids in answers], default=data.max_new_tokens)
        limits = [limit for limit in (self.max_tokens, loaded.context) if limit is not None]
        room = None if loaded.is_seq2seq and not self.max_tokens else min(limits, default=0) - longest
        prompts = writer.prompts(examples, room)
        pairs = [(e, p) for e, p in zip(examples, prompts, strict=True) if p is not None]
        if not pairs:
            raise ValueError(
                f"task.max_tokens={self.max_tokens}: no question fits into {min(limits, default=0)} tokens beside an "
                f"answer of {longest}. Raise it, lower task.data.max_new_tokens, or choose a model with a longer "
                "context."
            )
        left_out = [e.index for e, p in zip(examples, prompts, strict=True) if p is None]
        if left_out:
            say(
                f"{len(left_out)} questions are left out, because they do not fit into {room} tokens (rows "
                f"{left_out[:5]} …). A model with a longer context could read them"
            )
        fewer = sum(prompt.shots < self.num_shots for _, prompt in pairs)
        if fewer:
            say(f"{fewer} prompts have fewer than {self.num_shots} shots, to fit into {room} tokens")
        return [e for e, _ in pairs], [p for _, p in pairs]

    def _answers(self, writer: PromptWriter, examples: Sequence[Example]) -> list[list[list[int]]]:
        """Ids of the answers that each example may have: labels, or its own choices; of free text, none."""
        labels = tuple(self.data.labels)
        options = [example.choices or labels for example in examples]
        known = list(dict.fromkeys(word for words in options for word in words))
        encoded = writer.tokenizer.encode_batch([writer.answer(word) for word in known])
        ids = dict(zip(known, encoded, strict=True))
        return [[ids[word] for word in words] for words in options]

    def _ask(self, writer: PromptWriter, loaded: LoadedModel, examples: list[Example], prompts: list[Prompt]) -> Scored:
        from modern_llm.evaluation.answering import write_answers
        from modern_llm.evaluation.metrics.scoring import score_choices, score_classes, score_texts

        data, model = self.data, loaded.writer
        inputs = [(data.encoder_text_of if loaded.is_seq2seq else data.prompt_of)(example) for example in examples]
        if data.labels:
            scores = self._rank(writer, model, examples, prompts)
            return score_classes(data.metrics, data.labels, scores, examples, inputs, self.seed)
        if data.choices_column is not None:
            scores = self._rank(writer, model, examples, prompts)
            return score_choices(data.metrics, scores, examples, inputs, self.seed)
        written: list[Any] = [None] * len(prompts)
        for places in _by_shots(prompts):
            answers = write_answers(
                model,
                loaded.tokenizer,
                [prompts[i].ids for i in places],
                max_new_tokens=data.max_new_tokens,
                stop=[] if self.chat else data.stop,  # a turn has an end of its own
                batch_size=self.hardware.eval_rows,
                progress=progress_of("answering"),
            )
            for place, answer in zip(places, answers, strict=True):
                written[place] = answer
        return score_texts(data.metrics, written, examples, inputs, self.seed)

    def _rank(
        self,
        writer: PromptWriter,
        model: BranchingCausalLM | HuggingFaceSeq2Seq,
        examples: list[Example],
        prompts: list[Prompt],
    ) -> np.ndarray:
        """(N, C) log-likelihoods of the answers, calibrated where asked for; -inf where an example has fewer."""
        import numpy as np

        from modern_llm.evaluation.answering import rank_answers

        answers, rows = self._answers(writer, examples), self.hardware.eval_rows
        scores = np.full((len(prompts), max(map(len, answers))), -np.inf)
        for places in _by_shots(prompts):
            asked, options = [prompts[i].ids for i in places], [answers[i] for i in places]
            if self.calibrate:
                empty = [self.data.without_content(filler) for filler in self.data.content_free]
                asked += writer.ids(empty, prompts[places[0]].shots)
                options += [answers[0]] * len(empty)
            ranked = rank_answers(model, asked, options, rows, progress_of("answering"))
            scores[places, : ranked.shape[1]] = ranked[: len(places)]
            if self.calibrate:
                chance = np.exp(ranked[len(places) :])
                chance /= chance.sum(1, keepdims=True)
                scores[places] -= np.log(chance.mean(0))
        return scores


def _by_shots(prompts: list[Prompt]) -> list[list[int]]:
    """Places of prompts with the same shots: they begin alike."""
    groups: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(prompt.shots, []).append(place)
    return list(groups.values())
