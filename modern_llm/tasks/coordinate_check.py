"""Does a rate that is right at one width suit another? Sizes of activations over widths, in the first steps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from modern_llm.checks import require
from modern_llm.data.text.sources import PythonDocs, Source
from modern_llm.data.text.tokenizers import BPETokenizer, TokenizerChoice
from modern_llm.defaults import ROOT, Defaults
from modern_llm.experiment.contract import Paths, RunFolder, say
from modern_llm.models.config import ModernLLMConfig
from modern_llm.training.optimization.optimizers import AdamW
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    from modern_llm.data.text.tokens import TokenCorpus
    from modern_llm.training.runtime import Runtime

_DEFAULTS = Defaults("task/coordinate_check")


@dataclass(frozen=True)
class CoordinateCheck:
    """Train the model at several widths for a few steps on the same batches, at the peak rate, and tell how the size of
    each activation goes with the width: where none grows or shrinks with it, one rate serves all widths (Yang et al.
    2022, arXiv 2203.03466, appendix D.1).

    Args:
        model: a decoder; its width is replaced, and with it the number of heads, which keep their size.
        optimizer, batch_size: of the trainer.
        hardware, paths, seed: of the same names in the configuration.
        data, tokenizer: the text.
        widths: values of `model.d_model`, ascending.
        steps: optimiser steps at each width.
        seeds: models at each width, whose sizes are averaged.

    Raises:
        ValueError: an impossible value.
    """

    model: ModernLLMConfig
    optimizer: AdamW
    batch_size: int
    hardware: Hardware
    paths: Paths = field(default_factory=Paths)
    seed: int = ROOT("seed")
    data: Source = field(default_factory=PythonDocs)
    tokenizer: TokenizerChoice = field(default_factory=BPETokenizer)
    widths: list[int] = _DEFAULTS("widths")
    steps: int = _DEFAULTS("steps")
    seeds: int = _DEFAULTS("seeds")
    objective_metric: ClassVar[str] = "largest_slope"

    def __post_init__(self) -> None:
        for key in ("steps", "seeds", "batch_size"):
            require(getattr(self, key) >= 1, f"task.{key}", getattr(self, key), "must be at least 1", "Raise it")
        head = self.model.head_size
        require(len(self.widths) >= 2 and sorted({*self.widths}) == self.widths, "task.widths", self.widths,
                "must be two widths or more, ascending", "Use [64, 128, 256]")  # fmt: skip
        group = head * self.model.gqa.group_size
        require(all(width % group == 0 and width >= group for width in self.widths), "task.widths", self.widths,
                f"must be multiples of {group}, whole groups of heads of {head} numbers",
                "Change them, or model.n_heads")  # fmt: skip

    def _at(self, width: int, vocab_size: int) -> ModernLLMConfig:
        """The model at a width."""
        head = self.model.head_size
        ffn = self.model.ffn_hidden_size
        wider = None if ffn is None else ffn * width // self.model.d_model
        config = replace(self.model, d_model=width, n_heads=width // head, head_dim=None, ffn_hidden_size=wider)
        return config.with_vocab_size(vocab_size)

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Train at all widths. Returns the slope of every activation behind the last step, and the largest."""
        from modern_llm.data.text.tokens import tokenise
        from modern_llm.evaluation.coordinates import slopes
        from modern_llm.experiment.record import Measured, conclude
        from modern_llm.reporting.pages.coordinates import draw_coordinates
        from modern_llm.training.runtime import Runtime

        runtime = Runtime(self.hardware)
        tokenizer = self.tokenizer.prepare(self.data, self.paths.cache_folder, self.paths.mirror)
        corpus = tokenise(self.data, "train", tokenizer, self.paths.cache_folder, self.paths.mirror, say)
        sizes: list[list[dict[str, float]]] = []  # by width and step
        for width in self.widths:
            runs = [self._sizes(width, tokenizer.vocab_size, corpus, runtime, seed) for seed in range(self.seeds)]
            mean = [
                {name: sum(run[step][name] for run in runs) / len(runs) for name in runs[0][step]}
                for step in range(self.steps + 1)
            ]
            sizes.append(mean)
            say(f"width {width}: " + ", ".join(f"{name} {size:.3g}" for name, size in mean[-1].items()))
        found = slopes(self.widths, [of_width[-1] for of_width in sizes])
        metrics = {f"slope_{name.replace(' ', '_').replace('-', '_')}": slope for name, slope in found.items()}
        metrics["largest_slope"] = max(abs(slope) for slope in found.values())
        picture = draw_coordinates(self.widths, sizes, folder.path / "coordinates.png")
        rows: list[dict[str, Any]] = [
            {"width": width, **{name: round(size, 5) for name, size in of_width[-1].items()}}
            for width, of_width in zip(self.widths, sizes, strict=True)
        ]
        more = {
            "pictures": {"Root mean square over widths, step by step": picture.name},
            "tables": {f"Root mean square behind step {self.steps}": rows},
            "notes": ["A slope of 0: the size does not depend on the width. 0.5: it grows as the root of the width."],
        }
        protocol = {"steps": self.steps, "widths": self.widths, "seeds": self.seeds}
        headline = list(metrics)
        return conclude(folder, runtime, self.objective_metric, Measured(metrics, headline, {}, protocol, more))

    def _sizes(
        self, width: int, vocab_size: int, corpus: TokenCorpus, runtime: Runtime, seed: int
    ) -> list[dict[str, float]]:
        """Sizes in the forward pass in front of each step, and behind the last."""
        import torch

        from modern_llm.data.text.packing import PackedStream
        from modern_llm.evaluation.coordinates import watched
        from modern_llm.models.transformer import ModernDecoderLM
        from modern_llm.objectives.base import on_device
        from modern_llm.objectives.language_modeling import LanguageModeling

        torch.manual_seed(self.seed + seed)
        config = self._at(width, vocab_size)
        model = ModernDecoderLM(config).to(runtime.device).train()
        optimizer = self.optimizer.build(model)
        self.optimizer.adjust(optimizer, 1.0, 0.0)
        stream = PackedStream(corpus, config.max_seq_len, self.batch_size, self.seed + seed)
        objective, sizes = LanguageModeling(), list[dict[str, float]]()
        with watched(model) as seen:
            for step in range(self.steps + 1):
                batch = on_device(next(stream), runtime.device)
                with runtime.autocast():
                    output = objective(model, batch)
                sizes.append(dict(seen))
                if step < self.steps:
                    output.loss(objective.count(batch), len(batch["input_ids"])).backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
        return sizes
