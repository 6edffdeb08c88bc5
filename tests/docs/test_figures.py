"""The figures of the docs are experiment files, and each is the command that it tells."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict

from modern_llm.runs.checked import settled_and_typed
from modern_llm.runs.folder import register_resolvers

ROOT = Path(__file__).resolve().parents[2]
FIGURES = sorted((ROOT / "conf" / "experiment" / "figures").glob("*.yaml"))
SPACE = re.compile(r"^(tag|choice|range|interval|int)\(|^[^\[{(]*,")  # of values, one a job


def composed(words: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration, and what is swept."""
    register_resolvers()
    search = ["hydra/sweeper=optuna"] if any("n_trials" in word or "search" in word for word in words) else []
    spaces = [word.split("=", 1) for word in words if SPACE.match(word.split("=", 1)[1])]
    fixed = [word for word in words if word.split("=", 1) not in spaces]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=[*fixed, *search, "name=x"], return_hydra_config=True)
    sweeper = OmegaConf.to_container(config.hydra.sweeper)
    with open_dict(config):
        del config["hydra"]
    assert isinstance(sweeper, dict)
    sweeper["params"] = (sweeper.get("params") or {}) | dict(spaces)
    sweeper["params"] = {key: str(value) for key, value in sweeper["params"].items()}
    settled_and_typed(config, words)
    found = OmegaConf.to_container(config)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}, {str(key): value for key, value in sweeper.items()}


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_a_file_is_the_command_that_it_tells(path: Path) -> None:
    lines = [line[1:].strip() for line in path.read_text().split("# The same as a command:\n")[1].splitlines()]
    words = shlex.split(" ".join(line.removesuffix(" \\") for line in lines).removeprefix("python launch.py "))
    assert ("-m" in words) == ("mode: MULTIRUN" in path.read_text())
    assert composed([f"experiment=figures/{path.stem}"]) == composed([word for word in words if word != "-m"])


def test_every_file_stands_beside_its_figure() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md") if page.stem != "reference")
    assert {f"figures/{path.stem}" for path in FIGURES} == set(re.findall(r"figures/\w+\b(?!\.)", pages))
