"""A trained model as one plain Hugging Face model: adapters added into the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from modern_llm.experiment.contract import Paths, RunFolder, require_pretrained
from modern_llm.models.config import ModernLLMConfig
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.training.settings import Hardware


@dataclass(frozen=True)
class Merge:
    """Write `model/` in the run folder, which `transformers` loads without peft and without this project.

    Args:
        model, paths: of the same names in the configuration.
    """

    model: PretrainedModel | ModelFromRun | ModernLLMConfig
    paths: Paths = field(default_factory=Paths)
    objective_metric: ClassVar[str] = "parameters"

    def __post_init__(self) -> None:
        require_pretrained(self.model)

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Load, merge, write. Returns the number of parameters."""
        from modern_llm.experiment.loading import classifier_labels, load_model
        from modern_llm.training.runtime import Runtime

        assert not isinstance(self.model, ModernLLMConfig)
        runtime = Runtime(Hardware(device="cpu", precision="fp32"))  # where nothing is rounded
        loaded = load_model(self.model, runtime, self.paths.mirror, classifier_labels(self.model), train=False)
        merged = loaded.merged().as_hugging_face()
        merged.save(folder.path / "model")
        metrics = {"parameters": float(merged.parameter_counts()[0])}
        folder.write_json(
            "result.json",
            {
                "status": "finished",
                "metrics": metrics,
                "objective_metric": self.objective_metric,
                "headline": ["parameters"],
                "protocol": {"base_fingerprint": loaded.fingerprint, "class": type(merged.base).__name__},
                "runtime": runtime.describe(),
            },
        )
        print(f"{'model:':<12}{folder.path / 'model'}")
        return metrics
