"""Pretraining: a decoder from scratch on a text, or a model that is there already on more of it; and its perplexity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.text.ramp import Ramp
from modern_llm.data.text.shards import ShardedText
from modern_llm.data.text.sources import PythonDocs, Source, Split
from modern_llm.data.text.tokenizers import BPETokenizer, ByteTokenizer, TokenizerChoice
from modern_llm.defaults import Defaults
from modern_llm.evaluation.metrics.registry import directions
from modern_llm.evaluation.protocol import PerplexityProtocol
from modern_llm.experiment.contract import say
from modern_llm.experiment.samples import Samples
from modern_llm.experiment.training import Parts, Session, TrainingTask, require_metric
from modern_llm.models.custom import FromScratch
from modern_llm.objectives.settings import NextToken, TextObjective
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel

if TYPE_CHECKING:
    from modern_llm.data.text.tokens import TokenCorpus
    from modern_llm.evaluation.perplexity import Perplexity
    from modern_llm.experiment.record import Measured
    from modern_llm.objectives.base import Batch
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.contract import DataStream
    from modern_llm.training.memory.plan import Step

_LONGEST = 1024  # tokens of a sequence, unless asked for, where a model would take more
_MONITORED = ("loss", "token_perplexity")
_HEADLINE = ("token_perplexity", "word_perplexity", "bits_per_byte")
_METRICS = (*_MONITORED, "word_perplexity", "byte_perplexity", "bits_per_byte")


_DEFAULTS = Defaults("task/pretraining")


@dataclass(frozen=True, kw_only=True)
class Pretraining(TrainingTask):
    """Train on a text by predicting its next token, and measure the perplexity.

    Args:
        model, trainer, hardware, logger, paths, seed, suggested_steps, objective_metric: as in `TrainingTask`. What
            begins with random weights is trained from scratch; a model that is there already is trained further.
        train: false: measure the model as it is.
        data: the text.
        train_tokens: only the first so many of the training text are there, for as many epochs as training lasts; null:
            all.
        tokenizer: how text becomes ids for a model from scratch; any other brings its own.
        seq_len: tokens per training sequence; null: what the model was made for, at most 1024.
        shuffle_documents: each epoch strings the documents together in an order of its own; else blocks of the corpus
            as it stands are shuffled.
        ramp: smaller batches or shorter sequences at first; null: none.
        document_masking: attention stays inside documents, in training and evaluation.
        evaluation: how perplexity is measured.
        objective: what is minimised.
        samples: texts for the report.

    Raises:
        ValueError: an impossible combination.
    """

    model: FromScratch | PretrainedModel | ModelFromRun
    train: bool = _DEFAULTS("train")
    data: Source = field(default_factory=PythonDocs)
    train_tokens: int | None = _DEFAULTS("train_tokens")
    tokenizer: TokenizerChoice = field(default_factory=BPETokenizer)
    seq_len: int | None = None
    shuffle_documents: bool = _DEFAULTS("shuffle_documents")
    ramp: Ramp | None = None
    document_masking: bool = _DEFAULTS("document_masking")
    evaluation: PerplexityProtocol = field(default_factory=PerplexityProtocol)
    objective: TextObjective = field(default_factory=NextToken)
    samples: Samples
    suggested_steps: int = _DEFAULTS("suggested_steps")
    objective_metric: str = _DEFAULTS("objective_metric")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.train_tokens is None or self.train_tokens > 0, "task.train_tokens", self.train_tokens,
                "must be positive", "Leave it out for all of the text")  # fmt: skip
        require(self.train_tokens is None or not isinstance(self.data, ShardedText), "task.train_tokens",
                self.train_tokens, "cannot cut a corpus in shards", "Name fewer in task.data.files")  # fmt: skip
        require_metric(self, [f"{s}_{m}" for s in self.data.splits()[1:] for m in _METRICS], _MONITORED)
        if not isinstance(self.model, FromScratch):
            return
        if self.ramp is not None:
            self.ramp.check(self.trainer.batch_size, self.seq_len or self.model.max_seq_len)
        require(self.train, "task.train", self.train, "leaves a model from scratch untrained",
                "Choose model=from_run with model.path=<run>, or a pretrained model")  # fmt: skip
        longest = self.model.max_seq_len
        require(self.seq_len is None or self.seq_len <= longest, "task.seq_len", self.seq_len,
                f"must lie between 1 and model.max_seq_len={longest}",
                "Shorten the sequences or raise model.max_seq_len")  # fmt: skip

    def trains(self) -> bool:
        return self.train

    def read(self, at: Session) -> None:
        require(next(iter(self.data.documents("train", self.paths.mirror)), None) is not None, "task.data", self.data,
                "has no text", "Check the source")  # fmt: skip

    def load(self, at: Session) -> LoadedModel:
        from modern_llm.experiment.loading import is_encoder_decoder, load_model

        mirror = self.paths.mirror
        if isinstance(self.model, FromScratch):
            loaded = self._from_scratch(self.model, at)
        elif is_encoder_decoder(self.model, mirror):
            raise ValueError("model: an encoder-decoder gives no text a perplexity. Choose a decoder, such as gpt2.")
        else:
            loaded = load_model(self.model, at.runtime, mirror, [], self.train)
        require(self.seq_len is None or loaded.context is None or self.seq_len <= loaded.context, "task.seq_len",
                self.seq_len, f"is longer than the model's context of {loaded.context} tokens",
                "Shorten the sequences")  # fmt: skip
        at.data = self._corpora(loaded)
        return loaded

    def sketch(self, at: Session) -> LoadedModel:
        from modern_llm.experiment.loading import load_model
        from modern_llm.models.custom_decoder import decoder_of
        from modern_llm.pretrained.loaded import OwnDecoder

        if not isinstance(self.model, FromScratch):
            return load_model(self.model, at.runtime, self.paths.mirror, [], self.train)
        # Only the number of ids matters, and a tokenizer that is trained says it beforehand.
        known = isinstance(self.tokenizer, BPETokenizer)
        choice = ByteTokenizer() if known else self.tokenizer
        tokenizer = choice.prepare(self.data, self.paths.cache_folder, self.paths.mirror)
        size = self.tokenizer.vocab_size if isinstance(self.tokenizer, BPETokenizer) else tokenizer.vocab_size
        return OwnDecoder.of(decoder_of(self.model.with_vocab_size(size)), tokenizer, "decoder from scratch")

    def rehearsal(self, at: Session) -> Step:
        import torch

        from modern_llm.training.memory.plan import Step

        length = self._length(at.loaded)

        def batch(rows: int) -> Batch:
            ids = torch.zeros(rows, length, dtype=torch.long)
            found = {"input_ids": ids, "labels": ids}
            if self.document_masking:  # of two documents in each row
                found["document_ids"] = (torch.arange(length) >= length // 2).long().expand(rows, -1)
            return found

        return Step(at.loaded.model, self.objective.build(), batch)

    def _from_scratch(self, model: FromScratch, at: Session) -> LoadedModel:
        import torch

        from modern_llm.models.custom_decoder import decoder_of
        from modern_llm.pretrained.loaded import OwnDecoder

        tokenizer = self.tokenizer.prepare(self.data, self.paths.cache_folder, self.paths.mirror)
        config = model.with_vocab_size(tokenizer.vocab_size)
        torch.manual_seed(self.seed)  # whether or not the tokenizer had to be trained
        return OwnDecoder.of(decoder_of(config).to(at.runtime.device), tokenizer, "decoder from scratch")

    def parts(self, at: Session) -> Parts:
        limit = self.evaluation.tokens_in_training

        def measure() -> dict[str, float]:
            return self._perplexity(at, at.data["validation"], limit).metrics("validation")

        return Parts(self._stream(at), self.objective.build(), _ValidationLoss(measure))

    def _stream(self, at: Session) -> DataStream:
        from modern_llm.data.text.packing import PackedStream
        from modern_llm.data.text.shard_stream import ShardStream

        tokenizer, length, rows = at.loaded.tokenizer, self._length(at.loaded), self.trainer.batch_size
        if self.ramp is not None:
            self.ramp.check(rows, length)
        packing: dict[str, Any] = {"document_ids": self.document_masking, "shuffle_documents": self.shuffle_documents,
                                   "ramp": self.ramp}  # fmt: skip
        if isinstance(self.data, ShardedText):
            place = (self.paths.cache_folder, self.paths.mirror)
            stream = ShardStream(self.data, tokenizer, *place, length, rows, self.seed, **packing, report=say)
            say(f"train: {len(stream.shards)} shards, vocabulary {tokenizer.vocab_size}")
            return stream
        train = at.data["train"]
        say(f"train: {train.counts.tokens:,} tokens, vocabulary {tokenizer.vocab_size}")
        return PackedStream(train, length, rows, self.seed, **packing)

    def measure(self, at: Session) -> Measured:
        from modern_llm.experiment.record import Measured, evaluated_on

        splits = [split for split in at.data if split != "train"]
        metrics: dict[str, float] = {}
        protocol: dict[str, Any] = {}
        on = {}
        for split in splits:
            corpus = at.data[split]
            say(f"evaluating: {corpus.counts.tokens:,} tokens of the {split} split")
            measured = self._perplexity(at, corpus)
            metrics |= measured.metrics(split)
            protocol[split] = {"context": measured.context, "stride": measured.stride, "counts": vars(corpus.counts)}
            text = self.data.fingerprint(split, self.paths.mirror)
            on[split] = evaluated_on(text, corpus.counts.documents, at.loaded.tokenizer.fingerprint)
        protocol |= {
            "tokenizer": f"{self.tokenizer if isinstance(self.model, FromScratch) else at.loaded.name}",
            "separators": "context, not scored",
            "document_masking": self.document_masking,
        }
        samples = self.samples.continued(at.loaded, at.runtime, self.seed)
        headline = [f"{split}_{name}" for split in splits for name in _HEADLINE]
        return Measured(metrics, headline, on, {}, {"samples": samples, "perplexity_protocol": protocol})

    def flops_per_token(self, at: Session) -> float:
        return at.loaded.flops_per_token(self._length(at.loaded))

    def _length(self, loaded: LoadedModel) -> int:
        """Tokens per training sequence."""
        if self.seq_len is not None:
            return self.seq_len
        if isinstance(self.model, FromScratch):
            return self.model.max_seq_len
        return min(loaded.context or _LONGEST, _LONGEST)

    def _corpora(self, loaded: LoadedModel) -> dict[Split, TokenCorpus]:
        from modern_llm.data.text.tokens import tokenise
        from modern_llm.hub import MissingSplitError

        corpora: dict[Split, TokenCorpus] = {}
        cache, mirror = self.paths.cache_folder, self.paths.mirror
        whole = self.train and not isinstance(self.data, ShardedText)  # whose shards are tokenised as they come
        for split in self.data.splits() if whole else self.data.splits()[1:]:
            try:
                corpora[split] = tokenise(self.data, split, loaded.tokenizer, cache, mirror, say)
            except MissingSplitError as missing:
                # A mirror may hold a part; what is needed to train and to choose a checkpoint may not be missing.
                if split != "test" or self.objective_metric.startswith("test_"):
                    raise
                say(f"no test figures: {missing}")
        if "train" in corpora and self.train_tokens is not None:
            corpora["train"] = corpora["train"].head(self.train_tokens)
        return corpora

    def _perplexity(self, at: Session, corpus: TokenCorpus, max_tokens: int | None = None) -> Perplexity:
        from modern_llm.evaluation.perplexity import perplexity

        context = self.evaluation.context or self._length(at.loaded)
        hardware = self.hardware
        with at.runtime.autocast():
            return perplexity(
                at.loaded.decoder,
                corpus,
                context=context,
                stride=min(self.evaluation.stride or context, context),
                batch_size=hardware.eval_batch_size or hardware.rows_at_once(self.trainer.batch_size),
                device=at.runtime.device,
                max_tokens=max_tokens,
                document_ids=self.document_masking,
            )


class _ValidationLoss:
    """The quick evaluation during training: the beginning of the validation split.

    Args:
        measure: gives the figures of the model as it is.
    """

    def __init__(self, measure: Callable[[], dict[str, float]]) -> None:
        self.measure = measure
        self.metrics = directions([f"validation_{name}" for name in _MONITORED])

    def __call__(self, model: Any) -> dict[str, float]:
        found = self.measure()
        return {name: found[name] for name in self.metrics}
