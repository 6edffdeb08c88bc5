"""From the model that a configuration names to a model in memory, and what a checkpoint says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from modern_llm.config.instantiate import ConfigError, build, describe
from modern_llm.config.records import read_record
from modern_llm.data.batches import MULTIPLE
from modern_llm.data.chat import with_chat
from modern_llm.data.text.tokenizers import Tokenizer
from modern_llm.experiment.contract import say
from modern_llm.models.custom import FromScratch
from modern_llm.models.custom_decoder import decoder_of
from modern_llm.models.int8 import hold_in_int8
from modern_llm.models.kernels import has_content
from modern_llm.models.verifier import VerifierModel
from modern_llm.models.verifier_config import VerifierConfig
from modern_llm.pretrained.loaded import HuggingFaceModel, LoadedModel, OwnDecoder, OwnVerifier, weights_fingerprint
from modern_llm.pretrained.loading import hugging_face_config, load_hugging_face
from modern_llm.pretrained.settings import LoRA, ModelFromRun, PretrainedChoice, PretrainedModel
from modern_llm.training.checkpoint import Checkpoints, load_model_tensors, torn
from modern_llm.training.runtime import Runtime

_OWN = FromScratch | VerifierConfig
_ENDLESS = 2**31  # T5's relative positions know no last one


def load_model(
    choice: PretrainedChoice, runtime: Runtime, mirror: str | None, labels: list[str], train: bool
) -> LoadedModel:
    """Load what `model` names.

    Args:
        choice: a Hugging Face model, or one of an earlier run.
        runtime: the machine it is for.
        mirror: root of the mirror.
        labels: give it a classification head for these; empty: it writes.
        train: put on the adapters that `choice` asks for. Else `hardware.int8_weights` counts.

    Raises:
        FileNotFoundError: it is nowhere.
        ValueError: it cannot do what is asked; the message says why.
    """
    _require_whole(choice)
    # Frozen weights are only read, so they may have the precision that is computed in.
    frozen = isinstance(choice.lora, LoRA) or not train
    dtype = torch.bfloat16 if runtime.precision == "bf16" and frozen else torch.float32
    loaded = _load(choice, mirror, labels, train, dtype)
    if runtime.hardware.int8_weights and not train:
        for block in loaded.model.blocks:  # type: ignore[union-attr]
            hold_in_int8(block)
    loaded.model.to(runtime.device)
    return loaded


def _load(
    choice: PretrainedChoice, mirror: str | None, labels: list[str], train: bool, dtype: torch.dtype
) -> LoadedModel:
    if isinstance(choice, PretrainedModel):
        loaded: LoadedModel = load_hugging_face(choice, mirror, labels, dtype)
    else:
        loaded = _from_checkpoint(choice, mirror, labels, train, dtype)
    return loaded.with_lora(choice.lora) if train and isinstance(choice.lora, LoRA) else loaded


def is_encoder_decoder(choice: PretrainedChoice, mirror: str | None) -> bool:
    """Whether an encoder reads the input, found without loading weights."""
    if isinstance(choice, ModelFromRun):
        _require_whole(choice)
        inner = _described(read_record(choice.checkpoint() / "config.yaml"))
        return not isinstance(inner, _OWN) and is_encoder_decoder(inner, mirror)
    return hugging_face_config(choice, mirror).is_encoder_decoder


def classifier_labels(choice: PretrainedChoice) -> list[str]:
    """Classes of the classifier that an earlier run trained; empty for a language model."""
    if isinstance(choice, PretrainedModel):
        return []
    return _labels(read_record(choice.checkpoint() / "config.yaml"))


def _described(record: dict[str, Any]) -> Any:
    """The model that a checkpoint's record describes: how ours is built, or what it builds upon.

    Raises:
        ConfigError: it describes none.
    """
    model = build(record.get("model"), "model")
    if not isinstance(model, _OWN | PretrainedModel | ModelFromRun):
        raise ConfigError(
            f"model={record.get('model')!r}: a checkpoint's config.yaml describes no model. Use another one."
        )
    return model


def _require_whole(choice: PretrainedChoice) -> None:
    """Refuse a checkpoint that is not what was written, and checkpoints that build upon each other in a circle.

    Raises:
        ValueError: with the checkpoint.
    """
    seen: list[Path] = []
    model: Any = choice
    while isinstance(model, ModelFromRun):
        folder = model.checkpoint()
        if folder in seen:
            raise ValueError(f"model.path={model.path}: {folder} builds upon itself. Use another checkpoint.")
        seen.append(folder)
        fault = torn(folder)
        if fault is not None:
            raise ValueError(
                f"model.path={model.path}: the checkpoint {folder.name} is damaged ({fault}). Name another one of the "
                "run, as model.path=<run>/checkpoints/step_…"
            )
        model = _described(read_record(folder / "config.yaml"))


def _labels(record: dict[str, Any]) -> list[str]:
    labels = record.get("labels") or []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"labels={labels!r}: must be a list of texts in a checkpoint's config.yaml. Use another one.")
    return labels


def require_same_base(folder: Path, loaded: LoadedModel) -> None:
    """Refuse to go on with a run whose base has other weights now: what was trained suits the former ones alone.

    Args:
        folder: of the run.
        loaded: the model as it was loaded now.

    Raises:
        ValueError: the newest checkpoint was trained on another base.
    """
    newest = Checkpoints(folder / "checkpoints", keep=1).all()[-1:]
    for checkpoint in newest:
        if not (checkpoint / "config.yaml").is_file() or loaded.described_by_itself:
            continue
        before = read_record(checkpoint / "config.yaml").get("base_fingerprint")
        if before is not None and before != loaded.fingerprint:
            raise ValueError(
                f"resume={folder}: was trained on another {loaded.name} than the one that is found now. "
                "Put the former back, or start a new run."
            )


def _from_checkpoint(
    choice: ModelFromRun, mirror: str | None, labels: list[str], train: bool, dtype: torch.dtype
) -> LoadedModel:
    folder = choice.checkpoint()
    record = read_record(folder / "config.yaml")
    had = _labels(record)
    if had and not labels:
        raise ValueError(
            f"model.path={choice.path}: is a classifier ({', '.join(had)}) and writes no text. "
            "Use task.form=classification on data with these labels, or choose a language model."
        )
    if had and had != labels:
        raise ValueError(
            f"model.path={choice.path}: classifies {', '.join(had)}, and the data have {', '.join(labels)}. "
            "Choose the data it was trained on, or a language model."
        )
    inner = _described(record)
    if isinstance(inner, FromScratch):
        tokenizer = Tokenizer.load(folder / "tokenizer")
        loaded: LoadedModel = OwnDecoder.of(decoder_of(inner), tokenizer, str(folder), had)
    elif isinstance(inner, VerifierConfig):
        loaded = OwnVerifier.of(VerifierModel(inner, had), Tokenizer.load(folder / "tokenizer"), str(folder))
    else:
        merges = train or (labels and not had)
        loaded = _load(inner, mirror, had, True, torch.float32 if merges else dtype)
        if has_content() and loaded.fingerprint != record.get("base_fingerprint"):
            raise ValueError(
                f"model.path={choice.path}: was trained on another {loaded.name} than the one that is found now. "
                "Put the former into the mirror, or train anew."
            )
        tokenizer = Tokenizer.load(folder / "tokenizer")
        if tokenizer.fingerprint != loaded.tokenizer.fingerprint:
            raise ValueError(
                f"model.path={choice.path}: was trained with another tokenizer than {loaded.name} has now, so its "
                "weights mean other tokens. Put the former into the mirror, or train anew."
            )
        loaded = replace(loaded, tokenizer=tokenizer)  # with the chat template of the training
    try:
        if has_content():
            load_model_tensors(loaded.model, folder)
    except SafetensorError as cause:
        raise ValueError(
            f"model.path={choice.path}: its weights are none ({cause}). Use another checkpoint."
        ) from cause
    if isinstance(inner, _OWN):  # built with random weights
        loaded = replace(loaded, fingerprint=weights_fingerprint(loaded.base))
    if train or (labels and not had):
        loaded = loaded.merged()
        if isinstance(loaded, HuggingFaceModel):
            loaded.model.to(dtype)  # only now: adapters are merged at full precision
    return loaded.with_classes(labels) if labels and not had else loaded


def load_decoder(
    choice: PretrainedChoice, runtime: Runtime, mirror: str | None, train: bool, key: str = "model"
) -> LoadedModel:
    """A decoder. Arguments as in `load_model`.

    Args:
        key: that names it, for the message.

    Raises:
        ValueError: an encoder-decoder.
    """
    if is_encoder_decoder(choice, mirror):
        raise ValueError(f"{key}: an encoder-decoder shares no prompt among its answers. Choose a decoder.")
    return load_model(choice, runtime, mirror, [], train)


def load_chat_model(
    choice: PretrainedChoice, runtime: Runtime, mirror: str | None, train: bool, labels: Sequence[str] = ()
) -> LoadedModel:
    """A decoder with a chat template: its own, or the default one. Arguments as in `load_model`.

    Raises:
        ValueError: an encoder-decoder.
    """
    if is_encoder_decoder(choice, mirror):
        raise ValueError("model: an encoder-decoder holds no conversation. Choose a decoder, such as model=gpt2.")
    loaded = load_model(choice, runtime, mirror, list(labels), train)
    if loaded.tokenizer.chat_template is None:
        say("the model's tokenizer has no chat template; the default one is used, and saved with it")
    return replace(loaded, tokenizer=with_chat(loaded.tokenizer))


def room_in(loaded: LoadedModel, max_tokens: int | None) -> int:
    """Longest text: `max_tokens`, or what the model was made for, where batches are padded to a multiple."""
    context = None if loaded.context is None else loaded.context // MULTIPLE * MULTIPLE
    return min((limit for limit in (max_tokens, context) if limit is not None), default=_ENDLESS)


def describe_model(choice: Any, loaded: LoadedModel) -> str:
    """What `config.yaml` of a checkpoint says, from which `load_model` makes the model again."""
    # A whole model of our own is in the checkpoint; everything else builds upon what `choice` names.
    model: Any = loaded.base.config if loaded.described_by_itself else choice
    if isinstance(model, ModelFromRun):  # the best checkpoint of a run may be another one later
        model = replace(model, path=str(model.checkpoint()))
    return describe({"model": model, "labels": loaded.labels, "base_fingerprint": loaded.fingerprint})
