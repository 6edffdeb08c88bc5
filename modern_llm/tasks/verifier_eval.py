"""A trained verifier on other answers: how well its probabilities hold, and what its choice among many gains."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.solutions.settings import SolutionData, problem_id
from modern_llm.defaults import ROOT, Defaults
from modern_llm.experiment.contract import Paths, RunFolder, require_finished
from modern_llm.experiment.judges import VERIFIER_FILE, known_problems, load_verifier
from modern_llm.experiment.problems import SAMPLES_FILE
from modern_llm.experiment.training import require_positive
from modern_llm.tasks.best_of_n import CURVE, PICTURE, choices
from modern_llm.tasks.verifier import HEADLINE
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    from modern_llm.data.solutions.problems import Problem
    from modern_llm.evaluation.reranking import Reranked
    from modern_llm.evaluation.rollouts import Attempts
    from modern_llm.evaluation.verifier import AnswerVerifier

_PROBLEMS_FILE = "predictions.jsonl"
_CHOICES = ("verifier_em", "verifier_gain", "weighted_em", "weighted_gain", "majority_em", "greedy_em")


_DEFAULTS = Defaults("task/verifier_eval")


@dataclass(frozen=True)
class VerifierEval:
    """Judge marked answers with a verifier that is trained already, and choose with it among samples drawn already.

    Args:
        verifier: folder of a run of task=verifier; its calibration and threshold are kept.
        hardware, paths, seed: of the same names in the configuration.
        data: answers with marks, of which the evaluation part is judged. Problems that the verifier was trained or
            calibrated on are left out, and counted.
        max_evaluation_problems: a sample drawn by the seed; null: all.
        best_of_n: folder of a run of task=best_of_n, among whose samples it chooses; null: none. Known problems are
            left out likewise.
        objective_metric: final metric that a sweep optimises.

    Raises:
        ValueError: a folder that holds no such run, or an impossible combination.
    """

    verifier: str
    hardware: Hardware
    data: SolutionData
    paths: Paths = field(default_factory=Paths)
    seed: int = ROOT("seed")
    max_evaluation_problems: int | None = _DEFAULTS("max_evaluation_problems")
    best_of_n: str | None = _DEFAULTS("best_of_n")
    objective_metric: str = _DEFAULTS("objective_metric")

    def __post_init__(self) -> None:
        require_positive(self, "max_evaluation_problems")
        require_finished("task.verifier", self.verifier, "verifier", VERIFIER_FILE)
        if self.best_of_n is not None:
            require_finished("task.best_of_n", self.best_of_n, "best_of_n", SAMPLES_FILE, _PROBLEMS_FILE)
        known = [*HEADLINE, *(_CHOICES if self.best_of_n is not None else ())]
        require(self.objective_metric in known, "task.objective_metric", self.objective_metric, "is not measured",
                f"Choose among {', '.join(known)}")  # fmt: skip

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Read, judge, choose and report. Returns the final metrics."""
        from modern_llm.data.rows import content_fingerprint
        from modern_llm.data.solutions.read import read_solutions
        from modern_llm.experiment.contract import say
        from modern_llm.experiment.record import Measured, conclude, evaluated_on
        from modern_llm.experiment.training import tell_skipped
        from modern_llm.pretrained.loaded import weights_fingerprint
        from modern_llm.tasks.verifier import described, how_measured, judged, measure_answers
        from modern_llm.training.runtime import Runtime

        runtime, mirror, rows = Runtime(self.hardware), self.paths.mirror, self.hardware.eval_rows
        known, name = known_problems(self.verifier), self.data.source.name
        limit = self.max_evaluation_problems
        part = read_solutions(
            self.data, mirror, None, limit, self.seed, wanted=("evaluation",), known=known
        )["evaluation"]  # fmt: skip
        if part.known:
            say(f"{part.known} problems are left out: the verifier was trained or calibrated on them")
        samples = DrawnSamples.read(self.best_of_n, known) if self.best_of_n is not None else None
        verifier = load_verifier(self.verifier, runtime, mirror)
        items, part = verifier.writer.encode(name, "evaluation", part)
        tell_skipped(f"evaluation, {len(part.problems):,} problems", len(items), part.skipped)
        metrics, more = measure_answers(verifier, items, part.rows, rows, self.seed, folder)
        protocol: dict[str, Any] = {
            "verifier": self.verifier,
            "verifier_fingerprint": weights_fingerprint(verifier.model),  # type: ignore[arg-type]
            "data": name,
            "evaluation": described(part),
            "left_out_because_the_verifier_knows_them": part.known,
            **how_measured(verifier),
        }
        metrics |= {"problems": float(len(part.problems)), "answers": float(len(items))}
        headline = [*HEADLINE]
        if samples is not None:
            chosen = samples.choose(verifier, rows, self.seed, folder)
            metrics |= chosen.metrics
            more["tables"] |= {CURVE: chosen.curve}
            more["pictures"] |= {"Problems solved": PICTURE}
            protocol |= {"best_of_n": {"run": self.best_of_n, **samples.facts()}}
            headline += [*_CHOICES, f"pass_at_{samples.n}"]
        metrics["peak_memory_gb"] = runtime.peak_memory_gb()
        on = {"": evaluated_on(judged(part), len(items))}
        if samples is not None:
            chosen_among = evaluated_on(content_fingerprint([p.question for p in samples.problems]), samples.n)
            on |= dict.fromkeys(chosen.metrics, chosen_among)
        measured = Measured(metrics, headline, on, protocol, more)
        return conclude(folder, runtime, self.objective_metric, measured)


