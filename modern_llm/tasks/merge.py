"""A trained model as one plain Hugging Face model: adapters added into the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.training.settings import Hardware


@dataclass(frozen=True)
class Merge:
    """Write `model/` in the run folder, which `transformers` loads without peft and without this project.

    Args:
        model, paths: of the same names in the configuration.
    """

    model: PretrainedModel | ModelFromRun
    paths: Paths = field(default_factory=Paths)
    objective_metric: ClassVar[str] = "parameters"

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Load, merge, write. Returns the number of parameters."""
        from modern_llm.experiment.loading import classifier_labels, load_model
        from modern_llm.training.runtime import Runtime

        runtime = Runtime(Hardware(device="cpu", precision="fp32"))  # where nothing is rounded
        loaded = load_model(self.model, runtime, self.paths.mirror, classifier_labels(self.model), train=False)
        merged = loaded.merged().as_hugging_face()
        merged.save(folder.path / "model")
        metrics = {"parameters": float(merged.parameter_counts()[0])}
        protocol = {"base_fingerprint": loaded.fingerprint, "class": type(merged.base).__name__}
        folder.write_result(self.objective_metric, metrics, protocol=protocol, runtime=runtime.describe())
        print(f"{'model:':<12}{folder.path / 'model'}")
        return metrics
