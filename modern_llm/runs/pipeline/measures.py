"""Policies of one pipeline on the same data: perplexity, loss on conversations, preferences, answers side by side, and
which of two stages answers better."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.text.sources import Source
from modern_llm.defaults import Defaults
from modern_llm.evaluation.protocol import PerplexityProtocol
from modern_llm.experiment.contract import Paths, progress_of, say
from modern_llm.experiment.samples import Samples
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.tasks.best_of_n import BestOfN
from modern_llm.tasks.dpo import DPO
from modern_llm.tasks.rl import RL
from modern_llm.tasks.sft import SFT
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    import numpy as np

    from modern_llm.data.preferences.read import EncodedPair
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.runtime import Runtime

Policies = dict[str, PretrainedModel | ModelFromRun]


_DEFAULTS = Defaults("task/pipeline", "measures")


@dataclass(frozen=True)
class Measures:
    """What is measured of every policy.

    Args:
        prompts: answered by every policy, side by side on the page.
        max_new_tokens: of an answer.
        perplexity_tokens: of the text, from its beginning; null: all.
        max_conversations, max_pairs, max_problems: of the held-out parts; null: all.
        duels: held-out prompts to which the answers of a stage and of the one before it are compared.
    """

    prompts: list[str] = _DEFAULTS("prompts")
    max_new_tokens: int = _DEFAULTS("max_new_tokens")
    perplexity_tokens: int | None = _DEFAULTS("perplexity_tokens")
    max_conversations: int | None = _DEFAULTS("max_conversations")
    max_pairs: int | None = _DEFAULTS("max_pairs")
    max_problems: int | None = _DEFAULTS("max_problems")
    duels: int = _DEFAULTS("duels")

    def __post_init__(self) -> None:
        for key in ("max_new_tokens", "perplexity_tokens", "max_conversations", "max_pairs", "max_problems", "duels"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"task.measures.{key}", value, "must be at least 1", "Raise it")


@dataclass(frozen=True)
class StageSettings:
    """On what the policies are measured.

    Args:
        text, protocol: of the perplexity.
        sft: whose held-out conversations are scored; None: none are.
        dpo: whose held-out pairs are scored; None: none are.
        asked: whose held-out problems are put to every policy; None: none are.
    """

    text: Source
    protocol: PerplexityProtocol
    sft: SFT | None
    dpo: DPO | None
    asked: RL | BestOfN | None = None


def measure_policies(
    folder: Path,
    policies: Policies,
    settings: StageSettings,
    measures: Measures,
    hardware: Hardware,
    paths: Paths,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Measure each policy, one model in memory at a time. What is measured is kept in `folder`, and measured again only
    when the policy or what is asked has changed.

    Args:
        folder: of the kept figures.
        policies: stage -> model after it, in the order of the stages.
        settings, measures: what is measured, on what.
        hardware, paths, seed: as in any task.

    Returns:
        Stage -> `metrics` and `samples`. Metrics are `perplexity`, `bits_per_byte` where the whole text was scored,
        `conversation_loss` in nats per token, `solved`, the share of held-out problems whose most likely answer is
        right, and of held-out pairs `log_prob_accuracy`; for every stage but the first also, against the stage before
        it, `reward_accuracy`, `reward_margin`, `kl_estimate` of the implicit reward,
        and `win_rate`, each with its 95 % bootstrap interval where there is one.

        The win rate is judged by the implicit reward of the DPO stage against its reference (Rafailov et al. 2023,
        arXiv 2305.18290, eq. 5), on answers that the stages write to held-out prompts; equal answers are half a win.
        It is the judge's own opinion, which favours what DPO taught.
    """
    from modern_llm.training.runtime import Runtime

    runtime = Runtime(hardware)
    folder.mkdir(exist_ok=True)
    asked = [repr(settings), repr(measures), runtime.precision, seed]
    measured: dict[str, dict[str, Any]] = {}
    for stage, choice in policies.items():
        measured[stage] = _kept(
            folder / f"{stage}.json",
            [*asked, *_identity(choice)],
            lambda stage=stage, choice=choice: _measure(stage, choice, settings, measures, runtime, paths, seed),  # type: ignore[misc]
        )
    if settings.dpo is not None:
        _add_rewards(measured, settings.dpo, seed)
        if "dpo" in policies and "sft" in policies:
            whose = [part for choice in policies.values() for part in _identity(choice)]
            wins = _kept(
                folder / "duels.json", [*asked, *whose], lambda: _duels(measured, policies, runtime, paths, seed)
            )
            for stage, found in wins.items():
                measured[stage]["metrics"] |= found
    return {stage: {key: found[key] for key in ("metrics", "samples")} for stage, found in measured.items()}


