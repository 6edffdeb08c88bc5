"""Which stages a pipeline has, and the overrides of each: an ordinary run that starts from the stage before it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from modern_llm.config.composing import composed
from modern_llm.config.instantiate import LINKS, ConfigError
from modern_llm.config.messages import in_words, is_mistake
from modern_llm.config.overrides import group_of, laid_over, override
from modern_llm.pretrained.settings import PretrainedModel
from modern_llm.runs.pipeline.controls import CONTROLS, GIVEN_AS, without_lengths, without_policy_loss

StageName = Literal["base", "sft", "reward_model", "dpo", "rl", "verifier", "best_of_n"]
STAGES: tuple[StageName, ...] = ("base", "sft", "reward_model", "dpo", "rl", "verifier", "best_of_n")
NEEDS: dict[StageName, tuple[StageName, ...]] = {
    "sft": ("base",),
    "reward_model": ("base",),
    "dpo": ("sft",),
    "rl": ("sft",),
    "best_of_n": ("verifier",),
}
# Everything that is a run of its own, in the order of running and of the table.
RUNS: tuple[str, ...] = tuple(run for s in STAGES for run in ((s, *CONTROLS.values()) if s == "rl" else (s,)))
POLICIES: tuple[StageName, ...] = ("base", "sft", "dpo", "rl")  # each trained from the last one before it
DEALT: tuple[StageName, ...] = ("dpo", "reward_model")  # what learns from preferences, in the order of the folds
SHARED = ("hardware", "logger", "paths", "seed")  # groups that every stage is handed


def policy_before(run: str, there: Collection[str]) -> StageName:
    """The policy that a stage starts from: the last one before it; of the reward model one that no preference taught;
    of a control of RL the one that RL starts from.

    Args:
        run: which.
        there: stages that are run here.
    """
    last = {"reward_model": "dpo", **dict.fromkeys(CONTROLS.values(), "rl")}.get(run, run)
    before = POLICIES[: POLICIES.index(last)] if last in POLICIES else POLICIES
    return next((one for one in reversed(before) if one in there), "base")


def planned(
    folder: Path,
    given: Mapping[StageName, Sequence[str]],
    there: Collection[str],
    base: Sequence[str],
    shared: Sequence[str],
    trains_base: bool,
    deals: bool,
) -> dict[str, list[str]]:
    """Overrides of every stage.

    Args:
        folder: of the pipeline.
        given: overrides of each stage, as they were given.
        there: stages and controls that have run or will; of controls, others are not planned.
        base: overrides of the base model.
        shared: of the groups that all stages are handed.
        trains_base: whether the base is trained here.
        deals: whether DPO and the reward model learn from different pairs of the same data, unless they are told to.

    Raises:
        ConfigError: a stage's overrides are wrong.
    """
    # A decoder from scratch is small: all of its weights are trained on.
    kind = ["model/lora=off"] if trains_base else []

    def from_policy_before(run: str) -> list[str]:
        before = policy_before(run, there)
        if before == "base" and not trains_base:
            return list(base)
        return ["model=from_run", override("model.path", str(folder / before)), *kind]

    def whole(run: str, own: Sequence[str], own_given: Sequence[str]) -> list[str]:
        with told_of(run, given):
            task = composed(laid_over(own, own_given)).task
        read = [text for text in shared if group_of(text) in ("paths", *(link for link in LINKS if link in task))]
        return laid_over(read, own, own_given)

    # What SFT would else make a small model forget.
    further = defaultdict[str, list[str]](list, sft=["task/replay=own"] if trains_base else [])
    further["best_of_n"] = [override("task.verifier", str(folder / "verifier"))]
    for fold, stage in enumerate(DEALT if deals else ()):
        further[stage] = [override("task.data.folds", len(DEALT)), override("task.data.fold", fold)]
    own = {stage: [f"task={stage}", *from_policy_before(stage), *further[stage]] for stage in STAGES}
    own |= {"base": list(base) if trains_base else [], "verifier": ["task=verifier", "model=verifier"]}
    plan: dict[str, list[str]] = {stage: whole(stage, own[stage], given[stage]) for stage in STAGES}
    if "rl_rejection" in there:
        plan["rl_rejection"] = whole(
            "rl_rejection", own["rl"], [*without_policy_loss(given["rl"]), "task/policy_loss=rejection"]
        )
    if "rl_sft" in there:
        begun = ["task=sft", *from_policy_before("rl_sft"), *further["sft"]]
        plan["rl_sft"] = whole("rl_sft", begun, without_lengths(given["sft"]))
    return plan


@contextmanager
def told_of(run: str, given: Mapping[StageName, Sequence[str]]) -> Iterator[None]:
    """Say of a mistake in which stage it is.

    Args:
        run: which; a control of RL has the overrides of a stage.
        given: overrides of each stage, as they were given.

    Raises:
        ConfigError: in place of what was raised.
    """
    stage: Any = GIVEN_AS.get(run, run)
    try:
        yield
    except Exception as cause:
        if not is_mistake(cause):
            raise
        typed = list(given[stage])
        raise ConfigError(f"task.{stage}={typed}: {in_words(cause, typed)}") from cause


def essential(overrides: Sequence[str]) -> list[str]:
    """Overrides that decide what a stage is, and not on which machine it runs and where it is kept."""
    return [text for text in overrides if group_of(text) not in ("hardware", "logger", "paths")]


def look_up(stage: Any, mirror: str | None) -> None:
    """Find a stage's data, so that a missing set is told before hours of the stages before it.

    Raises:
        FileNotFoundError, ValueError: as in `RowSource.rows`.
    """
    source = getattr(getattr(stage, "data", None), "source", None)
    if source is not None:
        source.rows("evaluation", mirror, 1)


def with_stand_ins(config: DictConfig) -> DictConfig:
    """The configuration of a stage with a model that can be named before there is one."""
    config = config.copy()
    OmegaConf.set_struct(config, False)
    if "path" in config.model:
        lora = config.model.lora
        config.model = {"_target_": f"{PretrainedModel.__module__}.PretrainedModel", "name": "base", "lora": lora}
    if "verifier" in config.task and isinstance(config.task.verifier, str):
        config.task.verifier = None
        if str(config.task.get("objective_metric", "")) in ("verifier_em", "weighted_em"):
            config.task.objective_metric = "majority_em"
    return config
