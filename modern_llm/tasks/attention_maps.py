"""Who attends to whom in a text: heat maps as pictures, and a page on which a token shows what it attends to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.experiment.contract import Paths, RunFolder, say, tell_paths
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.training.settings import Hardware

_DEFAULTS = Defaults("task/attention_maps")


@dataclass(frozen=True)
class AttentionMapsOfText:
    """Read a text with a decoder, and show its attention by layer and head, with the mass on sinks and the entropy.

    Args:
        model, hardware, paths: of the same names in the configuration.
        text: what is read.
        max_tokens: of the text that are read.

    Raises:
        ValueError: an empty text, or a model that is not trained.
    """

    model: PretrainedModel | ModelFromRun
    hardware: Hardware
    paths: Paths = field(default_factory=Paths)
    text: str = _DEFAULTS("text")
    max_tokens: int = _DEFAULTS("max_tokens")
    objective_metric: ClassVar[str] = "sink_mass"

    def __post_init__(self) -> None:
        require(bool(self.text), "task.text", self.text, "is empty", "Give a text")
        require(2 <= self.max_tokens <= 512, "task.max_tokens", self.max_tokens, "must lie between 2 and 512",
                "A page of more tokens cannot be read")  # fmt: skip

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Read, draw and write. Returns the mean sink mass and entropy."""
        from modern_llm.evaluation.attention_maps import attention_maps, token_labels
        from modern_llm.experiment.loading import load_model
        from modern_llm.reporting.pages import blocks
        from modern_llm.reporting.pages.attention import attention_figure, draw_heads, draw_maps
        from modern_llm.reporting.tables import write_csv
        from modern_llm.training.runtime import Runtime

        runtime = Runtime(self.hardware)
        loaded = load_model(self.model, runtime, self.paths.mirror, [], train=False).merged()
        loaded.decoder.eval()
        every = loaded.start_ids + loaded.tokenizer.encode(self.text)
        ids = every[: self.max_tokens]
        require(len(ids) >= 2, "task.text", self.text, "has fewer than two tokens", "Give a longer one")
        if len(ids) < len(every):
            say(f"the first {len(ids)} of {len(every)} tokens are read (task.max_tokens)")
        maps = attention_maps(loaded.base, ids)
        labels = token_labels(loaded.tokenizer, ids)
        mass, entropy = maps.sink_mass(), maps.entropy()
        rows = [
            {
                "layer": layer,
                "head": head,
                "sink_mass": float(mass[layer, head]),
                "entropy": float(entropy[layer, head]),
            }
            for layer in range(len(mass))
            for head in range(mass.shape[1])
        ]
        written = {
            "csv": write_csv(["layer", "head", "sink_mass", "entropy"], rows, folder.path / "heads.csv"),
            "maps": draw_maps(maps.weights.numpy(), folder.path / "attention_maps.png"),
            "heads": draw_heads(mass.numpy(), entropy.numpy(), folder.path / "heads.png"),
        }
        metrics: dict[str, float] = {
            "sink_mass": float(mass.mean()),
            "entropy": float(entropy.mean()),
            "tokens": len(ids),
        }
        counted = f"{maps.n_sinks} learned sinks and " if maps.n_sinks else ""
        what = f"sink mass: attention to {counted}the first {maps.kept_tokens} tokens; entropy in nats"
        sections = [
            blocks.section("What a token attends to", attention_figure(maps.weights.numpy(), labels, maps.n_sinks)),
            blocks.section("Heads", blocks.picture(written["heads"], "sink mass and entropy of heads"), note=what),
            blocks.section("Maps", blocks.picture(written["maps"], "attention of every layer and head"),
                           note="One map a head: rows are tokens that look, columns what they look at."),
            blocks.section("By head", blocks.table(["layer", "head", "sink_mass", "entropy"], rows)),
            blocks.section("Where it ran", blocks.facts(runtime.describe())),
        ]  # fmt: skip
        page = blocks.page(f"Attention of {loaded.name}", f"{len(ids)} tokens", sections)
        written["report"] = blocks.write_page(folder.path / "report.html", page)
        protocol = {"text": self.text, "sink_mass": what, "base_fingerprint": loaded.fingerprint}
        folder.write_result(self.objective_metric, metrics, protocol=protocol, runtime=runtime.describe())
        tell_paths(written)
        return metrics
