"""Several models as one: the perplexity of the mean of their probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from modern_llm.checks import require
from modern_llm.data.text.sources import PythonDocs, Source, Split
from modern_llm.defaults import Defaults
from modern_llm.experiment.contract import Paths, RunFolder, say
from modern_llm.pretrained.settings import PretrainedChoice, named_models
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    from torch import Tensor

    from modern_llm.data.text.tokens import TokenCorpus
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.runtime import Runtime

_LONGEST_CONTEXT = 1024

_DEFAULTS = Defaults("task/ensemble")


@dataclass(frozen=True)
class Ensemble:
    """Score a text with every model alone and with the mean of their probabilities, p(x) = 1/k sum_i p_i(x), which can
    be no worse than the models are on average (Jensen's inequality). One model is in memory at a time.

    Args:
        models: runs, checkpoints, folders of Hugging Face models and hub names, with one tokenizer.
        hardware, paths: of the same names in the configuration.
        data: the text.
        split: of the text.
        context: tokens that a model sees at most; null: what the models were made for, the shortest of them, at most
            1024.
        stride: tokens between windows; null: as context.
        max_tokens: score the beginning of the split alone; null: the whole split.

    Raises:
        ValueError: an impossible value; models with different tokenizers.
    """

    models: list[str]
    hardware: Hardware
    paths: Paths = field(default_factory=Paths)
    data: Source = field(default_factory=PythonDocs)
    split: Split = _DEFAULTS("split")
    context: int | None = _DEFAULTS("context")
    stride: int | None = _DEFAULTS("stride")
    max_tokens: int | None = _DEFAULTS("max_tokens")
    objective_metric: ClassVar[str] = "ensemble_loss"

    def __post_init__(self) -> None:
        require(len(self.models) >= 2, "task.models", self.models, "must name at least two models",
                "Give runs, such as [outputs/a,outputs/b]")  # fmt: skip
        for key in ("context", "stride", "max_tokens"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"task.{key}", value, "must be at least 1", "Raise it, or use null")
        require(self.split in self.data.splits(), "task.split", self.split, "is no split of this text",
                f"Choose among {', '.join(self.data.splits())}")  # fmt: skip
        named_models(self.models)

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Measure. Returns the figures of the ensemble, and the mean loss of its members."""
        import torch

        from modern_llm.evaluation.perplexity import summarise
        from modern_llm.experiment.record import Measured, conclude, evaluated_on
        from modern_llm.training.runtime import Runtime

        runtime = Runtime(self.hardware)
        choices = named_models(self.models)
        context = self.context or self._shortest(choices, runtime)
        stride = min(self.stride or context, context)
        rows: list[dict[str, Any]] = []
        likelihood: Tensor | None = None  # log of the sum of the probabilities so far
        tokenizer, corpus = "", None
        for number, (name, choice) in enumerate(choices.items(), 1):
            loaded = self._load(choice, runtime)
            require(tokenizer in ("", loaded.tokenizer.fingerprint), "task.models", name,
                    "has another tokenizer than the models before it", "Leave it out")  # fmt: skip
            tokenizer, corpus = loaded.tokenizer.fingerprint, self._corpus(loaded)
            losses = self._losses(loaded, corpus, runtime, context, stride)
            likelihood = -losses if likelihood is None else torch.logaddexp(likelihood, -losses)
            together = torch.log(torch.tensor(float(number))) - likelihood
            alone, joint = (summarise([x], corpus, context, stride, self.max_tokens) for x in (losses, together))
            rows.append({"models": number, "added": name, "loss": alone.loss, "ensemble_loss": joint.loss,
                         "ensemble_perplexity": joint.token_perplexity})  # fmt: skip
            say(f"{name}: loss {alone.loss:.4f} alone, {joint.loss:.4f} as one of {number}")
        assert corpus is not None
        metrics = joint.metrics("ensemble") | {"mean_loss": sum(row["loss"] for row in rows) / len(rows)}
        on = evaluated_on(self.data.fingerprint(self.split, self.paths.mirror), corpus.counts.documents, tokenizer)
        headline = ["ensemble_loss", "mean_loss", "ensemble_token_perplexity", "ensemble_word_perplexity"]
        protocol = {"context": context, "stride": stride, "models": self.models}
        measured = Measured(metrics, headline, {"": on}, protocol, {"tables": {"Model by model": rows}})
        return conclude(folder, runtime, self.objective_metric, measured)

    def _load(self, choice: PretrainedChoice, runtime: Runtime) -> LoadedModel:
        from modern_llm.experiment.loading import load_model

        loaded = load_model(choice, runtime, self.paths.mirror, [], train=False)
        loaded.model.eval()
        return loaded

    def _shortest(self, choices: dict[str, PretrainedChoice], runtime: Runtime) -> int:
        """Tokens of context that all models were made for."""
        return min(self._load(choice, runtime).context or _LONGEST_CONTEXT for choice in choices.values())

    def _corpus(self, loaded: LoadedModel) -> TokenCorpus:
        from modern_llm.data.text.tokens import tokenise

        return tokenise(self.data, self.split, loaded.tokenizer, self.paths.cache_folder, self.paths.mirror, say)

    def _losses(self, loaded: LoadedModel, corpus: TokenCorpus, runtime: Runtime, context: int, stride: int) -> Tensor:
        """(N,) of every scored token, in nats."""
        import torch

        from modern_llm.evaluation.perplexity import token_losses

        with runtime.autocast():
            found = token_losses(
                loaded.decoder,
                corpus,
                context=context,
                stride=stride,
                batch_size=self.hardware.eval_rows,
                device=runtime.device,
                max_tokens=self.max_tokens,
            )
            return torch.cat(list(found))
