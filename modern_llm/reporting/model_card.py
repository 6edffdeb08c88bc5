"""The card of an exported model, in the hub's format: what it is, what it was trained on, and what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from modern_llm.evaluation.metrics.registry import find
from modern_llm.reporting.record import RunRecord
from modern_llm.reporting.tables import markdown, shown


def model_card(
    folder: Path | None,
    name: str,
    architecture: str,
    parameters: int,
    context: int | None,
    form: str,
    license_name: str | None,
) -> str:
    """Markdown with the hub's metadata in front.

    Args:
        folder: of the run that trained the model; None: it is as the hub has it.
        name: of what was trained, or of the model itself.
        architecture: its class in transformers.
        parameters: learned numbers.
        context: tokens that it was made for; None: any number.
        form: `hugging_face`, `gguf`, or `adapter`, in peft's format.
        license_name: as the hub abbreviates it; None: nobody has said.
    """
    run = None if folder is None else RunRecord.read(folder)
    figures = [] if run is None else _figures(run)
    data = None if run is None else _data(run)
    head: dict[str, Any] = {"license": license_name or "unknown", "library_name": _LIBRARIES[form],
                            "pipeline_tag": _does(architecture), "tags": ["modern_llm"]}  # fmt: skip
    if data is not None and "/" in data:
        head["datasets"] = [data]
    if run is not None and "/" in name and not Path(name).exists():
        head["base_model"] = name
    title = run.folder.name if run is not None else name
    parts = [f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n", f"# {title}\n"]
    length = "any number of" if context is None else f"{context:,}"
    parts.append(f"{architecture}, {parameters / 1e6:,.1f} million parameters, made for {length} tokens.\n")
    parts.append(f"## Use\n\n{_USE[form]}\n")
    if run is not None:
        about = [f"It was trained on `{data}`." if data else "Its record names no data."]
        if run.command:
            about.append(f"This command trains it again:\n\n```console\n{run.command}\n```")
        parts.append("## Training\n\n" + " ".join(about) + "\n")
    if figures:
        table = markdown(["figure", "value", "95 % interval"], figures)
        parts.append(f"## Figures\n\n{table}\n\n{_measured_on(run)}\n")
    parts.append(f"## Limits\n\n{_LIMITS}\n")
    if license_name is None:
        parts.append("No licence has been given to this model. Those of its data and of its base hold.\n")
    return "\n".join(parts)


_LIBRARIES = {"hugging_face": "transformers", "gguf": "gguf", "adapter": "peft"}
_USE = {
    "hugging_face": """```python
from transformers import AutoModel, AutoTokenizer  # or the Auto class of its task

model, tokenizer = (kind.from_pretrained("<this folder>") for kind in (AutoModel, AutoTokenizer))
```""",
    "gguf": """```console
llama-cli -m model.gguf -p "Once"
```""",
    "adapter": """```python
from peft import AutoPeftModel  # or the class of its task

model = AutoPeftModel.from_pretrained("<this folder>")
```""",
}
_LIMITS = (
    "A small model for experiments. What it writes may be wrong, and may repeat what its training text says of people "
    "and things. It has been measured on the data above alone; nobody has tested it for any use."
)


def _does(architecture: str) -> str:
    """The hub's word for what a class of transformers is for."""
    if "Classification" in architecture:
        return "text-classification"
    return "text2text-generation" if "ConditionalGeneration" in architecture else "text-generation"


def _figures(run: RunRecord) -> list[dict[str, str]]:
    """Final metrics that are better one way, with their intervals where they have one."""
    rows = []
    for name, value in run.metrics.items():
        if find(name) is None or name.endswith(("_low", "_high")):
            continue
        low, high = run.metrics.get(f"{name}_low"), run.metrics.get(f"{name}_high")
        interval = "" if low is None or high is None else f"{shown(low)} to {shown(high)}"
        rows.append({"figure": name, "value": shown(value), "95 % interval": interval})
    return rows


def _data(run: RunRecord) -> str | None:
    """What the run was trained on, as its configuration names it."""
    task = run.settings.get("task")
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict):
        return None
    source = data["source"] if isinstance(data.get("source"), dict) else {}
    named = data.get("name") or source.get("name") or data.get("train") or source.get("train")
    if isinstance(named, str | list):
        return named if isinstance(named, str) else ", ".join(map(str, named))
    return str(data.get("_target_", "")).rpartition(".")[2] or None


def _measured_on(run: RunRecord | None) -> str:
    on = run.result.get("evaluated_on") if run is not None else None
    return f"`evaluated_on` in the run's `result.json` says on what: `{on}`." if on else ""
