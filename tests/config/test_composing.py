"""A command is composed once, and comes to what Hydra itself makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from modern_llm.config.choices import CONFIG_FOLDER
from modern_llm.config.composing import composing_once


def run_of(overrides: list[str]) -> tuple[str, list[str]]:
    """What a command comes to, as Hydra's `_run_app` goes about it: its mode, and what is run or why it is not, in a
    list of its lines."""
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("launch", create_config_search_path(str(CONFIG_FOLDER)))
    try:
        typed = list(overrides)
        mode = hydra.get_mode("config", typed)
        if mode is None:
            mode = RunMode.RUN
            typed.append("hydra.mode=RUN")
        config = hydra.compose_config("config", typed, mode)
        if config.hydra.mode is None:
            config.hydra.mode = mode
        return mode.name, OmegaConf.to_yaml(config).splitlines()
    except Exception as failure:
        return type(failure).__name__, str(failure).splitlines()
    finally:
        GlobalHydra.instance().clear()


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        (["model=modern", "trainer.max_steps=3", "+task.note=1"], "RUN"),
        (["experiment=quick", "hydra.run.dir=here"], "RUN"),
        (["hydra.mode=RUN", "seed=2"], "RUN"),
        (["experiment=figures/ablation"], "MULTIRUN"),
        (["hydra.mode=MULTIRUN", "seed=1,2"], "MULTIRUN"),
        (["seed=1,2"], "ConfigCompositionException"),
        (["model=nothing"], "MissingConfigException"),
        (["trainer.steps=3"], "ConfigCompositionException"),
    ],
)
def test_it_comes_to_what_hydra_makes_of_it(overrides: list[str], mode: str) -> None:
    expected = run_of(overrides)
    assert expected[0] == mode
    with composing_once():
        assert run_of(overrides) == expected
    assert run_of(overrides) == expected


def test_it_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    composed, compose = list[list[str]](), ConfigLoaderImpl._load_configuration_impl

    def counted(self: ConfigLoaderImpl, *, overrides: list[str], **more: Any) -> Any:
        composed.append(overrides)
        return compose(self, overrides=overrides, **more)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    run_of(["experiment=quick"])
    assert len(composed) == 2
    composed.clear()
    with composing_once():
        run_of(["experiment=quick"])
    assert len(composed) == 1


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for number in (1, 22, 333):
        file.write_text(f"number: {number}\nof: [1, 2]\n")
        for _ in range(2):
            with initialize_config_dir(str(tmp_path), version_base="1.3"):
                config = compose("config")
            assert config == {"number": number, "of": [1, 2]}
            config.of[0] = 7
