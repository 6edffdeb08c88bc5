"""Learning from rewards: a policy draws answers to problems, and what was better than its group becomes more likely."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.rows import PARTS, content_fingerprint
from modern_llm.data.solutions.settings import ProblemData
from modern_llm.defaults import Defaults
from modern_llm.evaluation.metrics.registry import direction, directions
from modern_llm.experiment.contract import progress_of, say
from modern_llm.experiment.problems import Asking
from modern_llm.experiment.training import Parts, Session, TrainingTask, require_metric
from modern_llm.objectives.policy_losses import PolicyLoss
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.processes import after_first, world
from modern_llm.reinforcement.evaluation import READINGS, HeldOut
from modern_llm.reinforcement.rewards import Reward, WeightedSum
from modern_llm.reinforcement.settings import Drawing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from modern_llm.data.rows import Part
    from modern_llm.evaluation.metrics.registry import Direction
    from modern_llm.experiment.record import Measured
    from modern_llm.objectives.base import Batch
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.reinforcement.evaluation import Solved
    from modern_llm.reinforcement.groups import Asked, Drawer
    from modern_llm.reinforcement.rewards import Marker
    from modern_llm.reinforcement.rollouts import RolloutStream
    from modern_llm.training.memory.plan import Step

BEFORE, DRAWS, SAMPLES = "before.json", "draws", "answers.jsonl"
_SHOWN = 3  # problems whose answers are kept of every evaluation
_OTHER_PROBLEMS = "Choose other problems (task.data), or train the verifier on fewer of them"
_DEFAULTS = Defaults("task/rl")


@dataclass(frozen=True, kw_only=True)
class RL(TrainingTask):
    """Train a policy on the rewards of its own answers, choose the best checkpoint by how often it solves held-out
    problems, and report on others, against the policy before.

    The policy has no dropout, so that what is drawn is what is trained.

    Args:
        data: the problems.
        reward: what marks an answer, one of `reinforcement/rewards.py`, or a class of your own.
        policy_loss: what is minimised.
        teacher: the model whose probabilities `policy_loss.teacher` weighs; None: there is none.
        asking: how the policy is asked; its reading decides what counts as solved, not what is rewarded.
        drawing: how many answers are drawn, and how often they are used.
        evaluation: what is drawn to held-out problems.
        max_train_problems: a sample drawn by the seed; null: all.

    Raises:
        ValueError: an impossible combination.
    """

    model: PretrainedModel | ModelFromRun
    data: ProblemData
    reward: Reward
    policy_loss: PolicyLoss = field(default_factory=PolicyLoss)
    teacher: PretrainedModel | ModelFromRun | None = _DEFAULTS("teacher")
    asking: Asking
    drawing: Drawing = field(default_factory=Drawing)
    evaluation: HeldOut = field(default_factory=HeldOut)
    max_train_problems: int | None = _DEFAULTS("max_train_problems")
    suggested_steps: int = _DEFAULTS("suggested_steps")
    objective_metric: str = _DEFAULTS("objective_metric")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_metric(self, [f"evaluation_{name}" for name in self.measured], self.measured)
        require(self.hardware.sharding != "full", "hardware.sharding", self.hardware.sharding,
                "leaves no process with the whole policy, and each draws answers", "Use optimizer or none")  # fmt: skip
        weight = self.policy_loss.teacher
        require(self.teacher is not None or weight == 0, "task.policy_loss.teacher", weight,
                "weighs a teacher, and there is none",
                "Name one, as model@task.teacher=from_run task.teacher.path=outputs/RUN")  # fmt: skip
        require(self.teacher is None or weight > 0, "task.policy_loss.teacher", weight,
                "leaves task.teacher without a use", "Use task/policy_loss=distillation, or raise it")  # fmt: skip
        filters = {"repetition_penalty": 1, "temperature": 1, "top_k": None, "top_p": 1, "min_p": 0}
        for name, plain in filters.items():
            value = getattr(self.asking.sampling, name)
            require(value == plain, f"task.asking.sampling.{name}", value, "draws from another distribution than the "
                    "policy's, whose gradient is taken", f"Use {'null' if plain is None else plain}")  # fmt: skip

    @property
    def measured(self) -> list[str]:
        """Figures of held-out problems."""
        found = []
        for reading in READINGS:
            prefix, n = "" if reading == self.asking.reading else f"{reading}_", self.evaluation.samples
            several = [f"{prefix}pass_at_{n}"] if n > 1 else []
            found += [f"{prefix}pass_at_1", *several, f"{prefix}greedy_em"]
        parts = self.reward.part_names if isinstance(self.reward, WeightedSum) else ()
        return [*found, "reward", *parts, *(["teacher_kl_estimate"] if self.teacher is not None else [])]

    def load(self, at: Session) -> LoadedModel:
        from modern_llm.experiment.loading import load_chat_model, load_decoder
        from modern_llm.training.dropout import switch_off_dropout

        load = load_chat_model if self.asking.chat else load_decoder
        loaded = load(self.model, at.runtime, self.paths.mirror, train=True)
        switch_off_dropout(loaded.model)
        return loaded

    def parts(self, at: Session) -> Parts:
        from modern_llm.objectives.policy_gradient import PolicyGradient
        from modern_llm.pretrained.loaded import weights_fingerprint
        from modern_llm.reinforcement.rollouts import RolloutStream

        teacher = None
        if self.teacher is not None:
            from modern_llm.reinforcement.teacher import load_teacher

            teacher = load_teacher(self.teacher, at.runtime, self.paths.mirror, at.loaded, self.asking.chat)
        at.data = {"teacher": teacher, "left_out": {}}
        at.data |= {part: self._asked(at, part) for part in PARTS}
        marker = at.data["marker"] = self.reward.marker(at.runtime, self.paths.mirror, at.rows)
        self._before(at)
        train = at.data["train"]
        problems = [(one.problem.identity, one.prompt_ids, one.reference) for one in train]
        settings = [repr(self.reward), repr(self.asking), repr(self.drawing), repr(self.policy_loss),
                    None if teacher is None else weights_fingerprint(teacher.model)]  # fmt: skip
        stream = RolloutStream(
            self._drawer(at, marker, self.drawing.samples),
            train,
            self.policy_loss,
            self.drawing,
            self.trainer.batch_size,
            self.seed,
            at.folder.path / DRAWS,
            content_fingerprint([problems, settings]),
            self._log_probs(at, at.loaded),
            self._reference(at),
            None if teacher is None else self._log_probs(at, teacher),
        )
        objective = PolicyGradient(self.policy_loss, stream.names)
        return Parts(stream, objective, _Held(self, at, stream))

    def rehearsal(self, at: Session) -> Step:
        import torch

        from modern_llm.data.solutions.problems import prompts_of, read_problems
        from modern_llm.models.decoding.drawing import Drawn
        from modern_llm.objectives.policy_gradient import PolicyGradient
        from modern_llm.reinforcement.groups import Asked, Group, group_batch
        from modern_llm.training.memory.plan import Step

        beside = []
        if self.teacher is not None:
            from modern_llm.reinforcement.teacher import load_teacher

            beside.append(load_teacher(self.teacher, at.runtime, self.paths.mirror, at.loaded, self.asking.chat).model)
        if self.policy_loss.needs_reference and at.loaded.adapter is None:
            beside.append(self.load(at).model.requires_grad_(False))
        loaded, G = at.loaded, self.drawing.samples
        problems, _ = read_problems(self.data, "train", self.paths.mirror, self.max_train_problems, self.seed)
        prompt = max(prompts_of(self.data, problems, loaded.tokenizer, loaded.start_ids, self.asking.chat), key=len)
        longest = self.asking.max_new_tokens
        drawn = Drawn([0] * longest, [0.0] * longest, [0.0] * longest, "", False)
        group = Group(Asked(problems[0], prompt, ""), [drawn] * G, [0.0] * G)

        def batch(rows: int) -> Batch:
            made = group_batch([group] * rows, [[0.0] * G] * rows, loaded.tokenizer.eos_id)
            made["counted"] = torch.full((rows,), G * longest)
            asked = {"old": self.drawing.updates > 1, "reference": self.policy_loss.needs_reference,
                     "teacher": self.policy_loss.needs_teacher}  # fmt: skip
            return made | {f"{name}_log_probs": made["drawn_log_probs"] for name, wanted in asked.items() if wanted}

        return Step(loaded.model, PolicyGradient(self.policy_loss), batch, beside)

    def measure(self, at: Session) -> Measured:
        import numpy as np

        from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval
        from modern_llm.experiment.record import Measured, evaluated_on
        from modern_llm.files import read_json

        asked: list[Asked] = at.data["evaluation"]
        found = self.solve(at, asked)
        outcomes = found.outcomes(self.asking.reading)
        before = read_json(at.folder.path / BEFORE)
        metrics: dict[str, float] = {}
        for name, values in outcomes.items():
            each = {f"evaluation_{name}": np.array(values), f"before_{name}": np.array(before[name])}
            sign = -1 if direction(name) == "lower" else 1
            each[f"evaluation_{name}_gain"] = sign * (each[f"evaluation_{name}"] - each[f"before_{name}"])
            for key, numbers in each.items():
                metrics[key] = float(numbers.mean())
                metrics[f"{key}_low"], metrics[f"{key}_high"] = bootstrap_interval(numbers, seed=self.seed)
        rows = [
            {
                "index": group.index,
                "input": group.asked.problem.question,
                "reference": group.asked.reference,
                "prediction": greedy.drawn[0].text,
                "detail": f"{sum(group.right(self.asking.reading))} of {len(group.drawn)} drawn answers are right",
            }
            for group, greedy in zip(found.groups, found.greedy, strict=True)
            if not greedy.right(self.asking.reading)[0]
        ]
        at.folder.write_lines("errors.jsonl", rows)
        identities = [one.problem.identity for one in asked]
        return Measured(
            metrics,
            [
                *("before_pass_at_1", "evaluation_pass_at_1", "evaluation_pass_at_1_gain", "evaluation_greedy_em"),
                *(f"{when}_teacher_kl_estimate" for when in ("before", "evaluation") if at.data["teacher"] is not None),
            ],
            {"": evaluated_on(content_fingerprint(identities), len(asked), at.loaded.tokenizer.fingerprint)},
            {
                "data": self.data.source.name,
                "train_problems": len(at.data["train"]),
                "left_out_because_the_verifier_knows_them": at.data["left_out"],
                "answers_per_problem": self.evaluation.samples,
                "reading": self.asking.reading,
                "intervals": "95 %, by drawing problems; gains are paired by problem",
            },
            {
                "samples": [
                    {"prompt": greedy.asked.problem.question, "text": f" → {greedy.drawn[0].text.strip()}"}
                    for greedy in found.greedy[:_SHOWN]
                ],
                "errors": rows[:50],
                "tables": self._samples_over_steps(at),
            },
        )

    # -- the parts --------------------------------------------------------------------------------------------------

    def _asked(self, at: Session, part: Part) -> list[Asked]:
        from modern_llm.data.rows import draw_rows
        from modern_llm.data.solutions.problems import read_problems
        from modern_llm.evaluation.reranking import reference_number
        from modern_llm.experiment.problems import posed, without_known
        from modern_llm.reinforcement.groups import Asked

        limits = {"train": self.max_train_problems, "selection": self.evaluation.selection,
                  "evaluation": self.evaluation.problems}  # fmt: skip
        known, limit = self.reward.known_problems(), limits[part]
        problems, rows = read_problems(self.data, part, self.paths.mirror, None if known else limit, self.seed)
        if known:
            left = without_known(problems, known, _OTHER_PROBLEMS, "task.reward", part)
            at.data["left_out"][part] = len(problems) - len(left)
            problems = [left[place] for place in draw_rows([*range(len(left))], limit, self.seed)]
        teachers = [] if at.data["teacher"] is None else [at.data["teacher"]]
        put = posed(at.loaded, self.data, problems, self.asking, teachers)
        asked = [Asked(problems[place], prompt, reference_number(problems[place].solution))
                 for place, prompt in zip(put.places, put.prompts, strict=True)]  # fmt: skip
        left_out = f" ({len(problems) - len(asked)} left out: too long)" if len(asked) < len(problems) else ""
        say(f"{part}: {len(asked):,} problems of {self.data.source.name}, {rows.split}{left_out}")
        return asked

    def _drawer(self, at: Session, marker: Marker, samples: int, greedy: bool = False) -> Drawer:
        from modern_llm.reinforcement.groups import Drawer

        asking, side_by_side = self.asking, self.trainer.batch_size * self.drawing.samples
        return Drawer(
            at.loaded,
            at.runtime,
            marker,
            samples,
            asking.max_new_tokens,
            replace(asking.sampling, temperature=0.0) if greedy else asking.sampling,
            [] if asking.chat else self.data.stop,  # a turn has an end of its own
            self.seed,
            self.hardware.eval_batch_size or side_by_side,
        )

    def solve(self, at: Session, asked: Sequence[Asked]) -> Solved:
        """Answers of the policy as it is, drawn and most likely ones; the same draws in every evaluation."""
        from modern_llm.reinforcement.evaluation import solved

        marker = at.data["marker"]
        drawer = self._drawer(at, marker, self.evaluation.samples)
        greedy = self._drawer(at, marker, 1, greedy=True)
        return solved(drawer, greedy, asked, 0, self._divergences(at), progress_of("held-out problems"))

    def _before(self, at: Session) -> None:
        """Measure the policy before training, once."""
        path = at.folder.path / BEFORE

        def measured() -> None:
            if not path.is_file():
                say("measuring the policy before training")
                found = self.solve(at, at.data["evaluation"]).outcomes(self.asking.reading)
                if world().is_first:
                    at.folder.write_json(BEFORE, found)

        after_first(measured)

    def _log_probs(self, at: Session, loaded: LoadedModel, within: Any = None) -> Any:
        from contextlib import nullcontext

        from modern_llm.reinforcement.groups import token_log_probs

        rows = self.hardware.rows_at_once(self.trainer.batch_size)

        def of(batch: Batch) -> torch.Tensor:
            return token_log_probs(loaded, at.runtime, batch, rows, within or nullcontext)

        return of

    def _reference(self, at: Session) -> Any:
        """Log-probabilities of the policy before training: without its adapters, or by a copy of its weights."""
        if not self.policy_loss.needs_reference:
            return None
        if at.loaded.adapter is not None:
            return self._log_probs(at, at.loaded, at.loaded.untrained)
        from copy import deepcopy

        copy = replace(at.loaded, model=deepcopy(at.loaded.model).requires_grad_(False))
        return self._log_probs(at, copy)

    def _divergences(self, at: Session) -> Any:
        """How far groups are from the teacher."""
        if at.data["teacher"] is None:
            return None
        from functools import partial

        from modern_llm.reinforcement.teacher import teacher_divergences

        log_probs = self._log_probs(at, at.data["teacher"])
        return partial(teacher_divergences, log_probs=log_probs, fill_id=at.loaded.tokenizer.eos_id)

    def _samples_over_steps(self, at: Session) -> dict[str, list[dict[str, Any]]]:
        """Most likely answers to the same problems in every evaluation, for the page."""
        import json

        path = at.folder.path / SAMPLES
        rows = map(json.loads, path.read_text("utf-8").splitlines()) if path.is_file() else ()
        last = {(row["question"], row["draws"]): row for row in rows}  # an evaluation may have been done again
        return {"Answers over the steps": [last[key] for key in sorted(last)]} if last else {}


class _Held:
    """The evaluation during training.

    Args:
        task, at: of the run.
        stream: tells how many draws there were.
    """

    def __init__(self, task: RL, at: Session, stream: RolloutStream) -> None:
        self.task, self.at, self.stream = task, at, stream
        self.metrics: dict[str, Direction] = directions([f"validation_{name}" for name in task.measured])

    def __call__(self, model: Any) -> dict[str, float]:
        found = self.task.solve(self.at, self.at.data["selection"])
        if world().is_first:
            self._keep(found)
        outcomes = found.outcomes(self.task.asking.reading)
        return {f"validation_{name}": sum(outcomes[name]) / len(outcomes[name]) for name in self.task.measured}

    def _keep(self, found: Solved) -> None:
        import json

        with (self.at.folder.path / SAMPLES).open("a", encoding="utf-8") as file:
            for group, greedy in zip(found.groups[:_SHOWN], found.greedy, strict=False):
                right = sum(group.right(self.task.asking.reading))
                row = {"question": group.asked.problem.question, "draws": self.stream.turn,
                       "answer": greedy.drawn[0].text, "right": f"{right} of {len(group.drawn)}"}  # fmt: skip
                file.write(json.dumps(row) + "\n")