@dataclass(frozen=True)
class DrawnSamples:
    """What a run of task=best_of_n left, without the problems that a verifier knows.

    Attributes:
        problems, attempts: what was asked, and the answers, n to each; a problem's solution is its number alone.
        n: answers to each.
        reading: how a number is read from them.
        left_out: problems that the verifier knows.
    """

    problems: list[Problem]
    attempts: list[Attempts]
    n: int
    reading: str
    left_out: int

    @classmethod
    def read(cls, path: str, known: frozenset[str]) -> DrawnSamples:
        """From the folder of a finished run.

        Raises:
            ValueError: the record is damaged, or the verifier knows all problems.
        """
        from modern_llm.data.solutions.problems import Problem
        from modern_llm.evaluation.rollouts import read_attempts
        from modern_llm.experiment.problems import without_known
        from modern_llm.reporting.record import RunRecord, read_rows

        folder = Path(path).expanduser()
        run = RunRecord.read(folder)
        notes = list(run.notes)
        rows = read_rows(folder / _PROBLEMS_FILE, notes)
        try:
            n, reading = int(run.metrics["samples"]), str(run.settings["task"]["asking"]["reading"])
            every = [Problem(r["index"], r["question"], r["reference"], problem_id(r["question"])) for r in rows]
        except (KeyError, TypeError) as cause:
            notes.append(f"there is no {cause}")
            every = []
        require(bool(every) and not notes, "task.best_of_n", path, f"its record is damaged ({'; '.join(notes)})",
                "Run task=best_of_n again")  # fmt: skip
        problems = without_known(every, known, "Choose another run of task=best_of_n, or task.best_of_n=null")
        attempts = read_attempts(folder / SAMPLES_FILE, [problem.index for problem in problems], n)
        return cls(problems, attempts, n, reading, len(every) - len(problems))

    def choose(self, verifier: AnswerVerifier, batch_size: int, seed: int, folder: RunFolder) -> Reranked:
        """Choose in every way, the verifier's too, and write the choices and the picture of the curve."""
        from modern_llm.evaluation.reranking import rerank
        from modern_llm.experiment.problems import scored
        from modern_llm.reporting.curves import draw_solved

        scores = scored(verifier, self.problems, self.attempts, batch_size)
        references = [problem.solution for problem in self.problems]
        chosen = rerank(self.attempts, references, reading=self.reading, scores=scores, seed=seed)
        rows = choices(self.problems, self.attempts, references, chosen, scores)
        folder.write_lines("choices.jsonl", rows)
        draw_solved(chosen.curve, folder.path / PICTURE, chosen.metrics["greedy_em"])
        return chosen

    def facts(self) -> dict[str, Any]:
        """What to know of the choice."""
        return {
            "problems": len(self.problems),
            "left_out_because_the_verifier_knows_them": self.left_out,
            "answers_per_problem": self.n,
            "with_fewer_answers": "expectation over which of them",
            "gain": "over the greedy answer, by problem",
            "intervals": "95 %, by drawing problems",
        }
