"""A model with what belongs to it, one class per kind: a decoder or a verifier of our own, or one of `transformers`."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from modern_llm.data.text.tokenizers import Tokenizer
from modern_llm.models.custom import CustomModel
from modern_llm.models.custom_decoder import CustomDecoder
from modern_llm.models.interop.exporting import to_hugging_face
from modern_llm.models.transformer import ModernDecoderLM
from modern_llm.models.verifier import VerifierModel
from modern_llm.pretrained.causal import HuggingFaceCausalLM
from modern_llm.pretrained.classifier import Classifier
from modern_llm.pretrained.four_bits import four_bit_maps, spread_out
from modern_llm.pretrained.lora import add_lora, decoded_quickly
from modern_llm.pretrained.seq2seq import HuggingFaceSeq2Seq
from modern_llm.pretrained.settings import LoRA

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


Decoder = ModernDecoderLM | CustomDecoder | HuggingFaceCausalLM


@dataclass(frozen=True)
class LoadedModel(ABC):
    """A model with what belongs to it.

    Attributes:
        model: what the loop trains. Whoever needs to know its kind asks for `decoder`, `writer` or `classifier`.
        base: the model inside, without a `Classifier` around it.
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
    def decoder(self) -> Decoder:
        """The model as one that continues texts.

        Raises:
            ValueError: an encoder-decoder or a classifier.
        """
        if isinstance(self.model, Decoder):
            return self.model
        raise ValueError(f"{self.name}: is {self._kind}, and continues no text. Choose a decoder.")

    @property
    def writer(self) -> Decoder | HuggingFaceSeq2Seq:
        """The model as one that answers in words.

        Raises:
            ValueError: a classifier.
        """
        return self.model if isinstance(self.model, HuggingFaceSeq2Seq) else self.decoder

    @property
    def classifier(self) -> Classifier | VerifierModel:
        """The model as one that tells classes apart.

        Raises:
            ValueError: a language model.
        """
        if isinstance(self.model, Classifier | VerifierModel):
            return self.model
        raise ValueError(f"{self.name}: is {self._kind}, and has no classes. Give it a classification head.")

    @property
    def _kind(self) -> str:
        if self.labels:
            return "a classifier"
        return "an encoder-decoder" if self.is_seq2seq else "a decoder"

    @property
    def is_seq2seq(self) -> bool:
        """Whether an encoder reads the input."""
        return isinstance(self.model, HuggingFaceSeq2Seq)

    @property
    def labels(self) -> list[str]:
        """Words of a classifier's classes; empty for a language model."""
        return self.model.labels if isinstance(self.model, Classifier | VerifierModel) else []

    @property
    def start_ids(self) -> list[int]:
        """What every text begins with: the tokenizer's bos, where it has one."""
        return [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]

    @property
    def endless(self) -> bool:
        """Whether a text may grow beyond `context`, because each token sees a window of the last ones."""
        return False

    def parameter_counts(self) -> tuple[int, int]:
        """Parameters, and how many of them are trained."""
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        narrow = sum(module.shape.numel() for module in four_bit_maps(self.model))
        return sum(n for n, _ in sizes) + narrow, sum(n for n, trained in sizes if trained)

    def flops_per_token(self, context: int | None = None) -> float:
        """Operations of a training step per token: 2 per parameter forward and 2 for the gradient of what it reads,
        and 2 more per trained parameter (Kaplan et al. 2020, arXiv 2001.08361). Attention over texts of `context`
        tokens is counted for a decoder of our own, and left out for others.
        """
        every, trained = self.parameter_counts()
        return 4 * every + 2 * trained

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Within it the model computes without its adapters, in evaluation mode: as before they were trained."""
        was_training = self.model.training
        self.model.eval()
        try:
            with self.adapter.disable_adapter() if self.adapter is not None else nullcontext():
                yield
        finally:
            self.model.train(was_training)

    def decoding(self) -> AbstractContextManager[None]:
        """What texts are written in while adapters are trained: see `decoded_quickly`."""
        return decoded_quickly(self.model) if self.adapter is not None else nullcontext()

    def weights_hash(self) -> str:
        """Changes when any value of any weight does, adapters aside."""
        digest = hashlib.sha256()
        narrow = [tensor for module in four_bit_maps(self.model) for tensor in module.named_buffers()]
        for name, tensor in [*self.model.named_parameters(), *narrow]:
            if "lora_" not in name:
                digest.update(f"{name.replace('.base_layer', '')} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _merged_adapter(self, adapter: PeftModel) -> nn.Module:
        """The adapted model with adapters added into its weights, all of them trainable again. Weights in 4 bits become
        plain ones of the same values, upon which the adapters were trained."""
        with torch.no_grad():
            spread_out(self.model)
            plain: nn.Module = adapter.merge_and_unload()
        return plain.requires_grad_(True)

    @property
    def described_by_itself(self) -> bool:
        """Whether its configuration and its weights make it anew, without what it was loaded from."""
        return False

    @abstractmethod
    def with_lora(self, lora: LoRA) -> LoadedModel:
        """The same model with adapters, in place; all else frozen."""

    @abstractmethod
    def merged(self) -> LoadedModel:
        """The same model with its adapters added into the weights; all of them are trainable again."""

    @abstractmethod
    def with_classes(self, labels: list[str]) -> LoadedModel:
        """A language model's body under a new head for these classes.

        Raises:
            ValueError: an encoder-decoder.
        """

    @abstractmethod
    def as_hugging_face(self) -> HuggingFaceModel:
        """The same model as one of `transformers`.

        Raises:
            ValueError: a model of our own with parts that no architecture there has; they are named.
        """

    @abstractmethod
    def save(self, folder: Path) -> bool:
        """Write it in Hugging Face's own format: an adapter in PEFT's, with the classification head; or the whole
        model. Returns False for a model of our own without adapters, whose checkpoint is its format."""


class _OwnModel(LoadedModel):
    """What models of our own share."""

    @property
    def start_ids(self) -> list[int]:
        """The tokenizer's bos, or the separator of texts."""
        return super().start_ids or [self.tokenizer.eos_id]

    @property
    def described_by_itself(self) -> bool:
        return self.adapter is None

    def with_lora(self, lora: LoRA) -> LoadedModel:
        return replace(self, adapter=add_lora(self.model, lora, None, self.name))

    def save(self, folder: Path) -> bool:
        if self.adapter is None:
            return False
        _save_adapter(self.adapter, folder)
        self.tokenizer.save(folder)
        return True


