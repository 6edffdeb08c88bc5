"""Best of n: many answers to each problem, one of them chosen by majority or by a verifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.solutions.settings import ProblemData
from modern_llm.defaults import ROOT, Defaults
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.experiment.judges import known_problems, load_judge, require_judge
from modern_llm.experiment.problems import SAMPLES_FILE, Asking
from modern_llm.experiment.training import require_positive
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    from modern_llm.data.solutions.problems import Problem
    from modern_llm.evaluation.reranking import Reranked
    from modern_llm.evaluation.rollouts import Attempts

CURVE, PICTURE = "Problems solved with k answers", "solved.png"
_METRICS = ("greedy_em", "majority_em", "verifier_em", "weighted_em", "sample_em")


_DEFAULTS = Defaults("task/best_of_n")


@dataclass(frozen=True)
class BestOfN:
    """Draw n answers to each problem, and choose one in every way that there is.

    Args:
        model, hardware, paths, seed: of the same names in the configuration. The model is any decoder.
        data: the problems, of which the evaluation part is taken.
        samples: answers drawn of each, n.
        asking: how the model is asked, and how its answers are read.
        max_problems: a sample drawn by the seed; null: all.
        verifier: folder of a run of task=verifier, whose probabilities choose, or of task=reward_model, whose rewards
            do; null: none. Problems that it was trained on are left out.
        objective_metric: final metric that a sweep optimises.

    Raises:
        ValueError: an impossible combination.
    """

    model: PretrainedModel | ModelFromRun
    hardware: Hardware
    data: ProblemData
    paths: Paths = field(default_factory=Paths)
    seed: int = ROOT("seed")
    samples: int = _DEFAULTS("samples")
    asking: Asking = field(default_factory=Asking)
    max_problems: int | None = _DEFAULTS("max_problems")
    verifier: str | None = _DEFAULTS("verifier")
    objective_metric: str = _DEFAULTS("objective_metric")

    def __post_init__(self) -> None:
        require_positive(self, "max_problems")
        self.asking.require_variety("task.samples", self.samples)
        if self.verifier is not None:
            require_judge("task.verifier", self.verifier, ", or null for none")
        known = [name for name in _METRICS if self.verifier is not None or name not in ("verifier_em", "weighted_em")]
        known.append(f"pass_at_{self.samples}")
        require(self.objective_metric in known, "task.objective_metric", self.objective_metric, "is not measured",
                f"Choose among {', '.join(known)}")  # fmt: skip

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Sample, choose and report. Returns the final metrics."""
        import time

        import torch

        from modern_llm.data.rows import draw_rows
        from modern_llm.data.solutions.problems import read_problems
        from modern_llm.evaluation.reranking import reference_number, rerank
        from modern_llm.experiment.contract import say
        from modern_llm.experiment.problems import ask, load_solver, scored, without_known
        from modern_llm.training.runtime import Runtime

        torch.manual_seed(self.seed)
        runtime, mirror, rows = Runtime(self.hardware), self.paths.mirror, self.hardware.eval_rows
        every, source = read_problems(self.data, "evaluation", mirror)
        problems = without_known(every, known_problems(self.verifier) if self.verifier else frozenset())
        left_out = len(every) - len(problems)
        places = draw_rows(list(range(len(problems))), self.max_problems, self.seed)
        problems = [problems[place] for place in places]
        loaded = load_solver(self.model, runtime, mirror)
        say(f"{self.data.source.name}, {source.split}: {len(problems)} problems, {self.samples} answers each")
        start = time.perf_counter()
        path = folder.path / SAMPLES_FILE
        problems, attempts = ask(loaded, runtime, self.data, problems, self.samples, self.asking, path=path,
                                 batch_size=rows, seed=self.seed)  # fmt: skip
        seconds, name, fingerprint = time.perf_counter() - start, loaded.name, loaded.fingerprint
        del loaded  # makes room for the verifier
        scores = None
        if self.verifier is not None:
            scores = scored(load_judge(self.verifier, runtime, mirror), problems, attempts, rows)
        references = [reference_number(problem.solution) for problem in problems]
        reranked = rerank(attempts, references, reading=self.asking.reading, scores=scores, seed=self.seed)
        written = [c for a in attempts for c in a.samples]
        metrics = {
            **reranked.metrics,
            "cut_off_share": sum(not c.ended for c in written) / len(written),
            "problems": float(len(problems)),
            "samples": float(self.samples),
            "sampling_seconds": seconds,
            "peak_memory_gb": runtime.peak_memory_gb(),
        }
        protocol = {
            "model": name,
            "base_fingerprint": fingerprint,
            "evaluation_split": source.split,
            "problems": len(problems),
            "left_out_because_the_verifier_knows_them": left_out,
            "answers_per_problem": self.samples,
            "with_fewer_answers": "expectation over which of them",
            "ties": "the number that was sampled first",
            "intervals": "95 %, by drawing problems",
        }
        self._report(folder, runtime, metrics, protocol, problems, attempts, references, reranked, scores)
        return metrics

    def _report(
        self,
        folder: RunFolder,
        runtime: Any,
        metrics: dict[str, float],
        protocol: dict[str, Any],
        problems: list[Problem],
        attempts: list[Attempts],
        references: list[str],
        reranked: Reranked,
        scores: list[list[float]] | None,
    ) -> None:
        from modern_llm.data.rows import content_fingerprint
        from modern_llm.experiment.record import Measured, conclude, evaluated_on
        from modern_llm.reporting.curves import draw_solved

        rows = choices(problems, attempts, references, reranked, scores)
        wrong = [row for row in rows if not row["majority_right"]]
        folder.write_lines("predictions.jsonl", rows)
        folder.write_lines("errors.jsonl", wrong)
        picture = draw_solved(reranked.curve, folder.path / PICTURE, metrics["greedy_em"])
        headline = [*_METRICS, f"pass_at_{self.samples}"]
        samples = [
            {"prompt": p.question, "text": f" → {a.samples[0].text.strip()}  (reference: {r})"}
            for p, a, r in zip(problems[:3], attempts, references, strict=False)
        ]
        shown = [{k: v for k, v in row.items() if k != "probabilities"} for row in wrong[:50]]
        more = {"errors": shown, "samples": samples, "tables": {CURVE: reranked.curve}}
        more |= {"pictures": {"Problems solved": PICTURE}}
        on = {"": evaluated_on(content_fingerprint([p.question for p in problems]), len(problems))}
        conclude(folder, runtime, self.objective_metric, Measured(metrics, headline, on, protocol, more))
        print(f"{'picture:':<12}{picture}")


def choices(
    problems: list[Problem],
    attempts: list[Attempts],
    references: list[str],
    reranked: Reranked,
    scores: list[list[float]] | None,
) -> list[dict[str, Any]]:
    """What every way chose for each problem."""
    return [
        {
            "index": problem.index,
            "question": problem.question,
            "reference": reference,
            **{f"{way}_answer": numbers[i] for way, numbers in reranked.chosen.items()},
            **{f"{way}_right": right[i] for way, right in reranked.right.items()},
            **({} if scores is None else {"probabilities": [round(p, 6) for p in scores[i]]}),
            "greedy_text": greedy.text if (greedy := attempts[i].greedy) is not None else "",
        }
        for i, (problem, reference) in enumerate(zip(problems, references, strict=True))
    ]
