"""What a pipeline has noted of its stages, in `pipeline.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modern_llm.config.instantiate import ConfigError
from modern_llm.config.overrides import require_own
from modern_llm.experiment.contract import RunFolder
from modern_llm.files import DamagedError, read_json

FILE = "pipeline.json"


class State:
    """The overrides of the base model, and what is known of each stage.

    Args:
        folder: of the pipeline, where `begin` has been called once.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def begin(self, base: list[str]) -> None:
        """Write the first state: the base, and no stage."""
        self.folder.write_json(FILE, {"base": base, "stages": {}})

    @property
    def begun(self) -> bool:
        """Whether there is one."""
        return (self.folder.path / FILE).is_file()

    @property
    def base(self) -> list[str]:
        """Overrides of the base model. Errors as in `noted`."""
        return _read(self.folder.path / FILE)["base"]

    def noted(self, stage: str) -> dict[str, Any]:
        """What is known of a stage; empty: nothing.

        Raises:
            ConfigError: the file is damaged, or not what a pipeline writes.
        """
        return _read(self.folder.path / FILE)["stages"].get(stage, {})

    def note(self, stage: str, what: dict[str, Any]) -> None:
        """Add to what is known of a stage."""
        state = _read(self.folder.path / FILE)
        state["stages"][stage] = state["stages"].get(stage, {}) | what
        self.folder.write_json(FILE, state)


def _read(path: Path) -> dict[str, Any]:
    try:
        state = read_json(path)
    except (DamagedError, FileNotFoundError) as cause:
        raise ConfigError(f"{path}: is damaged: {cause}. Start a new pipeline; this one's stages stay.") from cause
    base = state.get("base") if isinstance(state, dict) else None
    stages = state.get("stages") if isinstance(state, dict) else None
    right = _texts(base) and isinstance(stages, dict)
    if not right or not all(isinstance(n, dict) and _texts(n.get("overrides", [])) for n in stages.values()):  # type: ignore[union-attr]
        raise ConfigError(f"{path}: is damaged: it is no pipeline's. Start a new pipeline; this one's stages stay.")
    require_own(str(path), base)  # type: ignore[arg-type]
    return state


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