def _identity(choice: PretrainedModel | ModelFromRun) -> list[str]:
    """What a policy is: a name, and the content of its checkpoint."""
    manifest = [(choice.checkpoint() / "manifest.json").read_text()] if isinstance(choice, ModelFromRun) else []
    return [repr(choice), *manifest]


def _kept(path: Path, key: list[Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is kept under this key, or measured now and kept."""
    from modern_llm.data.rows import content_fingerprint

    fingerprint = content_fingerprint(key)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == fingerprint:
            return kept["found"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or torn
    found = measure()
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps({"key": fingerprint, "found": found}), encoding="utf-8", errors="backslashreplace")
    aside.replace(path)
    return found


def _load(choice: PretrainedModel | ModelFromRun, runtime: Runtime, paths: Paths) -> LoadedModel:
    from modern_llm.data.chat import with_chat
    from modern_llm.experiment.loading import load_model

    loaded = load_model(choice, runtime, paths.mirror, [], train=False)
    loaded.model.eval()
    return replace(loaded, tokenizer=with_chat(loaded.tokenizer))


def _measure(
    stage: str,
    choice: PretrainedModel | ModelFromRun,
    settings: StageSettings,
    measures: Measures,
    runtime: Runtime,
    paths: Paths,
    seed: int,
) -> dict[str, Any]:
    """Everything of one policy that needs no other policy."""
    import torch

    say(f"measuring {stage}")
    loaded = _load(choice, runtime, paths)
    with torch.no_grad(), runtime.autocast():
        metrics = _perplexity(loaded, settings, measures, runtime, paths)
        if settings.sft is not None:
            metrics["conversation_loss"] = _conversation_loss(loaded, settings.sft, measures, runtime, paths, seed)
        found: dict[str, Any] = {"metrics": metrics}
        if settings.asked is not None:
            metrics |= _solved(loaded, settings.asked, measures, runtime, paths, seed)
        if settings.dpo is not None:
            found |= _on_pairs(loaded, settings.dpo, measures, runtime, paths, seed)
    asked = Samples(measures.prompts, measures.max_new_tokens, Sampling(temperature=0.0))
    found["samples"] = asked.answered(loaded, runtime, seed)
    return found


def _perplexity(
    loaded: LoadedModel, settings: StageSettings, measures: Measures, runtime: Runtime, paths: Paths
) -> dict[str, float]:
    from modern_llm.data.text.tokens import tokenise
    from modern_llm.evaluation.perplexity import perplexity

    corpus = tokenise(settings.text, "validation", loaded.tokenizer, paths.cache_folder, paths.mirror, say)
    context = settings.protocol.context or min(loaded.context or 1024, 1024)
    found = perplexity(
        loaded.decoder,
        corpus,
        context=context,
        stride=min(settings.protocol.stride or context, context),
        batch_size=runtime.hardware.eval_rows,
        device=runtime.device,
        max_tokens=measures.perplexity_tokens,
    )
    metrics = {"perplexity": found.token_perplexity}
    return metrics | ({"bits_per_byte": found.bits_per_byte} if found.bits_per_byte is not None else {})


def _conversation_loss(
    loaded: LoadedModel, sft: SFT, measures: Measures, runtime: Runtime, paths: Paths, seed: int
) -> float:
    from modern_llm.data.chat import ChatWriter
    from modern_llm.data.instructions.read import ConversationBatch, read_instructions
    from modern_llm.evaluation.answering import mean_loss
    from modern_llm.experiment.loading import room_in
    from modern_llm.objectives.language_modeling import LanguageModeling

    room, writer = room_in(loaded, sft.max_tokens), ChatWriter(loaded.tokenizer)
    part = read_instructions(sft.data, writer, "evaluation", room, paths.mirror, measures.max_conversations, seed)
    collate = ConversationBatch(loaded.tokenizer.eos_id).singly
    rows = runtime.hardware.eval_rows
    return mean_loss(loaded.model, LanguageModeling(), part.items, collate, rows, runtime.device)["loss"]


def _solved(
    loaded: LoadedModel, asked: RL | BestOfN, measures: Measures, runtime: Runtime, paths: Paths, seed: int
) -> dict[str, float]:
    """Share of held-out problems that the most likely answer solves, with its interval."""
    import numpy as np

    from modern_llm.data.solutions.problems import read_problems
    from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval
    from modern_llm.experiment.problems import most_likely_answers

    problems, _ = read_problems(asked.data, "evaluation", paths.mirror, measures.max_problems, seed)
    right = np.array(most_likely_answers(loaded, runtime, asked.data, problems, asked.asking)[1], float)
    low, high = bootstrap_interval(right, seed=seed)
    return {"solved": float(right.mean()), "solved_low": low, "solved_high": high}


def _held_out(loaded: LoadedModel, dpo: DPO, measures: Measures, paths: Paths, seed: int) -> list[EncodedPair]:
    from modern_llm.data.chat import ChatWriter
    from modern_llm.data.preferences.read import read_preferences, with_mismatched
    from modern_llm.experiment.loading import room_in

    room, writer = room_in(loaded, dpo.max_tokens), ChatWriter(loaded.tokenizer)
    pairs = read_preferences(dpo.data, writer, "evaluation", room, paths.mirror, measures.max_pairs, seed).pairs
    return with_mismatched(pairs, room, seed) if dpo.loss.needs_mismatched else pairs


def _on_pairs(
    loaded: LoadedModel, dpo: DPO, measures: Measures, runtime: Runtime, paths: Paths, seed: int
) -> dict[str, Any]:
    """Log-probabilities of held-out answers, and own answers to held-out prompts, as ids."""
    from modern_llm.evaluation.answering import write_answers
    from modern_llm.evaluation.pairs import pair_log_probs

    pairs, rows = _held_out(loaded, dpo, measures, paths, seed), runtime.hardware.eval_rows
    log_probs = pair_log_probs(loaded.decoder, pairs, rows, runtime.device, progress_of("held-out pairs"))
    room = None if loaded.context is None else loaded.context - measures.max_new_tokens
    prompts = [pair.prompt_ids for pair in pairs if room is None or len(pair.prompt_ids) <= room][: measures.duels]
    written = write_answers(
        loaded.decoder,
        loaded.tokenizer,
        prompts,
        max_new_tokens=measures.max_new_tokens,
        batch_size=rows,
        progress=progress_of("answers to held-out prompts"),
    )
    end = [loaded.tokenizer.eos_id]
    return {
        "pairs": [[p.prompt_ids, *p.answers] for p in pairs],
        "log_probs": log_probs.tolist(),
        "prompts": prompts,
        "answers": [loaded.tokenizer.encode(w.text) + (end if w.ended else []) or end for w in written],
    }


def _add_rewards(measured: dict[str, dict[str, Any]], dpo: DPO, seed: int) -> None:
    """Of every stage against the one before it: how its implicit reward orders the held-out pairs."""
    import numpy as np

    from modern_llm.data.preferences.read import EncodedPair
    from modern_llm.evaluation.pairs import score_pairs

    before: dict[str, Any] | None = None
    for found in measured.values():
        reference: np.ndarray = np.array((before or found)["log_probs"])
        pairs = [
            EncodedPair(i, prompt, chosen, rejected, tuple(row.tolist()), *mismatched)
            for i, ((prompt, chosen, rejected, *mismatched), row) in enumerate(
                zip(found["pairs"], reference, strict=True)
            )
        ]
        scores, _ = score_pairs(dpo.loss, pairs, np.array(found["log_probs"]), seed)
        found["metrics"]["log_prob_accuracy"] = scores["log_prob_accuracy"]
        if before is not None:
            found["metrics"] |= {
                name.replace("preference_accuracy", "reward_accuracy"): value
                for name, value in scores.items()
                if name.startswith(("preference_accuracy", "reward_margin", "kl_estimate"))
            }
        before = found


def _duels(
    measured: dict[str, dict[str, Any]], policies: Policies, runtime: Runtime, paths: Paths, seed: int
) -> dict[str, dict[str, float]]:
    """Win rate of every stage's answers over those of the stage before."""
    import numpy as np

    from modern_llm.data.preferences.read import EncodedPair
    from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval
    from modern_llm.evaluation.pairs import pair_log_probs

    stages = list(measured)
    duels = {
        after: [
            EncodedPair(i, prompt, ours, theirs)
            for i, (prompt, ours, theirs) in enumerate(
                zip(measured[after]["prompts"], measured[after]["answers"], measured[before]["answers"], strict=True)
            )
        ]
        for before, after in pairwise(stages)
    }
    every = [pair for pairs in duels.values() for pair in pairs]
    log_probs = []
    for judge in ("dpo", "sft"):
        say(f"judging answers: log-probabilities of {judge}")
        loaded = _load(policies[judge], runtime, paths)
        with runtime.autocast():
            log_probs.append(pair_log_probs(loaded.decoder, every, runtime.hardware.eval_rows, runtime.device))
    rewards = log_probs[0] - log_probs[1]
    same = np.array([pair.chosen_ids == pair.rejected_ids for pair in every])
    wins = np.where(same, 0.5, (np.sign(rewards[:, 0] - rewards[:, 1]) + 1) / 2)
    found, start = {}, 0
    for stage, pairs in duels.items():
        part = wins[start : start + len(pairs)]
        start += len(pairs)
        low, high = bootstrap_interval(part, seed=seed)
        found[stage] = {"win_rate": float(part.mean()), "win_rate_low": low, "win_rate_high": high}
    return found
