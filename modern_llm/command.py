"""The command: `modern-llm`, `python -m modern_llm` and `python launch.py` are one."""

from __future__ import annotations

from contextlib import nullcontext

import hydra
from omegaconf import DictConfig

from modern_llm.config.choices import CONFIG_FOLDER
from modern_llm.config.composing import composing_once, is_single_run
from modern_llm.config.messages import readable_errors
from modern_llm.processes import quiet_unless_first
from modern_llm.runs.run import execute


@hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
def _composed(config: DictConfig) -> float | None:
    """Compose, check, run; the returned metric is what a sweeper optimises."""
    with readable_errors() if is_single_run() else nullcontext():
        return execute(config)


def main() -> None:
    """Run an experiment: `modern-llm [group=choice] [key=value] …`; `modern-llm --help` tells more."""
    with readable_errors(), composing_once():
        quiet_unless_first()
        _composed()
