"""Parts of a configuration as overrides, read back by Hydra itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from modern_llm.config.overrides import as_overrides, chosen, laid_over, override

CONF = str(Path(__file__).resolve().parents[2] / "conf")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -2.5e-4,
        "plain",
        "it's a \\ 'quoted' text",
        "\\",
        "a\\'b\\\\",
        "a=b, [c]: {d}",
        "/a/plain-path_1.2",
        "null",
        "False",
        "NaN",
        "inf",
        "3",
        "",
        [1, "a=b", None],
        ["task/loss=ipo", "model.path='/a b/c'"],
        {"_target_": "x.y", "n": [0.9, None]},
    ],
)
def test_hydra_reads_the_value_back(value: Any) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([override("++a.b", value)])
    assert parsed.value() == value
    assert type(parsed.value()) is type(value)


def test_later_overrides_replace_earlier_ones() -> None:
    own = ["task=sft", "model=from_run", "model.path='a'", "model/lora=off", "++seed=1"]
    assert laid_over(own, ["seed=2", "task/data=p3"]) == [*own[:-1], "seed=2", "task/data=p3"]
    # Another model has no path.
    assert laid_over(own, ["model=gpt2", "model.name=x"]) == ["task=sft", "++seed=1", "model=gpt2", "model.name=x"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["hardware=rtx3060", "hardware.micro_batch_size=2", "seed=3", "logger=wandb", "paths.outputs='a b'"],
        ["model=modern", "model/rope=yarn", "model/moe=top1of4", "model.rope.factor=3.0"],
        ["model/rope=none", "model.use_attention_sinks=true", "model/sinks=streaming"],
        ["model=gpt2", "model/lora=off"],
        ["model=pretrained", "model.name='it\\'s'", "model.lora.targets=[q_proj,v_proj]"],
    ],
)
def test_the_same_parts_are_composed_again(overrides: list[str]) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        whole = compose("config", ["name=x", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(whole)
        own = as_overrides(whole, ["model"], chosen("model"))
        own += as_overrides(whole, ["hardware", "logger", "paths", "seed"])
        again = compose("config", ["name=x", *own])

    def parts(config: Any) -> dict[str, Any]:
        return {
            part: OmegaConf.to_container(config[part], resolve=True) if part != "seed" else config.seed
            for part in ("model", "hardware", "logger", "paths", "seed")
        }

    assert parts(again) == parts(whole)
