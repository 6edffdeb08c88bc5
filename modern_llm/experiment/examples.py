"""What finetuning and prompting share: the model in its form, its answers to examples, their scores and the record."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from modern_llm.checks import require
from modern_llm.data.labelled import Example, SupervisedData
from modern_llm.experiment.contract import RunFolder, progress_of, say
from modern_llm.experiment.training import PretrainedTask, report, room_in, tell_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from modern_llm.data.forms import Form
    from modern_llm.evaluation.metrics.scoring import Scored
    from modern_llm.pretrained.loading import LoadedModel
    from modern_llm.training.runtime import Runtime

FormName = Literal["auto", "classification", "label_words", "answer"]
METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "summaries": ("rouge1", "rouge2", "rougeL", "rougeLsum"),
    "numbers": ("strict_match", "flexible_match"),
}


def require_form(form: str, dataset: SupervisedData) -> None:
    """Refuse a form that the data do not have."""
    if dataset.labels:
        require(form != "answer", "task.form", form, "is for free text, and the data have labels",
                "Use classification or label_words")  # fmt: skip
    else:
        require(form in ("auto", "answer"), "task.form", form, "needs data with labels", "Use task.form=answer")


def chosen_metric(name: str, dataset: SupervisedData) -> str:
    """The final metric that a sweep optimises: `name`, or where that is empty the first that the data get.

    Raises:
        ValueError: the data do not get it.
    """
    known = METRICS[dataset.scoring]
    require(name in ("", *known), "task.objective_metric", name, "is not measured", f"Choose among {', '.join(known)}")
    return name or known[0]


class AnsweringTask(PretrainedTask, Protocol):
    """What `prepare_model` and `finish` ask of a task."""

    @property
    def data(self) -> SupervisedData: ...

    @property
    def form(self) -> FormName: ...

    @property
    def max_tokens(self) -> int | None: ...


def prepare_model(task: AnsweringTask, train: bool) -> tuple[Runtime, LoadedModel, Form]:
    """The machine, the model on it, and the form in which it meets the data."""
    from modern_llm.data.forms import ClassificationForm, CompletionForm, Seq2SeqForm
    from modern_llm.experiment.loading import is_encoder_decoder, load_model
    from modern_llm.pretrained.seq2seq import HuggingFaceSeq2Seq
    from modern_llm.training.runtime import Runtime

    mirror, dataset = task.paths.mirror, task.data
    runtime = Runtime(task.hardware)
    seq2seq = is_encoder_decoder(task.model, mirror)
    if seq2seq and runtime.precision == "fp16":
        import torch

        native = runtime.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        better: Literal["bf16", "fp32"] = "bf16" if native else "fp32"
        say(f"hardware.precision: fp16 overflows inside T5's feed-forward layers, so {better} is used")
        runtime = Runtime(replace(task.hardware, precision=better))
    classifies = bool(dataset.labels) and (task.form == "classification" or (task.form == "auto" and not seq2seq))
    loaded = load_model(task.model, runtime, mirror, dataset.labels if classifies else [], train)
    max_tokens = room_in(loaded, task.max_tokens)
    form: Form
    if isinstance(loaded.model, HuggingFaceSeq2Seq):
        form = Seq2SeqForm(dataset, loaded.tokenizer, max_tokens, start_id=loaded.model.start_id)
    elif classifies:
        form = ClassificationForm(dataset, loaded.tokenizer, max_tokens, loaded.start_ids)
    else:
        form = CompletionForm(dataset, loaded.tokenizer, max_tokens, loaded.start_ids)
    tell_model(loaded, runtime, train)
    return runtime, loaded, form


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
    from modern_llm.evaluation.metrics.scoring import score_classes, score_texts
    from modern_llm.pretrained.classifier import Classifier

    data, tell = form.data, progress_of("evaluating")
    inputs = [form.input_of(example) for example in examples]
    if isinstance(loaded.model, Classifier):
        likelihoods = classify(loaded.model, form.prompts(examples, 0), batch_size, device, tell)
        return score_classes(data.labels, likelihoods, examples, inputs, seed)
    model: Any = loaded.model
    if data.labels:
        words = form.answers(data.labels)
        prompts = form.prompts(examples, max(map(len, words)))
        likelihoods = rank_answers(model, prompts, [words] * len(prompts), batch_size, tell)
        return score_classes(data.labels, likelihoods, examples, inputs, seed)
    # An encoder-decoder writes into a text of its own.
    reserve = 0 if loaded.is_seq2seq else data.max_new_tokens
    written = write_answers(
        model,
        loaded.tokenizer,
        form.prompts(examples, reserve),
        max_new_tokens=data.max_new_tokens,
        stop=data.stop,
        batch_size=batch_size,
        progress=tell,
    )
    return score_texts(data.scoring, written, examples, inputs, seed)


def finish(
    task: AnsweringTask,
    folder: RunFolder,
    runtime: Runtime,
    loaded: LoadedModel,
    scored: Scored,
    metrics: dict[str, float],
    facts: dict[str, Any],
    checkpoint: Path | None = None,
) -> dict[str, float]:
    """Write predictions, errors, result and page; print them. Returns the final metrics."""
    every, trained = loaded.parameter_counts()
    metrics = {
        **scored.metrics,
        **metrics,
        "parameters": every,
        "trained_parameters": trained if checkpoint is not None else 0,
        "peak_memory_gb": runtime.peak_memory_gb(),
    }
    headline = [name for name in METRICS[task.data.scoring] if name in metrics]
    errors = scored.errors()
    folder.write_lines("predictions.jsonl", [vars(p) for p in scored.predictions])
    folder.write_lines("errors.jsonl", errors)
    report(
        task,
        folder,
        runtime,
        metrics,
        headline,
        facts,
        checkpoint,
        errors=errors[:50],
        samples=[
            {"prompt": p.input, "text": f" → {p.prediction}  (reference: {p.reference})"}
            for p in scored.predictions[:3]
        ],
    )
    return metrics
