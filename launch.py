"""Run an experiment: `python launch.py [group=choice] [key=value] …`; `python launch.py --help` tells more."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from modern_llm.config.messages import readable_errors
from modern_llm.runs.run import execute, register_resolvers

CONFIG_FOLDER = Path(__file__).resolve().parent / "conf"


@hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
def main(config: DictConfig) -> float | None:
    """Compose, check, run; the returned metric is what a sweeper optimises."""
    with readable_errors(CONFIG_FOLDER):
        return execute(config)


if __name__ == "__main__":
    register_resolvers()
    with readable_errors(CONFIG_FOLDER):
        main()
