"""Policies of one pipeline on the same data: perplexity, loss on conversations, problems, preferences, answers side by
side, and which of two answers better."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modern_llm.experiment.contract import Paths, progress_of, say
from modern_llm.experiment.judges import judge_identity, known_problems, load_judge
from modern_llm.experiment.samples import Samples
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.runs.pipeline.controls import solved_gain
from modern_llm.runs.pipeline.settings import Measures, Policy, StageSettings
from modern_llm.tasks.best_of_n import BestOfN
from modern_llm.tasks.dpo import DPO
from modern_llm.tasks.rl import RL
from modern_llm.tasks.sft import SFT
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.runtime import Runtime


def measure_policies(
    folder: Path,
    policies: Mapping[str, Policy],
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
        policies: name -> policy, each behind the one that it was trained from.
        settings, measures: what is measured, on what.
        hardware, paths, seed: as in any task.

    Returns:
        Name -> `metrics` and `samples`. Metrics are `perplexity`, `bits_per_byte` where the whole text was scored,
        `conversation_loss` in nats per token, `solved`, the share of held-out problems whose most likely answer is
        right, and of held-out pairs `log_prob_accuracy`; for every policy but the first also, against the one that it
        was trained from, `reward_accuracy`, `reward_margin`, `kl_estimate` of the implicit reward, and `win_rate` and
        `judged_win_rate`, each with its 95 % bootstrap interval where there is one. Of a control also `rl_solved_gain`.

        `win_rate` is judged by the implicit reward of DPO against its reference, on answers that the policies write to
        held-out prompts. It is the judge's own opinion, which favours what DPO taught. `judged_win_rate` is that of a
        verifier or reward model, on answers to the same prompts, or to the held-out problems where there is no DPO.
    """
    from modern_llm.training.runtime import Runtime

    runtime, judge = Runtime(hardware), settings.judge
    folder.mkdir(exist_ok=True)
    known = known_problems(judge) if judge is not None else frozenset()
    measuring = _Measuring(settings, measures, known, runtime, paths, seed)
    asked = [repr(settings), repr(measures), sorted(known), runtime.precision, seed]
    measured: dict[str, dict[str, Any]] = {}
    for name, policy in policies.items():
        key = [*asked, *_identity(policy.choice)]
        measured[name] = _kept(folder / f"{name}.json", key, partial(measuring.of, name, policy.choice))
    before = {name: policy.before for name, policy in policies.items() if policy.before is not None}
    if settings.dpo is not None:
        _add_rewards(measured, before, settings.dpo, seed)
    for name, policy in policies.items():
        if policy.control_of in measured and "right" in measured[name]:
            rights = measured[policy.control_of]["right"], measured[name]["right"]
            measured[name]["metrics"] |= solved_gain(*rights, seed)
    answered = {name: found["answered"] for name, found in measured.items() if "answered" in found}
    if answered and before:
        key = [*asked, before, *(part for policy in policies.values() for part in _identity(policy.choice))]
        for rates in _win_rates(folder, key, answered, before, policies, measuring):
            for name, found in rates.items():
                measured[name]["metrics"] |= found
    return {name: {key: found[key] for key in ("metrics", "samples")} for name, found in measured.items()}


def _win_rates(
    folder: Path,
    key: list[Any],
    answered: dict[str, dict[str, Any]],
    before: dict[str, str],
    policies: Mapping[str, Policy],
    measuring: _Measuring,
) -> list[dict[str, dict[str, float]]]:
    """Win rates of every policy, by the implicit reward and by the judge, as far as there are these.

    Args:
        folder: of the kept figures.
        key: what they depend on, the judge aside.
        answered: policy -> its answers.
        before: policy -> the one that it was trained from.
        policies, measuring: what was measured, and how.
    """
    from modern_llm.runs.pipeline.duels import implicit_wins, judged_wins

    runtime, paths, seed, judge = measuring.runtime, measuring.paths, measuring.seed, measuring.settings.judge
    if not next(iter(answered.values()))["texts"]:
        say("no answers are compared: the judge knows all held-out prompts, or none fits")
        return []

    def implicit() -> dict[str, Any]:
        return implicit_wins(answered, before, lambda n: _load(policies[n].choice, runtime, paths), runtime, seed)

    def judged(path: str) -> dict[str, Any]:
        found = load_judge(path, runtime, paths.mirror)
        return judged_wins(answered, before, found, runtime.hardware.eval_rows, seed)

    rates = []
    if measuring.settings.dpo is not None and "dpo" in before:
        rates.append(_kept(folder / "duels.json", key, implicit))
    if judge is not None:
        rates.append(_kept(folder / "judged.json", [*key, judge_identity(judge)], partial(judged, judge)))
    return rates


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


