"""Trained judges of answers, from the folders of the runs that trained them: a verifier tells how likely an answer is
right, a reward model how good it is. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.solutions.settings import SolutionText
from modern_llm.experiment.training import tell_model
from modern_llm.pretrained.settings import ModelFromRun

if TYPE_CHECKING:
    from modern_llm.evaluation.rewards import AnswerRewards
    from modern_llm.evaluation.verifier import AnswerVerifier
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.runtime import Runtime

VERIFIER_FILE = "verifier.json"
REWARD_FILE = "reward_model.json"
REWARD_LABELS = ["reward"]  # the head's one number


def require_judge(key: str, path: str, remedy: str = "") -> None:
    """Refuse a folder that holds neither a verifier nor a reward model.

    Args:
        key: that names the folder.
        path: the folder.
        remedy: another way out.

    Raises:
        ValueError: it holds neither, or its run has not finished.
    """
    holds_one = _holds(path, VERIFIER_FILE) or _holds(path, REWARD_FILE)
    require(holds_one, key, path, "holds no finished verifier or reward model",
            f"Give the folder of a run of task=verifier or task=reward_model{remedy}")  # fmt: skip


def known_problems(path: str) -> frozenset[str]:
    """`problem_id` of every problem that the verifier or reward model of a run was trained, chosen or calibrated on,
    without loading it; arguments and errors as in `require_judge`."""
    require_judge("task.verifier", path)
    return frozenset(_facts(path, _file_of(path))["known_problems"])


def judge_identity(path: str) -> str:
    """What a judge is: what its run says of it, and the content of its checkpoint."""
    facts, folder = _facts(path, _file_of(path)), Path(path).expanduser()
    return json.dumps(facts) + (folder / facts["checkpoint"] / "manifest.json").read_text()


def load_judge(path: str, runtime: Runtime, mirror: str | None = None) -> AnswerVerifier | AnswerRewards:
    """The verifier or the reward model that a run trained; arguments and errors as in `load_verifier`."""
    return (load_reward_model if _file_of(path) == REWARD_FILE else load_verifier)(path, runtime, mirror)


def load_verifier(path: str, runtime: Runtime, mirror: str | None = None) -> AnswerVerifier:
    """The verifier that a run of `task=verifier` trained, with its calibration and threshold.

    Args:
        path: folder of the run.
        runtime: the machine it is for.
        mirror: root of the mirror, where its body is from the hub.

    Raises:
        ValueError: the folder is of no such run, or of one that has not finished.
    """
    from modern_llm.data.solutions.read import LABELS, SolutionWriter
    from modern_llm.evaluation.metrics.calibration import Calibration
    from modern_llm.evaluation.verifier import AnswerVerifier
    from modern_llm.experiment.loading import load_model

    require(_holds(path, VERIFIER_FILE), "task.verifier", path, "holds no finished verifier",
            "Give the folder of a run of task=verifier")  # fmt: skip
    facts = _facts(path, VERIFIER_FILE)
    loaded = _classifier(path, facts["checkpoint"], load_model, runtime, mirror, LABELS)
    return AnswerVerifier(
        loaded.classifier,
        SolutionWriter(SolutionText(**facts["text"]), loaded.tokenizer, loaded.start_ids, facts["max_tokens"]),
        runtime,
        Calibration(**facts["calibration"]),
        facts["threshold"],
        frozenset(facts["known_problems"]),
    )


def load_reward_model(path: str, runtime: Runtime, mirror: str | None = None) -> AnswerRewards:
    """The reward model that a run of `task=reward_model` trained; arguments and errors as in `load_verifier`."""
    from modern_llm.data.chat import ChatWriter
    from modern_llm.evaluation.rewards import AnswerRewards
    from modern_llm.experiment.loading import load_chat_model

    require(_holds(path, REWARD_FILE), "task.verifier", path, "holds no finished reward model",
            "Give the folder of a run of task=reward_model")  # fmt: skip
    facts = _facts(path, REWARD_FILE)
    loaded = _classifier(path, facts["checkpoint"], load_chat_model, runtime, mirror, REWARD_LABELS)
    return AnswerRewards(loaded.classifier, ChatWriter(loaded.tokenizer), runtime, facts["max_tokens"], facts["system"])


def _classifier(
    path: str,
    checkpoint: str,
    load: Callable[..., LoadedModel],
    runtime: Runtime,
    mirror: str | None,
    labels: Sequence[str],
) -> LoadedModel:
    """What a finished run judges with, in evaluation mode.

    Args:
        path: folder of the run.
        checkpoint: inside of it.
        load: `load_model` or `load_chat_model`.
        runtime, mirror, labels: as there.
    """
    choice = ModelFromRun(str(Path(path).expanduser().resolve() / checkpoint))
    loaded = load(choice, runtime, mirror, labels=list(labels), train=False)
    loaded.model.eval()
    tell_model(loaded, runtime, train=False)
    return loaded


def _file_of(path: str) -> str:
    """What a run says of its judge in; that of a verifier where there is none."""
    return REWARD_FILE if _holds(path, REWARD_FILE) else VERIFIER_FILE


def _holds(path: str, file: str) -> bool:
    return (Path(path).expanduser() / file).is_file()


def _facts(path: str, file: str) -> dict[str, Any]:
    return json.loads((Path(path).expanduser() / file).read_text())
