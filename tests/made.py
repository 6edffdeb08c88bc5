"""Settings that tests build without the command line; what a test does not name is of no interest to it."""

from __future__ import annotations

from typing import Any

from modern_llm.data.labelled import LabelledData
from modern_llm.data.rows import HubRows


def labelled(name: str = "some/data", **settings: Any) -> LabelledData:
    """Labelled data of the hub: settings of `HubRows` and of `LabelledData` together."""
    own = {"config": None, "evaluation_split": "test", "held_out": 200}
    rows = HubRows(name, **{key: settings.pop(key, value) for key, value in own.items()})  # or `source`
    given = {
        "source": rows,
        "text": None,
        "prompt": "{question}",
        "encoder_text": None,
        "target": "",
        "metrics": ["accuracy", "macro_f1"] if settings.get("labels") else ["strict_match", "flexible_match"],
        "instruction": "",
        "labels": [],
        "label_column": "label",
        "choices_column": None,
        "remove": None,
        "stop": [],
        "max_new_tokens": 128,
        "shot_separator": "\n\n",
        "content_free": ["N/A", "[MASK]", ""],
    }
    return LabelledData(**{**given, **settings})
