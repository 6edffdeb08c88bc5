"""Language modelling from scratch: text, tokenizer, decoder, training, perplexity, samples, report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.text.sources import PythonDocs, Source, Split
from modern_llm.data.text.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer, TokenizerChoice
from modern_llm.evaluation.protocol import PerplexityProtocol
from modern_llm.experiment.contract import Paths, RunFolder, say
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.sampling import Sampling
from modern_llm.training.loggers import FilesOnly, Logger
from modern_llm.training.memory_plan import check_memory
from modern_llm.training.settings import Hardware, TrainerSettings

if TYPE_CHECKING:
    from modern_llm.data.text.tokens import TokenCorpus
    from modern_llm.evaluation.perplexity import Perplexity
    from modern_llm.models.transformer import ModernDecoderLM
    from modern_llm.training.runtime import Runtime


@dataclass(frozen=True)
class Samples:
    """Texts that the trained model writes for the report.

    Args:
        prompts: one sample each.
        max_new_tokens: length of each.
        sampling: how a token is chosen.
    """

    prompts: list[str] = field(default_factory=lambda: ["The"])
    max_new_tokens: int = 100
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "task.samples.max_new_tokens", self.max_new_tokens, "must be at least 1",
                "Raise it, or use task.samples.prompts=[] for no samples")  # fmt: skip


@dataclass(frozen=True)
class Pretraining:
    """Train a `ModernDecoderLM` on a text and measure its perplexity.

    Args:
        model, trainer, hardware, logger, paths, seed: of the same names in the configuration.
        data: the text.
        tokenizer: how text becomes ids.
        seq_len: tokens per training sequence.
        document_masking: attention stays inside documents, in training and evaluation.
        evaluation: how perplexity is measured.
        samples: texts for the report.
        suggested_steps: what `trainer.max_steps` is unless set.
        objective_metric: final metric that a sweep optimises.

    Raises:
        ValueError: an impossible combination, or a plan that exceeds `hardware.memory_limit_gb`.
    """

    model: ModernLLMConfig
    trainer: TrainerSettings
    hardware: Hardware
    logger: Logger = field(default_factory=FilesOnly)
    paths: Paths = field(default_factory=Paths)
    seed: int = 0
    data: Source = field(default_factory=PythonDocs)
    tokenizer: TokenizerChoice = field(default_factory=BPETokenizer)
    seq_len: int = 256
    document_masking: bool = False
    evaluation: PerplexityProtocol = field(default_factory=PerplexityProtocol)
    samples: Samples = field(default_factory=Samples)
    suggested_steps: int = 1000
    objective_metric: str = "validation_loss"

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "must not be negative", "Use 0 or more")
        require(1 <= self.seq_len <= self.model.max_seq_len, "task.seq_len", self.seq_len,
                f"must lie between 1 and model.max_seq_len={self.model.max_seq_len}",
                "Shorten the sequences or raise model.max_seq_len")  # fmt: skip
        require(
            self.suggested_steps >= 1, "task.suggested_steps", self.suggested_steps, "must be at least 1", "Raise it"
        )
        names = [f"{s}_{m}" for s in self.data.splits()[1:] for m in _METRICS]
        require(self.objective_metric in names, "task.objective_metric", self.objective_metric,
                "is not measured", f"Choose among {', '.join(names)}")  # fmt: skip
        monitors = [f"validation_{m}" for m in _TRAINING_METRICS]
        require(self.trainer.monitor in monitors, "trainer.monitor", self.trainer.monitor,
                "is not measured during training", f"Choose among {', '.join(monitors)}")  # fmt: skip
        sizes = {BPETokenizer: getattr(self.tokenizer, "vocab_size", None), ByteTokenizer: 257}
        vocab_size = sizes.get(type(self.tokenizer))
        if vocab_size is not None:
            self._check_memory(self.model.with_vocab_size(vocab_size))

    def _check_memory(self, model: ModernLLMConfig) -> None:
        check_memory(model, self.seq_len, self.trainer, self.hardware)

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Train from where the folder stands, then evaluate, sample and report. Returns the final metrics."""
        import torch

        from modern_llm.data.text.packing import PackedStream
        from modern_llm.models.transformer import ModernDecoderLM
        from modern_llm.objectives.language_modeling import LanguageModeling
        from modern_llm.training.callbacks import Progress
        from modern_llm.training.checkpoint import load_model_tensors
        from modern_llm.training.runtime import Runtime
        from modern_llm.training.trainer import Trainer

        runtime = Runtime(self.hardware)
        cache, mirror = self.paths.cache_folder, self.paths.mirror
        tokenizer = self.tokenizer.prepare(self.data, cache, mirror)
        config = self.model.with_vocab_size(tokenizer.vocab_size)
        self._check_memory(config)
        corpora = self._corpora(tokenizer)

        torch.manual_seed(self.seed)
        model = ModernDecoderLM(config)
        say(
            f"model: {config.parameter_count() / 1e6:.1f}M parameters, vocabulary {config.vocab_size}; "
            f"train: {corpora['train'].counts.tokens:,} tokens; {runtime.device}, {runtime.precision}"
        )

        def save_extras(checkpoint: Path) -> None:
            from modern_llm.config.instantiate import describe

            checkpoint.joinpath("config.yaml").write_text(describe({"model": config}))
            tokenizer.save(checkpoint / "tokenizer")

        trainer = Trainer(
            self.trainer,
            runtime,
            folder.path,
            callbacks=[Progress(), *self.logger.callbacks(folder.path, folder.record)],
            save_extras=save_extras,
        )
        data = PackedStream(
            corpora["train"], self.seq_len, self.trainer.batch_size, self.seed, document_ids=self.document_masking
        )
        evaluator = _ValidationLoss(self, corpora["validation"], runtime)
        result = trainer.fit(model, LanguageModeling(), data, evaluator, config.flops_per_token(self.seq_len))

        chosen = result.best_checkpoint or result.last_checkpoint
        if chosen is not None and chosen != result.last_checkpoint:
            load_model_tensors(model, chosen)
        model.eval()
        metrics: dict[str, float] = {}
        protocol: dict[str, Any] = {}
        for split in measured_splits(corpora):
            say(f"evaluating: {corpora[split].counts.tokens:,} tokens of the {split} split")
            measured = self._perplexity(model, corpora[split], runtime)
            metrics |= measured.metrics(split)
            protocol[split] = {
                "context": measured.context,
                "stride": measured.stride,
                "counts": vars(corpora[split].counts),
            }
        metrics |= {
            "train_loss": result.train_loss,
            "steps": result.step,
            "tokens": result.tokens,
            "seconds": result.seconds,
            "tokens_per_second": result.tokens / result.seconds if result.seconds else 0.0,
            "parameters": config.parameter_count(),
            "skipped_steps": result.skipped_steps,
            "peak_memory_gb": runtime.peak_memory_gb(),
        }
        self._report(
            folder, metrics, protocol, self._write_samples(model, tokenizer, runtime), chosen, runtime, corpora
        )
        return metrics

    def _corpora(self, tokenizer: Tokenizer) -> dict[Split, TokenCorpus]:
        from modern_llm.data.text.tokens import tokenise
        from modern_llm.hub import MissingSplitError

        corpora: dict[Split, TokenCorpus] = {}
        for split in self.data.splits():
            try:
                corpora[split] = tokenise(self.data, split, tokenizer, self.paths.cache_folder, self.paths.mirror, say)
            except MissingSplitError as missing:
                # A mirror may hold a part; what is needed to train and to choose a checkpoint may not be missing.
                if split != "test" or self.objective_metric.startswith("test_"):
                    raise
                say(f"no test figures: {missing}")
        return corpora

    def _perplexity(
        self, model: ModernDecoderLM, corpus: TokenCorpus, runtime: Runtime, max_tokens: int | None = None
    ) -> Perplexity:
        from modern_llm.evaluation.perplexity import perplexity

        context = self.evaluation.context or self.seq_len
        hardware = self.hardware
        with runtime.autocast():
            return perplexity(
                model,
                corpus,
                context=context,
                stride=min(self.evaluation.stride or context, context),
                batch_size=hardware.eval_batch_size or hardware.micro_batch_size or self.trainer.batch_size,
                device=runtime.device,
                max_tokens=max_tokens,
                document_ids=self.document_masking,
            )

    def _write_samples(self, model: ModernDecoderLM, tokenizer: Tokenizer, runtime: Runtime) -> list[dict[str, str]]:
        from modern_llm.models.generation import generate_text

        texts = []
        for number, prompt in enumerate(self.samples.prompts):
            with runtime.autocast():
                (text,) = generate_text(
                    model,
                    tokenizer,
                    prompt,
                    max_new_tokens=self.samples.max_new_tokens,
                    sampling=self.samples.sampling,
                    seed=self.seed + number,
                )
            texts.append({"prompt": prompt, "text": text})
        return texts

    def _report(
        self,
        folder: RunFolder,
        metrics: dict[str, float],
        protocol: dict[str, Any],
        samples: list[dict[str, str]],
        checkpoint: Path | None,
        runtime: Runtime,
        corpora: dict[Split, TokenCorpus],
    ) -> None:
        from modern_llm.reporting.pages.run import write_run_report
        from modern_llm.reporting.tables import visible

        folder.write_json(
            "result.json",
            {
                "status": "finished",
                "metrics": metrics,
                "headline": [f"{split}_{name}" for split in measured_splits(corpora) for name in _HEADLINE],
                "objective_metric": self.objective_metric,
                "perplexity_protocol": {
                    **protocol,
                    "tokenizer": f"{self.tokenizer} {corpora['train'].fingerprint[:12]}",
                    "separators": "context, not scored",
                    "document_masking": self.document_masking,
                },
                "data_fingerprints": {split: corpus.fingerprint for split, corpus in corpora.items()},
                "evaluated_checkpoint": checkpoint.relative_to(folder.path).as_posix() if checkpoint else None,
                "runtime": runtime.describe(),
                "samples": samples,
            },
        )
        written = write_run_report(folder.path)
        for sample in samples:
            print(f"\n--- sample: {sample['prompt']!r}\n{visible(sample['prompt'] + sample['text'])}")
        print()
        for split in measured_splits(corpora):
            print(
                f"{split}: loss {metrics[f'{split}_loss']:.4f} nats per token; perplexity "
                f"{metrics[f'{split}_token_perplexity']:.2f} per token, {metrics[f'{split}_word_perplexity']:.2f} per "
                f"word, {metrics[f'{split}_byte_perplexity']:.3f} per byte "
                f"({metrics[f'{split}_bits_per_byte']:.3f} bits per byte)"
            )
        for what, path in {"result": folder.path / "result.json", **written, "checkpoint": checkpoint}.items():
            print(f"{what + ':':<12}{path}")


_TRAINING_METRICS = ("loss", "token_perplexity")
_HEADLINE = ("token_perplexity", "word_perplexity", "bits_per_byte")
_METRICS = (*_TRAINING_METRICS, "word_perplexity", "byte_perplexity", "bits_per_byte")


class _ValidationLoss:
    """The quick evaluation during training: the beginning of the validation split."""

    metrics = tuple(f"validation_{name}" for name in _TRAINING_METRICS)

    def __init__(self, task: Pretraining, corpus: TokenCorpus, runtime: Runtime) -> None:
        self.task, self.corpus, self.runtime = task, corpus, runtime

    def __call__(self, model: ModernDecoderLM) -> dict[str, float]:
        limit = self.task.evaluation.tokens_in_training
        measured = self.task._perplexity(model, self.corpus, self.runtime, max_tokens=limit).metrics("validation")
        return {name: measured[name] for name in self.metrics}


def measured_splits(corpora: dict[Split, TokenCorpus]) -> list[Split]:
    """The splits that are not trained on."""
    return [split for split in corpora if split != "train"]
