"""From a folder with a Hugging Face model to a model that the loop trains, and back to a folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from modern_llm.data.text.tokenizers import Tokenizer, gguf_file
from modern_llm.hub import find_model
from modern_llm.models.interop import to_hugging_face
from modern_llm.models.transformer import ModernDecoderLM
from modern_llm.models.verifier import VerifierModel
from modern_llm.pretrained.causal import HuggingFaceCausalLM
from modern_llm.pretrained.classifier import Classifier
from modern_llm.pretrained.lora import add_lora
from modern_llm.pretrained.seq2seq import HuggingFaceSeq2Seq
from modern_llm.pretrained.settings import LoRA, PretrainedModel

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoadedModel:
    """A model with what belongs to it.

    Attributes:
        model: what the loop and the evaluators see: `CausalLM`, `HuggingFaceSeq2Seq`, `Classifier` or `VerifierModel`.
        base: the `transformers` model, `ModernDecoderLM` or `VerifierModel` inside; with its head where it has one.
        tokenizer: of the model.
        context: tokens that it was made for; None: any number.
        name: of the base, for the record.
        fingerprint: of the weights before anything was trained.
        adapter: peft's view of it, or None without adapters.
    """

    model: nn.Module
    base: nn.Module
    tokenizer: Tokenizer
    context: int | None
    name: str
    fingerprint: str
    adapter: PeftModel | None = None

    @property
    def start_ids(self) -> list[int]:
        """What every text begins with: the tokenizer's bos; for a model of our own, the separator of texts."""
        if self.tokenizer.bos_id is not None:
            return [self.tokenizer.bos_id]
        return [self.tokenizer.eos_id] if self.is_own else []

    @property
    def is_own(self) -> bool:
        """Whether the model inside is one of ours."""
        return isinstance(self.base, ModernDecoderLM | VerifierModel)

    @property
    def is_seq2seq(self) -> bool:
        """Whether an encoder reads the input."""
        return isinstance(self.model, HuggingFaceSeq2Seq)

    @property
    def labels(self) -> list[str]:
        """Words of a classifier's classes; empty for a language model."""
        return self.model.labels if isinstance(self.model, Classifier | VerifierModel) else []

    def parameter_counts(self) -> tuple[int, int]:
        """Parameters, and how many of them are trained."""
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)

    def flops_per_token(self) -> float:
        """Operations of a training step per token: 2 per parameter forward and 2 for the gradient of what it reads,
        and 2 more per trained parameter (Kaplan et al. 2020, arXiv 2001.08361); attention left out."""
        every, trained = self.parameter_counts()
        return 4 * every + 2 * trained

    def with_lora(self, lora: LoRA) -> LoadedModel:
        """The same model with adapters, in place; all else frozen."""
        theirs = not self.is_own
        task = None
        if theirs:
            task = "SEQ_2_SEQ_LM" if self.is_seq2seq else "SEQ_CLS" if self.labels else "CAUSAL_LM"
        adapted = add_lora(self.base if theirs else self.model, lora, task, self.name)
        return replace(self, adapter=adapted)

    @contextmanager
    def untrained(self) -> Iterator[nn.Module]:
        """The model without its adapters, in evaluation mode: as it was before they were trained."""
        was_training = self.model.training
        self.model.eval()
        try:
            with self.adapter.disable_adapter() if self.adapter is not None else nullcontext():
                yield self.model
        finally:
            self.model.train(was_training)

    def weights_hash(self) -> str:
        """Changes when any value of any weight does, adapters aside."""
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            if "lora_" not in name:
                digest.update(f"{name.replace('.base_layer', '')} {tuple(parameter.shape)} {parameter.dtype}".encode())
                digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def merged(self) -> LoadedModel:
        """The same model with its adapters added into the weights; all of them are trainable again."""
        if self.adapter is None:
            return self
        with torch.no_grad():
            plain = self.adapter.merge_and_unload()
        plain.requires_grad_(True)
        if isinstance(self.base, ModernDecoderLM):
            return replace(self, model=plain, adapter=None)
        if self.is_own:
            return replace(self, model=plain, base=plain, adapter=None)
        return replace(self, base=plain, adapter=None)

    def as_hugging_face(self) -> LoadedModel:
        """The same model as one of `transformers`.

        Raises:
            ValueError: a decoder of our own with parts that no architecture there has; they are named.
        """
        if not self.is_own:
            return self
        if not isinstance(self.base, ModernDecoderLM) or self.labels:
            raise ValueError("a classifier of our own has no class in transformers. Keep its checkpoint.")
        exported = to_hugging_face(self.base)
        return replace(self, base=exported, model=HuggingFaceCausalLM(exported), adapter=None)

    def save(self, folder: Path) -> bool:
        """Write it in Hugging Face's own format: an adapter in PEFT's, with the classification head; or the whole
        model. Returns False for a model of our own without adapters, whose checkpoint is its format."""
        if self.adapter is None and self.is_own:
            return False
        config: Any = self.base.config
        theirs = not self.is_own
        unpadded = theirs and config.pad_token_id is None
        if unpadded:  # nothing here reads it; a classifier that is loaded elsewhere does
            config.pad_token_id = self.tokenizer.eos_id
        with _quiet():
            if self.adapter is not None:
                # Embeddings are never trained beside adapters; peft would ask the hub about them.
                self.adapter.save_pretrained(str(folder), save_embedding_layers=False)
            else:
                self.base.save_pretrained(str(folder))  # type: ignore[operator]
        if unpadded:
            config.pad_token_id = None
        self.tokenizer.save(folder)
        return True


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
        with _quiet():
            return AutoConfig.from_pretrained(folder, **({"gguf_file": packed} if packed else {}))
    except (ValueError, OSError, ImportError) as cause:
        raise ValueError(f"model.name={settings.name!r}: {folder} holds no usable model ({cause}).") from cause


