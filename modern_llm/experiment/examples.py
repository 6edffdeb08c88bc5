"""What finetuning and prompting share: a model in the form in which it meets labelled data, and its scored answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from modern_llm.checks import require
from modern_llm.data.labelled import Example, LabelledData
from modern_llm.data.rows import content_fingerprint
from modern_llm.evaluation.metrics.registry import Answers, choosable
from modern_llm.experiment.contract import RunFolder, progress_of, say
from modern_llm.experiment.record import Measured, evaluated_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from modern_llm.data.forms import Form
    from modern_llm.data.labelled import Examples
    from modern_llm.evaluation.metrics.scoring import Scored
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.pretrained.settings import PretrainedChoice
    from modern_llm.training.runtime import Runtime
    from modern_llm.training.settings import Hardware

FormName = Literal["auto", "classification", "label_words", "answer"]


def require_form(form: str, data: LabelledData) -> None:
    """Refuse a form or metrics that the data do not have."""
    answers: Answers = "labels" if data.labels else "choices" if data.choices_column else "texts"
    known = choosable(answers)
    for name in data.metrics:
        kind = "free text" if answers == "texts" else answers
        require(name in known, "task.data.metrics", name, f"is no metric of answers that are {kind}",
                f"Choose among {', '.join(known)}")  # fmt: skip
    if data.labels:
        require(form != "answer", "task.form", form, "is for free text, and the data have labels",
                "Use classification or label_words")  # fmt: skip
    else:
        require(form in ("auto", "answer"), "task.form", form, "needs data with labels", "Use task.form=answer")


def chosen_metric(name: str, data: LabelledData) -> str:
    """The final metric that a sweep optimises: `name`, or where that is empty the first of the data's.

    Raises:
        ValueError: it is none of the data's.
    """
    known = data.metrics
    require(name in ("", *known), "task.objective_metric", name, "is not measured", f"Choose among {', '.join(known)}")
    return name or known[0]


def machine_for(model: PretrainedChoice, hardware: Hardware, mirror: str | None) -> Runtime:
    """The machine; in another precision where T5 would overflow in fp16."""
    from modern_llm.experiment.loading import is_encoder_decoder
    from modern_llm.training.runtime import Runtime

    runtime = Runtime(hardware)
    if runtime.precision != "fp16" or not is_encoder_decoder(model, mirror):
        return runtime
    import torch

    native = runtime.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    better: Literal["bf16", "fp32"] = "bf16" if native else "fp32"
    say(f"hardware.precision: fp16 overflows inside T5's feed-forward layers, so {better} is used")
    return Runtime(replace(hardware, precision=better))


def load_in_form(
    model: PretrainedChoice, data: LabelledData, form: FormName, runtime: Runtime, mirror: str | None, train: bool
) -> LoadedModel:
    """The model, with a classification head where the form asks for one."""
    from modern_llm.experiment.loading import is_encoder_decoder, load_model

    classifies = form == "classification" or (form == "auto" and not is_encoder_decoder(model, mirror))
    return load_model(model, runtime, mirror, data.labels if data.labels and classifies else [], train)


def form_of(loaded: LoadedModel, data: LabelledData, max_tokens: int | None) -> Form:
    """The form in which a loaded model meets the data."""
    from modern_llm.data.forms import ClassificationForm, CompletionForm, Seq2SeqForm
    from modern_llm.experiment.loading import room_in
    from modern_llm.pretrained.seq2seq import HuggingFaceSeq2Seq

    room = room_in(loaded, max_tokens)
    if isinstance(loaded.model, HuggingFaceSeq2Seq):
        return Seq2SeqForm(data, loaded.tokenizer, room, start_id=loaded.model.start_id)
    kind = ClassificationForm if loaded.labels else CompletionForm
    return kind(data, loaded.tokenizer, room, loaded.start_ids)


def answer_examples(
    loaded: LoadedModel,
    form: Form,
    examples: Sequence[Example],
    batch_size: int,
    device: torch.device,
    seed: int,
) -> Scored:
    """Let the model answer examples in its form, and score the answers."""
    from modern_llm.evaluation.answering import classify, rank_answers, write_answers
    from modern_llm.evaluation.metrics.scoring import score_choices, score_classes, score_texts

    data, tell = form.data, progress_of("evaluating")
    inputs = [form.input_of(example) for example in examples]
    if loaded.labels:
        likelihoods = classify(loaded.classifier, form.prompts(examples, 0), batch_size, device, tell)
        return score_classes(data.metrics, data.labels, likelihoods, examples, inputs, seed)
    if data.labels:
        words = form.answers(data.labels)
        prompts = form.prompts(examples, max(map(len, words)))
        likelihoods = rank_answers(loaded.writer, prompts, [words] * len(prompts), batch_size, tell)
        return score_classes(data.metrics, data.labels, likelihoods, examples, inputs, seed)
    if data.choices_column is not None:
        options = [form.answers(example.choices) for example in examples]
        longest = max(len(ids) for choices in options for ids in choices)
        likelihoods = rank_answers(loaded.writer, form.prompts(examples, longest), options, batch_size, tell)
        return score_choices(data.metrics, likelihoods, examples, inputs, seed)
    # An encoder-decoder writes into a text of its own.
    reserve = 0 if loaded.is_seq2seq else data.max_new_tokens
    written = write_answers(
        loaded.writer,
        loaded.tokenizer,
        form.prompts(examples, reserve),
        max_new_tokens=data.max_new_tokens,
        stop=data.stop,
        batch_size=batch_size,
        progress=tell,
    )
    return score_texts(data.metrics, written, examples, inputs, seed)


def measured_answers(
    folder: RunFolder, data: LabelledData, examples: Examples, rows: Sequence[Example], scored: Scored
) -> Measured:
    """Scored answers as the figures of a run; predictions and errors are written.

    Args:
        folder: of the run.
        data: what was asked.
        examples, rows: the part, and what of it was scored.
        scored: the answers.
    """
    errors = scored.errors()
    folder.write_lines("predictions.jsonl", [vars(p) for p in scored.predictions])
    folder.write_lines("errors.jsonl", errors)
    scored_rows = content_fingerprint([examples.fingerprint, [row.index for row in rows]])
    samples = [
        {"prompt": p.input, "text": f" → {p.prediction}  (reference: {p.reference})"} for p in scored.predictions[:3]
    ]
    return Measured(
        dict(scored.metrics),
        data.metrics,
        {"": evaluated_on(scored_rows, len(rows))},
        {"data": data.name, "evaluation_split": examples.split},
        {"errors": errors[:50], "samples": samples},
    )