@dataclass(frozen=True)
class OwnDecoder(_OwnModel):
    """A decoder that its settings describe, from scratch or of an earlier run; under a `Classifier` where it has
    classes."""

    base: ModernDecoderLM | CustomDecoder

    @classmethod
    def of(
        cls,
        base: ModernDecoderLM | CustomDecoder,
        tokenizer: Tokenizer,
        name: str,
        labels: list[str] | None = None,
    ) -> OwnDecoder:
        """A decoder; with labels, under a new head for these classes."""
        top = Classifier(base, labels) if labels else base
        return cls(top, base, tokenizer, base.config.max_seq_len, name, weights_fingerprint(base))

    @property
    def endless(self) -> bool:
        return self.base.config.attention_window is not None

    def flops_per_token(self, context: int | None = None) -> float:
        config = self.base.config
        if context is None or self.adapter is not None or isinstance(config, CustomModel):
            return super().flops_per_token(context)
        return config.flops_per_token(context)

    def merged(self) -> OwnDecoder:
        return self if self.adapter is None else replace(self, model=self._merged_adapter(self.adapter), adapter=None)

    def with_classes(self, labels: list[str]) -> OwnDecoder:
        return replace(self, model=Classifier(self.base, labels))

    def as_hugging_face(self) -> HuggingFaceModel:
        if self.labels:
            raise ValueError("a classifier of our own has no class in transformers. Keep its checkpoint.")
        if isinstance(self.base, CustomDecoder):
            raise ValueError(f"{type(self.base.config).__name__} has no class in transformers. Keep its checkpoint.")
        base = to_hugging_face(self.base)
        return HuggingFaceModel(
            HuggingFaceCausalLM(base), base, self.tokenizer, self.context, self.name, self.fingerprint
        )