def load_hugging_face(
    settings: PretrainedModel,
    mirror: str | None,
    labels: list[str] | None = None,
    frozen_dtype: torch.dtype = torch.float32,
) -> LoadedModel:
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
    if not packed and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"model.name={settings.name!r}: {folder} holds no weights as *.safetensors. Pickled ones may run anything "
            "and are not read. Convert them first, or choose another model."
        )
    tokenizer = Tokenizer.load(folder)
    with _quiet():
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
        base = kind.from_pretrained(folder, dtype=dtype, **where)
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
    return LoadedModel(model, base, tokenizer, context, settings.name, fingerprint)


def own_decoder(
    model: ModernDecoderLM, tokenizer: Tokenizer, name: str, labels: list[str] | None = None
) -> LoadedModel:
    """A decoder trained from scratch, standing where a Hugging Face model may stand."""
    fingerprint = weights_fingerprint(model)
    top = Classifier(model, labels) if labels else model
    return LoadedModel(top, model, tokenizer, model.config.max_seq_len, name, fingerprint)


def own_verifier(model: VerifierModel, tokenizer: Tokenizer, name: str) -> LoadedModel:
    """A verifier of our own, from scratch or of an earlier run."""
    return LoadedModel(model, model, tokenizer, model.config.max_seq_len, name, weights_fingerprint(model))


def with_classification_head(loaded: LoadedModel, labels: list[str]) -> LoadedModel:
    """A language model's body under a new head for these classes.

    Raises:
        ValueError: an encoder-decoder.
    """
    if isinstance(loaded.base, ModernDecoderLM):
        return replace(loaded, model=Classifier(loaded.base, labels))
    if loaded.is_seq2seq:
        raise ValueError("an encoder-decoder gets no classification head. Use task.form=label_words.")
    from transformers import AutoModelForSequenceClassification

    config: Any = loaded.base.config
    config.num_labels = len(labels)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    base = AutoModelForSequenceClassification.from_config(config)
    base.base_model.load_state_dict(loaded.base.base_model.state_dict())  # type: ignore[union-attr]
    base.to(next(loaded.base.parameters()).dtype)
    return replace(loaded, base=base, model=Classifier(HuggingFaceCausalLM(base), labels))


def switch_off_dropout(model: nn.Module) -> None:
    """No dropout in training either, adapters included: a policy is then its reference at the start."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):  # of modules that call the function
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _writes(architecture: str, labels: list[str] | None) -> bool:
    """Whether an architecture, by its name, can do what is asked."""
    if "ForSequenceClassification" in architecture:
        return bool(labels)
    return not any(kind in architecture for kind in ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"))


def weights_fingerprint(model: nn.Module) -> str:
    """Changes when another model is loaded: names, shapes and some values of every weight."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(torch.cat([flat[:32], flat[-32:]]).to(torch.bfloat16).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _forget_quantization(model: PreTrainedModel) -> None:
    """A GGUF file's weights are plain ones once they are loaded, and may be saved as such."""
    model.config.__dict__.pop("quantization_config", None)
    model.__dict__.pop("hf_quantizer", None)
    for mark in ("is_quantized", "quantization_method"):
        if hasattr(model, mark):
            setattr(model, mark, False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the reports on weights that are new on purpose, and without bars."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
