"""From a folder with a Hugging Face model to a model that the loop trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modern_llm.data.text.tokenizers import Tokenizer, gguf_file
from modern_llm.hub import find_model
from modern_llm.models.kernels import has_content
from modern_llm.pretrained.causal import HuggingFaceCausalLM
from modern_llm.pretrained.classifier import Classifier
from modern_llm.pretrained.loaded import HuggingFaceModel, quiet_transformers, weights_fingerprint
from modern_llm.pretrained.seq2seq import HuggingFaceSeq2Seq
from modern_llm.pretrained.settings import LoRA, PretrainedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hugging_face_config(settings: PretrainedModel, mirror: str | None) -> Any:
    """The model's configuration, without its weights.

    Raises:
        FileNotFoundError: it is nowhere; the message names the places.
        ValueError: a folder that transformers does not understand.
    """
    from transformers import AutoConfig

    folder = Path(find_model(settings.name, mirror))
    packed = gguf_file(folder)
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(folder, **({"gguf_file": packed} if packed else {}))
    except (ValueError, OSError, ImportError) as cause:
        raise ValueError(f"model.name={settings.name!r}: {folder} holds no usable model ({cause}).") from cause


def load_hugging_face(
    settings: PretrainedModel,
    mirror: str | None,
    labels: list[str] | None = None,
    frozen_dtype: torch.dtype = torch.float32,
) -> HuggingFaceModel:
    """Load a model and its tokenizer, without adapters yet.

    Args:
        settings: which.
        mirror: root of the mirror.
        labels: give it a head for these classes in place of the language-modelling head; None or empty: do not.
        frozen_dtype: of the weights, where adapters are trained beside them; else they are fp32.

    Raises:
        FileNotFoundError: it is nowhere; the message names the places.
        ValueError: an architecture or kind that cannot be used here, or no weights as safetensors.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    config = hugging_face_config(settings, mirror)
    folder = Path(find_model(settings.name, mirror))
    packed = gguf_file(folder)
    where: dict[str, Any] = {"gguf_file": packed} if packed else {}
    if has_content() and not packed and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"model.name={settings.name!r}: {folder} holds no weights as *.safetensors. Pickled ones may run anything "
            "and are not read. Convert them first, or choose another model."
        )
    tokenizer = Tokenizer.load(folder, f"model.name={settings.name!r}")
    with quiet_transformers():
        if config.is_encoder_decoder and labels:
            raise ValueError(
                f"model.name={settings.name!r}: an encoder-decoder answers in words and gets no classification head. "
                "Use task.form=label_words."
            )
        kind: Any = AutoModelForCausalLM
        if config.is_encoder_decoder:
            kind = AutoModelForSeq2SeqLM
        elif labels:
            kind = AutoModelForSequenceClassification
            where |= {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
            where |= {"label2id": {label: i for i, label in enumerate(labels)}}
        if config.architectures and not _writes(config.architectures[0], labels):
            raise ValueError(
                f"model.name={settings.name!r}: is a {config.architectures[0]}, which writes no text. "
                "Choose a causal language model or a T5."
            )
        dtype = frozen_dtype if isinstance(settings.lora, LoRA) else torch.float32
        if has_content():
            base = kind.from_pretrained(folder, dtype=dtype, **where)
        else:
            for name in ("num_labels", "id2label", "label2id"):
                if name in where:
                    setattr(config, name, where[name])
            base = kind.from_config(config, dtype=dtype)
    if packed:
        _forget_quantization(base)
    fingerprint = weights_fingerprint(base.base_model)
    body = HuggingFaceSeq2Seq(base) if config.is_encoder_decoder else HuggingFaceCausalLM(base)
    model = Classifier(body, labels) if labels else body
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    context = None if config.is_encoder_decoder else limit
    if settings.max_seq_len is not None:
        if context is not None and settings.max_seq_len > context:
            raise ValueError(f"model.max_seq_len={settings.max_seq_len}: {settings.name} has {context} positions.")
        context = settings.max_seq_len
    return HuggingFaceModel(model, base, tokenizer, context, settings.name, fingerprint)


def _writes(architecture: str, labels: list[str] | None) -> bool:
    """Whether an architecture, by its name, can do what is asked."""
    if "ForSequenceClassification" in architecture:
        return bool(labels)
    return not any(kind in architecture for kind in ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"))


def _forget_quantization(model: PreTrainedModel) -> None:
    """A GGUF file's weights are plain ones once they are loaded, and may be saved as such."""
    model.config.__dict__.pop("quantization_config", None)
    model.__dict__.pop("hf_quantizer", None)
    for mark in ("is_quantized", "quantization_method"):
        if hasattr(model, mark):
            setattr(model, mark, False)