@dataclass(frozen=True)
class OwnVerifier(_OwnModel):
    """A verifier of our own, from scratch or of an earlier run."""

    base: VerifierModel

    @classmethod
    def of(cls, base: VerifierModel, tokenizer: Tokenizer, name: str) -> OwnVerifier:
        return cls(base, base, tokenizer, base.config.max_seq_len, name, weights_fingerprint(base))

    def merged(self) -> OwnVerifier:
        if self.adapter is None:
            return self
        plain = self._merged_adapter(self.adapter)
        assert isinstance(plain, VerifierModel)
        return replace(self, model=plain, base=plain, adapter=None)

    def with_classes(self, labels: list[str]) -> OwnVerifier:
        raise ValueError(f"{self.name}: is a verifier, and gets no other head. Choose a language model.")

    def as_hugging_face(self) -> HuggingFaceModel:
        raise ValueError("a verifier of our own has no class in transformers. Keep its checkpoint.")


@dataclass(frozen=True)
class HuggingFaceModel(LoadedModel):
    """A decoder, an encoder-decoder or a classifier of `transformers`. Adapters are put into `base`."""

    base: PreTrainedModel

    def with_lora(self, lora: LoRA) -> HuggingFaceModel:
        task = "SEQ_2_SEQ_LM" if self.is_seq2seq else "SEQ_CLS" if self.labels else "CAUSAL_LM"
        return replace(self, adapter=add_lora(self.base, lora, task, self.name))

    def merged(self) -> HuggingFaceModel:
        if self.adapter is None:
            return self
        plain = self._merged_adapter(self.adapter)
        assert plain is self.base  # `model` looks into it
        return replace(self, adapter=None)

    def with_classes(self, labels: list[str]) -> HuggingFaceModel:
        if self.is_seq2seq:
            raise ValueError("an encoder-decoder gets no classification head. Use task.form=label_words.")
        from transformers import AutoModelForSequenceClassification

        config = self.base.config
        config.num_labels = len(labels)
        config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
        base = AutoModelForSequenceClassification.from_config(config)
        base.base_model.load_state_dict(self.base.base_model.state_dict())
        base.to(next(self.base.parameters()).dtype)
        return replace(self, base=base, model=Classifier(HuggingFaceCausalLM(base), labels))

    def as_hugging_face(self) -> HuggingFaceModel:
        return self

    def save(self, folder: Path) -> bool:
        config = self.base.config
        unpadded = config.pad_token_id is None
        if unpadded:  # nothing here reads it; a classifier that is loaded elsewhere does
            config.pad_token_id = self.tokenizer.eos_id
        if self.adapter is not None:
            _save_adapter(self.adapter, folder)
        else:
            with quiet_transformers():
                self.base.save_pretrained(str(folder))
        if unpadded:
            config.pad_token_id = None
        self.tokenizer.save(folder)
        return True


def weights_fingerprint(model: nn.Module) -> str:
    """Changes when another model is loaded: names, shapes and some values of every weight."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(torch.cat([flat[:32], flat[-32:]]).to(torch.bfloat16).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


@contextmanager
def quiet_transformers() -> Iterator[None]:
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


def _save_adapter(adapter: PeftModel, folder: Path) -> None:
    with quiet_transformers():
        # Embeddings are never trained beside adapters; peft would ask the hub about them.
        adapter.save_pretrained(str(folder), save_embedding_layers=False)
