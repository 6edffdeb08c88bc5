"""A trained model for other programs: a folder of transformers, or a GGUF file for llama.cpp, with a card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.training.settings import Hardware

_DEFAULTS = Defaults("task/export")


@dataclass(frozen=True)
class Export:
    """Write `model/` in the run folder, which other programs load without this project. Adapters are added into the
    weights.

    Args:
        model, paths: of the same names in the configuration.
        format: hugging_face, a folder for transformers; or gguf, a file for llama.cpp.
        weights: numbers of a GGUF file's matrices: f32, f16, or q8_0, eight bits in blocks of 32 with a scale each.
        license: of the model, as the hub abbreviates it, for the card; null: it says that none is given.
    """

    model: PretrainedModel | ModelFromRun
    paths: Paths = field(default_factory=Paths)
    format: Literal["hugging_face", "gguf"] = _DEFAULTS("format")
    weights: Literal["f32", "f16", "q8_0"] = _DEFAULTS("weights")
    license: str | None = _DEFAULTS("license")
    objective_metric: ClassVar[str] = "parameters"

    def __post_init__(self) -> None:
        from importlib.util import find_spec

        require(self.format != "gguf" or find_spec("gguf") is not None, "task.format", self.format,
                "needs the package gguf", "Run `pip install modern-llm[gguf]`")  # fmt: skip

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Load, merge, write. Returns the number of parameters."""
        from modern_llm.experiment.loading import classifier_labels, load_model
        from modern_llm.pretrained.gguf_export import write_gguf
        from modern_llm.reporting.model_card import model_card
        from modern_llm.training.runtime import Runtime

        runtime = Runtime(Hardware(device="cpu", precision="fp32"))  # where nothing is rounded
        loaded = load_model(self.model, runtime, self.paths.mirror, classifier_labels(self.model), train=False)
        merged, place = loaded.merged().as_hugging_face(), folder.path / "model"
        if self.format == "gguf":
            write_gguf(merged, place / "model.gguf", self.weights)
        else:
            merged.save(place)
        parameters = merged.parameter_counts()[0]
        run = _run_of(self.model)
        architecture = type(merged.base).__name__
        card = model_card(run, loaded.name, architecture, parameters, merged.context, self.format, self.license)
        (place / "README.md").write_text(card, encoding="utf-8")
        metrics = {"parameters": float(parameters)}
        protocol = {"base_fingerprint": loaded.fingerprint, "class": architecture}
        folder.write_result(self.objective_metric, metrics, protocol=protocol, runtime=runtime.describe())
        print(f"{'model:':<12}{place}")
        return metrics


def _run_of(model: PretrainedModel | ModelFromRun) -> Path | None:
    """The run that trained a model; None for one of the hub."""
    if isinstance(model, PretrainedModel):
        return None
    folder = Path(model.path).expanduser()
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder
