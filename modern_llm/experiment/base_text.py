"""The text that a model was trained on, from the record of its run."""

from __future__ import annotations

from typing import Any

from modern_llm.config.instantiate import build
from modern_llm.data.text.sources import Source
from modern_llm.files import read_yaml
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel


def text_of(choice: PretrainedModel | ModelFromRun) -> Source:
    """The text of the run that trained a model from scratch, however often it was finetuned since.

    Raises:
        ValueError: there is no such run.
    """
    record: Any = {}
    if isinstance(choice, ModelFromRun):
        file = choice.checkpoint().parents[1] / "config.yaml"
        record = read_yaml(file) if file.is_file() else {}
    task, model = (record.get(key) or {} for key in ("task", "model"))
    if str(task.get("_target_", "")).endswith(".Pretraining"):
        return build(task["data"], "task.replay.data")
    if str(model.get("_target_", "")).endswith(".ModelFromRun"):
        return text_of(build(model, "model"))
    raise ValueError(
        "task.replay.data=None: the model is not that of a run that was trained on a text, so nobody knows what "
        "it read. Name a text: task/replay=text /task/data@task.replay.data=wikitext2"
    )