@dataclass(frozen=True)
class _Measuring:
    """Everything of one policy that needs no other policy.

    Args:
        settings, measures: what is measured, on what.
        known: `problem_id` of prompts that the judge knows.
        runtime, paths, seed: as in any task.
    """

    settings: StageSettings
    measures: Measures
    known: frozenset[str]
    runtime: Runtime
    paths: Paths
    seed: int

    def of(self, name: str, choice: PretrainedModel | ModelFromRun) -> dict[str, Any]:
        """`metrics`, `samples`, and what is compared with other policies."""
        import torch

        say(f"measuring {name}")
        settings, loaded = self.settings, _load(choice, self.runtime, self.paths)
        with torch.no_grad(), self.runtime.autocast():
            found: dict[str, Any] = {"metrics": self._perplexity(loaded)}
            if settings.sft is not None:
                found["metrics"]["conversation_loss"] = self._conversation_loss(loaded, settings.sft)
            if settings.asked is not None:
                self._solve(loaded, settings.asked, found)
            if settings.dpo is not None:
                self._read_pairs(loaded, settings.dpo, found)
        prompts = Samples(self.measures.prompts, self.measures.max_new_tokens, Sampling(temperature=0.0))
        return found | {"samples": prompts.answered(loaded, self.runtime, self.seed)}

    def _perplexity(self, loaded: LoadedModel) -> dict[str, float]:
        from modern_llm.data.text.tokens import tokenise
        from modern_llm.evaluation.perplexity import perplexity

        protocol, paths = self.settings.protocol, self.paths
        corpus = tokenise(self.settings.text, "validation", loaded.tokenizer, paths.cache_folder, paths.mirror, say)
        context = protocol.context or min(loaded.context or 1024, 1024)
        found = perplexity(
            loaded.decoder,
            corpus,
            context=context,
            stride=min(protocol.stride or context, context),
            batch_size=self.runtime.hardware.eval_rows,
            device=self.runtime.device,
            max_tokens=self.measures.perplexity_tokens,
        )
        metrics = {"perplexity": found.token_perplexity}
        return metrics | ({"bits_per_byte": found.bits_per_byte} if found.bits_per_byte is not None else {})

    def _conversation_loss(self, loaded: LoadedModel, sft: SFT) -> float:
        from modern_llm.data.chat import ChatWriter
        from modern_llm.data.instructions.read import ConversationBatch, read_instructions
        from modern_llm.evaluation.answering import mean_loss
        from modern_llm.experiment.loading import room_in
        from modern_llm.objectives.language_modeling import LanguageModeling

        room, writer = room_in(loaded, sft.max_tokens), ChatWriter(loaded.tokenizer)
        mirror, limit = self.paths.mirror, self.measures.max_conversations
        part = read_instructions(sft.data, writer, "evaluation", room, mirror, limit, self.seed)
        collate, rows = ConversationBatch(loaded.tokenizer.eos_id).singly, self.runtime.hardware.eval_rows
        return mean_loss(loaded.model, LanguageModeling(), part.items, collate, rows, self.runtime.device)["loss"]

    def _solve(self, loaded: LoadedModel, asked: RL | BestOfN, found: dict[str, Any]) -> None:
        """Share of held-out problems that the most likely answer solves, and where DPO gives no other prompts, the
        answers that are compared."""
        import numpy as np

        from modern_llm.data.solutions.problems import read_problems
        from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval
        from modern_llm.experiment.problems import most_likely_answers

        problems, _ = read_problems(asked.data, "evaluation", self.paths.mirror, self.measures.max_problems, self.seed)
        texts, right = most_likely_answers(loaded, self.runtime, asked.data, problems, asked.asking)
        low, high = bootstrap_interval(np.array(right, float), seed=self.seed)
        found["right"] = right
        found["metrics"] |= {"solved": sum(right) / len(right), "solved_low": low, "solved_high": high}
        if self.settings.dpo is None and self.settings.judge is not None:
            new = [place for place, problem in enumerate(problems) if problem.identity not in self.known]
            new = new[: self.measures.duels]
            found["answered"] = {
                "conversations": [[{"role": "user", "content": problems[place].question}] for place in new],
                "texts": [texts[place] for place in new],
            }

    def _read_pairs(self, loaded: LoadedModel, dpo: DPO, found: dict[str, Any]) -> None:
        """Log-probabilities of held-out answers, and own answers to held-out prompts."""
        from modern_llm.data.chat import ChatWriter
        from modern_llm.data.preferences.read import read_preferences, with_mismatched
        from modern_llm.evaluation.pairs import pair_log_probs
        from modern_llm.experiment.loading import room_in
        from modern_llm.runs.pipeline.duels import answers_to_pairs, unknown_prompts

        room, writer = room_in(loaded, dpo.max_tokens), ChatWriter(loaded.tokenizer)
        measures, mirror, runtime = self.measures, self.paths.mirror, self.runtime
        pairs = read_preferences(dpo.data, writer, "evaluation", room, mirror, measures.max_pairs, self.seed).pairs
        if dpo.loss.needs_mismatched:
            pairs = with_mismatched(pairs, room, self.seed)
        rows, progress = runtime.hardware.eval_rows, progress_of("held-out pairs")
        found["pairs"] = [[pair.prompt_ids, *pair.answers] for pair in pairs]
        found["log_probs"] = pair_log_probs(loaded.decoder, pairs, rows, runtime.device, progress).tolist()
        asked = unknown_prompts(dpo, measures.max_pairs, self.known, mirror, self.seed)
        found["answered"] = answers_to_pairs(loaded, pairs, asked, measures.duels, measures.max_new_tokens, runtime)


def _add_rewards(measured: dict[str, dict[str, Any]], before: dict[str, str], dpo: DPO, seed: int) -> None:
    """Of every policy against the one before it: how its implicit reward orders the held-out pairs."""
    import numpy as np

    from modern_llm.data.preferences.read import EncodedPair
    from modern_llm.evaluation.pairs import score_pairs

    for name, found in measured.items():
        reference: np.ndarray = np.array(measured[before.get(name, name)]["log_probs"])
        pairs = [
            EncodedPair(i, prompt, chosen, rejected, tuple(row.tolist()), *mismatched)
            for i, ((prompt, chosen, rejected, *mismatched), row) in enumerate(
                zip(found["pairs"], reference, strict=True)
            )
        ]
        scores, _ = score_pairs(dpo.loss, pairs, np.array(found["log_probs"]), seed)
        found["metrics"]["log_prob_accuracy"] = scores["log_prob_accuracy"]
        if name in before:
            found["metrics"] |= {
                figure.replace("preference_accuracy", "reward_accuracy"): value
                for figure, value in scores.items()
                if figure.startswith(("preference_accuracy", "reward_margin", "kl_estimate"))
            }
