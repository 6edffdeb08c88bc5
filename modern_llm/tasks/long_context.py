"""Does quality stay as it is far beyond the training length? Loss by position, by model and cache policy."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from modern_llm.checks import require
from modern_llm.data.text.sources import PythonDocs, Source, Split
from modern_llm.defaults import Defaults
from modern_llm.experiment.contract import Paths, RunFolder, require_pretrained, say, tell_paths
from modern_llm.models.attention.sinks import StreamingSinks
from modern_llm.models.config import ModernLLMConfig
from modern_llm.pretrained.settings import ModelFromRun, PretrainedChoice, PretrainedModel, named_models
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    import torch

    from modern_llm.evaluation.long_context import LossByPosition
    from modern_llm.models.transformer import ModernDecoderLM
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.runtime import Runtime

_POLICIES = ("full", "window", "streaming", "own", "recomputed")
_IN_WORDS = {
    "full": "every token kept",
    "window": "the last tokens kept",
    "streaming": "the first tokens and the last ones kept",
    "own": "as it was trained",
    "recomputed": "the context read anew",
}
_HOLDS, _COLLAPSES = 0.1, 1.0  # nats per token above the recomputed loss


_DEFAULTS = Defaults("task/long_context")


@dataclass(frozen=True)
class LongContext:
    """Read long texts through a cache, and tell the loss by position.

    Policies: `full` keeps every token; `window` the last `window`; `streaming` the first `num_sinks` and the last ones
    (StreamingLLM); `own` what a model with sinks was trained with; `recomputed` reads windows of `base_length` tokens
    anew, and is what the others are held against. Models with learned sinks have `own` and `recomputed`, those without
    have no `own`.

    Args:
        model, hardware, paths: of the same names in the configuration.
        models: runs, checkpoints, folders of Hugging Face models and hub names; empty: `model`.
        data, split: the text.
        base_length: tokens that count as 1x; null: what the models were trained for, the shortest of them.
        factors: lengths that are told of, ascending, as multiples of `base_length`.
        policies: those to measure.
        window: tokens that the bounded caches hold; null: `base_length`.
        num_sinks: first tokens that `streaming` keeps.
        texts: pieces of the text that are read.
        chunk: tokens read at a time.
    """

    model: PretrainedModel | ModelFromRun | ModernLLMConfig
    hardware: Hardware
    paths: Paths = field(default_factory=Paths)
    models: list[str] = _DEFAULTS("models")
    data: Source = field(default_factory=PythonDocs)
    split: Split = _DEFAULTS("split")
    base_length: int | None = _DEFAULTS("base_length")
    factors: list[int] = _DEFAULTS("factors")
    policies: list[str] = _DEFAULTS("policies")
    window: int | None = _DEFAULTS("window")
    num_sinks: int = _DEFAULTS("num_sinks")
    texts: int = _DEFAULTS("texts")
    chunk: int = _DEFAULTS("chunk")
    objective_metric: ClassVar[str] = "curves"

    def __post_init__(self) -> None:
        if not self.models:
            require_pretrained(self.model)
        for key in ("base_length", "window", "num_sinks", "texts", "chunk"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"task.{key}", value, "must be at least 1", "Raise it")
        require(bool(self.factors) and sorted({*self.factors}) == self.factors and self.factors[0] >= 1, "task.factors",
                self.factors, "must be whole numbers from 1 on, ascending", "Use [1, 2, 4, 16, 64]")  # fmt: skip
        unknown = [name for name in self.policies if name not in _POLICIES]
        require(bool(self.policies) and not unknown, "task.policies", self.policies, "must name known policies",
                f"Choose among {', '.join(_POLICIES)}")  # fmt: skip
        require(self.window is None or self.window > self.num_sinks, "task.window", self.window,
                f"must be above task.num_sinks={self.num_sinks}", "Raise it")  # fmt: skip
        self._choices()

    def _choices(self) -> dict[str, PretrainedChoice]:
        """Models by what they are called: the ends of their paths, as long as these differ."""
        if not self.models:
            assert not isinstance(self.model, ModernLLMConfig)
            named = [self.model.path if isinstance(self.model, ModelFromRun) else self.model.name]
            return {Path(named[0]).name: self.model}
        return named_models(self.models)

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Read with every model under every policy, and tell what came out. Returns the losses by length."""
        from modern_llm.training.runtime import Runtime

        runtime = Runtime(self.hardware)
        loaded = {name: self._load(choice, runtime) for name, choice in self._choices().items()}
        length = self.base_length or min(own.context or 1024 for own, _ in loaded.values())
        window = self.window or length
        require(window > self.num_sinks, "task.num_sinks", self.num_sinks, f"must be below the {window} tokens held",
                "Lower it, or raise task.window")  # fmt: skip
        measured: dict[str, dict[str, LossByPosition]] = {}
        seconds: dict[str, float] = {}
        for name, (model, decoder) in loaded.items():
            ids = self._ids(model, length)
            measured[name] = {}
            for policy in self._policies(decoder):
                start = time.perf_counter()
                with runtime.autocast():
                    measured[name][policy] = self._read(model, decoder, policy, ids, length, window, runtime.device)
                seconds[f"{name}: {policy}"] = time.perf_counter() - start
                end = measured[name][policy].mean(length * self.factors[-1] // 2, length * self.factors[-1])
                took = seconds[f"{name}: {policy}"]
                say(
                    f"{name}, {_IN_WORDS[policy]}: loss {end:.3f} at the end, {ids[:, 1:].numel() / took:,.0f} tokens/s"
                )
        return self._write(folder, runtime, measured, length, window, seconds)

    def _load(self, choice: PretrainedChoice, runtime: Runtime) -> tuple[LoadedModel, ModernDecoderLM | None]:
        """A model, and the same one as our decoder where it can be; only this one has policies to choose from."""
        from modern_llm.experiment.loading import load_model
        from modern_llm.models.custom_decoder import CustomDecoder
        from modern_llm.models.interop.importing import from_hugging_face
        from modern_llm.models.transformer import ModernDecoderLM

        loaded = load_model(choice, runtime, self.paths.mirror, [], train=False)
        loaded = loaded.merged()
        decoder = loaded.decoder.eval()
        if isinstance(decoder, ModernDecoderLM):
            return loaded, decoder
        if isinstance(decoder, CustomDecoder):
            return loaded, None
        try:
            return loaded, from_hugging_face(decoder.model).to(runtime.device).eval()
        except ValueError as cause:
            say(f"{loaded.name}: measured with a full cache alone ({cause})")
            return loaded, None

    def _policies(self, decoder: ModernDecoderLM | None) -> list[Any]:
        """Those of the policies that suit a model."""
        if decoder is None:
            return ["full"]
        sinks = decoder.config.active_sinks
        unsuited = {"own"} if sinks is None else set()
        if sinks is not None and not isinstance(sinks, StreamingSinks):
            unsuited = {"full", "window", "streaming"}
        return [policy for policy in self.policies if policy not in unsuited]

    def _ids(self, loaded: LoadedModel, length: int) -> torch.Tensor:
        """(B, N + 1) the texts in a model's tokens."""
        from modern_llm.data.text.tokens import tokenise
        from modern_llm.evaluation.long_context import long_texts

        corpus = tokenise(self.data, self.split, loaded.tokenizer, self.paths.cache_folder, self.paths.mirror, say)
        first = (loaded.start_ids or [loaded.tokenizer.eos_id])[0]
        return long_texts(corpus, length * self.factors[-1], self.texts, first)

    def _read(
        self,
        loaded: LoadedModel,
        decoder: ModernDecoderLM | None,
        policy: Any,
        ids: torch.Tensor,
        length: int,
        window: int,
        device: torch.device,
    ) -> LossByPosition:
        from modern_llm.evaluation.long_context import LossByPosition, recomputed_nll, streamed_nll, under_policy

        model = decoder or loaded.decoder
        if policy == "recomputed":
            nll = recomputed_nll(model, ids, min(length, loaded.context or length), device)
        elif decoder is None:
            context = loaded.context or ids.shape[1]
            require(ids.shape[1] - 1 <= context, "task.factors", self.factors,
                    f"asks for {ids.shape[1] - 1} tokens, and {loaded.name} has {context} positions",
                    "Lower task.base_length or task.factors")  # fmt: skip
            nll = streamed_nll(model, ids, self.chunk, device)
        else:
            nll = streamed_nll(under_policy(decoder, policy, window, self.num_sinks), ids, self.chunk, device)
        return LossByPosition(nll, ids, loaded.tokenizer.eos_id)

    def _write(
        self,
        folder: RunFolder,
        runtime: Runtime,
        measured: dict[str, dict[str, LossByPosition]],
        length: int,
        window: int,
        seconds: dict[str, float],
    ) -> dict[str, float]:
        from modern_llm.evaluation.long_context import curve, fine_edges
        from modern_llm.reporting.pages import blocks
        from modern_llm.reporting.pages.long_context import draw_long_context
        from modern_llm.reporting.tables import markdown, write_csv

        edges = [0, *(length * factor for factor in self.factors)]
        rows: list[dict[str, Any]] = []
        curves: dict[str, list[dict[str, Any]]] = {}
        notes: list[str] = []
        metrics: dict[str, float] = {}
        for name, by_policy in measured.items():
            for policy, losses in by_policy.items():
                label = f"{name}: {policy}"
                curves[label] = curve(losses, fine_edges(edges[-1]))
                row: dict[str, Any] = {"model": name, "policy": policy}
                for factor, start, stop in zip(self.factors, edges, edges[1:], strict=False):
                    row[f"{factor}x"] = losses.mean(start, stop)
                    metrics[f"{name}_{policy}_{factor}x_loss"] = row[f"{factor}x"]
                row["seconds"] = seconds[label]
                rows.append(row)
                if policy != "recomputed" and "recomputed" in by_policy:
                    said, row["above recomputed"] = verdict(losses, by_policy["recomputed"], edges[-2], edges[-1])
                    notes.append(f"{name}, {_IN_WORDS[policy]}, at {self.factors[-1]}x of {length} tokens: {said}")
        metrics["curves"] = len(rows)
        protocol = {
            "data": str(self.data),
            "split": self.split,
            "1x": f"{length} tokens",
            "cache of window and streaming": f"{window} tokens, {self.num_sinks} of them first tokens in streaming",
            "texts": min(losses.nll.shape[0] for by in measured.values() for losses in by.values()),
            "loss": "nats per token; separators between documents are not counted",
            "column": "the positions between the length before and this one",
        }
        columns = list(dict.fromkeys(key for row in rows for key in row))
        written = {
            "csv": write_csv(columns, rows, folder.path / "long_context.csv"),
            "curves": folder.write_json("curves.json", curves),
            "picture": draw_long_context(curves, length, self.factors, folder.path / "long_context.png"),
        }
        sections = [
            blocks.section("In words", "".join(f"<p>{blocks.text(note)}</p>" for note in notes)),
            blocks.section("Loss by position", blocks.picture(written["picture"], "loss by position")),
            blocks.section("Loss by length", blocks.table(columns, rows)),
            blocks.section("How it was measured", blocks.facts(protocol), blocks.facts(runtime.describe())),
        ]
        page = blocks.page("Loss far beyond the training length", ", ".join(measured), sections)
        written["report"] = blocks.write_page(folder.path / "report.html", page)
        headline = [f"{row['model']}_{row['policy']}_{self.factors[-1]}x_loss" for row in rows]
        about = {"protocol": protocol, "runtime": runtime.describe(), "notes": notes}
        folder.write_result(self.objective_metric, metrics, headline, **about)
        print(markdown(columns, rows))
        for note in notes:
            print(note)
        tell_paths(written)
        return metrics


def verdict(losses: LossByPosition, reference: LossByPosition, start: int, stop: int) -> tuple[str, float]:
    """Whether quality holds in the positions start..stop-1 against reading the context anew, in words, and by how many
    nats a token it is worse."""
    from modern_llm.reporting.comparison.intervals import Mean

    gap = Mean.of(losses.block_differences(reference, start, stop))
    low, high = gap.interval or (gap.mean, gap.mean)
    word = "may hold" if low <= _HOLDS else "gets worse"
    if high <= _HOLDS:
        word = "holds"
    elif low >= _COLLAPSES:
        word = "collapses"
    one, other = (math.exp(min(x.mean(start, stop), 700.0)) for x in (losses, reference))
    return (
        f"it {word}. Perplexity {one:.2f} against {other:.2f} where the context is read anew: {gap.mean:+.3f} nats "
        f"per token (95 % interval {low:+.3f} to {high:+.3f})"
    ), gap.mean
