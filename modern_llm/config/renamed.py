"""Names of before: records that carry them are still read, and a person who types one is told the new one."""

from __future__ import annotations

from typing import Any

# Modules that configurations and checkpoints name in `_target_`.
_MODULES = {
    "modern_llm.orchestration.pipeline": "modern_llm.runs.pipeline.task",
    "modern_llm.runs.pipeline": "modern_llm.runs.pipeline.task",
    "modern_llm.runs.policies": "modern_llm.runs.pipeline.settings",
    "modern_llm.orchestration.plan": "modern_llm.runs.plan",
    "modern_llm.data.sources": "modern_llm.data.text.sources",
    "modern_llm.data.tokenizers": "modern_llm.data.text.tokenizers",
    "modern_llm.data.supervised": "modern_llm.data.labelled",
    "modern_llm.data.instruction_settings": "modern_llm.data.instructions.settings",
    "modern_llm.data.preference_settings": "modern_llm.data.preferences.settings",
    "modern_llm.data.solution_settings": "modern_llm.data.solutions.settings",
    "modern_llm.tasks.base": "modern_llm.experiment.contract",
    "modern_llm.tasks.solving": "modern_llm.experiment.problems",
    "modern_llm.tasks.alignment": "modern_llm.runs.pipeline.settings",
    "modern_llm.tasks.language_modeling": "modern_llm.tasks.pretraining",
    "modern_llm.models.rope": "modern_llm.models.attention.rope",
    "modern_llm.models.sinks": "modern_llm.models.attention.sinks",
    "modern_llm.models.sampling": "modern_llm.models.decoding.sampling",
    "modern_llm.training.loggers": "modern_llm.training.logs.loggers",
    "modern_llm.training.optimizers": "modern_llm.training.optimization.optimizers",
    "modern_llm.training.schedules": "modern_llm.training.optimization.schedules",
}
_CLASSES = {
    "modern_llm.tasks.pretraining.LanguageModeling": "modern_llm.tasks.pretraining.Pretraining",
    "modern_llm.tasks.pretraining.Samples": "modern_llm.experiment.samples.Samples",
    "modern_llm.tasks.merge.Merge": "modern_llm.tasks.export.Export",
    "modern_llm.models.config.GQAConfig": "modern_llm.models.attention.grouping.GQAConfig",
    "modern_llm.models.config.MoEConfig": "modern_llm.models.feed_forward.mixture.MoEConfig",
    "modern_llm.data.labelled.SupervisedData": "modern_llm.data.labelled.LabelledData",
}
# Groups and keys of the command line.
KEYS = {
    "task/source": "task/data",
    "task/dataset": "task/data",
    "task/preferences": "task/data",
    "task/problems": "task/data",
    "task.dataset": "task.data",
    "task.preferences": "task.data",
    "task.problems": "task.data",
    "model.init_std": "model.init.std",
}
# `group/choice` of before -> what is typed now.
CHOICES = {
    "trainer/debug": "debug=default",
    "task/language_modeling": "task=python_docs",
    "task/data/supervised": "task/data=labelled",
    "task/data/files": "task/data=text_files",
}
_TASK_KEYS = tuple(old.partition(".")[2] for old in KEYS if old.startswith("task."))


def target_now(path: str) -> str:
    """What a `_target_` of before is called now; others stay."""
    module, _, name = path.rpartition(".")
    path = f"{_MODULES.get(module, module)}.{name}"
    return _CLASSES.get(path, path)


def key_now(key: str) -> str | None:
    """What a key or group of before, or one inside it, is called now; None: it was never one."""
    for old, new in KEYS.items():
        if key == old or key.startswith((f"{old}.", f"{old}/")):
            return new + key[len(old) :]
    return None


def record_now(record: Any) -> Any:
    """A plain record (of a run or a checkpoint) with the names of now, at every depth."""
    if isinstance(record, list):
        return [record_now(item) for item in record]
    if not isinstance(record, dict):
        return record
    now = {key: record_now(value) for key, value in record.items()}
    if isinstance(now.get("_target_"), str):
        now["_target_"] = target_now(now["_target_"])
    if "init_std" in now and str(now.get("_target_")).startswith("modern_llm.models."):
        scheme = "modern_llm.models.initialisation.gpt2.GPT2Init"
        now["init"] = {"_target_": scheme, "std": now.pop("init_std")}
    task = now.get("task")
    if isinstance(task, dict):
        now["task"] = {"data" if key in _TASK_KEYS else key: value for key, value in task.items()}
    return now
