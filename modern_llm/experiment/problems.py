"""Problems put to a model, and its answers marked: what sampling a verifier's data, best of n and pipelines share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from modern_llm.checks import require
from modern_llm.data.rows import FileRows
from modern_llm.data.solutions.settings import MOST_SAMPLES, ProblemData, Reading, SolutionData
from modern_llm.defaults import Defaults
from modern_llm.experiment.contract import RunFolder, say
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.pretrained.settings import ModelFromRun, PretrainedChoice, PretrainedModel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modern_llm.data.solutions.problems import Problem
    from modern_llm.data.text.tokenizers import Tokenizer
    from modern_llm.evaluation.rewards import AnswerRewards
    from modern_llm.evaluation.rollouts import Attempts
    from modern_llm.evaluation.verifier import AnswerVerifier
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.runtime import Runtime

SAMPLES_FILE = "samples.jsonl"


_ASKING = Defaults("task/asking/drawn")


@dataclass(frozen=True)
class Asking:
    """How a model is asked, and how its answers are read.

    Args:
        sampling: how a token is chosen.
        max_new_tokens: longest answer.
        chat: through the model's chat template; else the plain prompt is continued.
        reading: `flexible`: the last number of an answer counts; `strict`: the one behind `####`.
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))
    max_new_tokens: int = _ASKING("max_new_tokens")
    chat: bool = _ASKING("chat")
    reading: Reading = _ASKING("reading")

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "task.asking.max_new_tokens", self.max_new_tokens, "must be at least 1",
                "Raise it")  # fmt: skip

    def require_variety(self, key: str, samples: int) -> None:
        """Refuse numbers of samples that mean nothing."""
        require(1 <= samples <= MOST_SAMPLES, key, samples, f"must lie between 1 and {MOST_SAMPLES}", "Change it")
        temperature = self.sampling.temperature
        require(samples == 1 or temperature > 0, "task.asking.sampling.temperature", temperature,
                f"makes all of {key}={samples} answers the same", f"Raise it, or use {key}=1")  # fmt: skip

    def marked(self, problem: Problem, text: str) -> tuple[str | None, bool]:
        """The number that an answer comes to, or None, and whether it is the problem's."""
        from modern_llm.evaluation.metrics.numbers import same_number
        from modern_llm.evaluation.reranking import READINGS, reference_number

        answer = READINGS[self.reading](text)
        return answer, same_number(answer, reference_number(problem.solution))


def load_solver(choice: PretrainedChoice, runtime: Runtime, mirror: str | None) -> LoadedModel:
    """A decoder that answers.

    Raises:
        ValueError: an encoder-decoder, or a classifier.
    """
    from modern_llm.experiment.loading import load_decoder
    from modern_llm.experiment.training import tell_model

    loaded = load_decoder(choice, runtime, mirror, train=False)
    loaded.model.eval()
    tell_model(loaded, runtime, train=False)
    return loaded


class Posed(NamedTuple):
    """Problems as a model reads them: those that fit into its context beside an answer.

    Attributes:
        places: of these among all problems.
        prompts: ids of each.
        room: tokens that a prompt may have.
        tokenizer: that wrote them.
        stop: strings that end an answer; a turn of a chat has an end of its own.
    """

    places: list[int]
    prompts: list[list[int]]
    room: int
    tokenizer: Tokenizer
    stop: list[str]


def posed(
    loaded: LoadedModel,
    data: ProblemData,
    problems: Sequence[Problem],
    asking: Asking,
    others: Sequence[LoadedModel] = (),
) -> Posed:
    """Problems as prompts; arguments as in `ask`.

    Args:
        others: models that read the same prompts and answers.

    Raises:
        ValueError: no problem fits.
    """
    from modern_llm.data.chat import with_chat
    from modern_llm.data.solutions.problems import prompts_of
    from modern_llm.experiment.loading import room_in

    tokenizer = with_chat(loaded.tokenizer) if asking.chat else loaded.tokenizer
    prompts = prompts_of(data, problems, tokenizer, loaded.start_ids, asking.chat)
    context = min(room_in(one, None) for one in (loaded, *others))
    room = context - asking.max_new_tokens
    places = [place for place, prompt in enumerate(prompts) if len(prompt) <= room]
    if not places:
        raise ValueError(
            f"task.asking.max_new_tokens={asking.max_new_tokens}: no problem fits into the model's context of "
            f"{context} tokens beside such an answer. Lower it, or choose a model with a longer context."
        )
    return Posed(places, [prompts[place] for place in places], room, tokenizer, [] if asking.chat else data.stop)


def most_likely_answers(
    loaded: LoadedModel, runtime: Runtime, data: ProblemData, problems: Sequence[Problem], asking: Asking
) -> tuple[list[str], list[bool]]:
    """The most likely answer to each problem, many written side by side, and whether it is right: one that does not fit
    into the model's context is empty, and not right. Arguments as in `ask`."""
    from modern_llm.evaluation.answering import write_answers
    from modern_llm.experiment.contract import progress_of

    put = posed(loaded, data, problems, asking)
    with runtime.autocast():
        written = write_answers(loaded.decoder, put.tokenizer, put.prompts, max_new_tokens=asking.max_new_tokens,
                                stop=put.stop, batch_size=runtime.hardware.eval_rows,
                                progress=progress_of("held-out problems"))  # fmt: skip
    texts, right = [""] * len(problems), [False] * len(problems)
    for place, answer in zip(put.places, written, strict=True):
        texts[place], right[place] = answer.text, asking.marked(problems[place], answer.text)[1]
    return texts, right


def ask(
    loaded: LoadedModel,
    runtime: Runtime,
    data: ProblemData,
    problems: Sequence[Problem],
    n: int,
    asking: Asking,
    *,
    path: Path,
    batch_size: int,
    seed: int,
    greedy: bool = True,
) -> tuple[list[Problem], list[Attempts]]:
    """Let a model answer problems; what stands in the file at `path` already is not sampled again.

    Problems that do not fit into the model's context beside an answer are left out, and told of.

    Args:
        loaded: a decoder.
        runtime: the machine.
        data: how the problems are asked.
        n: answers that are drawn of each.
        asking: how the model is asked.
        path: JSON-lines file that the answers go to as they end.
        batch_size: answers that are written side by side.
        seed: of the draws.
        greedy: write the most likely answer too.

    Returns:
        The problems that fit, and their answers.

    Raises:
        ValueError: no problem fits, or the file was sampled from another model or with other settings.
    """
    from modern_llm.evaluation.rollouts import AttemptFile, solve
    from modern_llm.experiment.contract import progress_of
    from modern_llm.pretrained.loaded import weights_fingerprint

    put = posed(loaded, data, problems, asking)
    if len(put.places) < len(problems):
        say(f"{len(problems) - len(put.places)} problems are left out, because they do not fit into {put.room} tokens")
    problems, tokenizer = [problems[place] for place in put.places], put.tokenizer

    def describe(place: int, text: str) -> dict[str, Any]:
        answer, correct = asking.marked(problems[place], text)
        return {"question": problems[place].question, "answer": answer, "correct": correct}

    settings = [weights_fingerprint(loaded.model), tokenizer.fingerprint, tokenizer.chat_template, data, asking, seed]
    with runtime.autocast():
        attempts = solve(
            loaded.decoder,
            tokenizer,
            put.prompts,
            n,
            max_new_tokens=asking.max_new_tokens,
            sampling=asking.sampling,
            stop=put.stop,
            greedy=greedy,
            batch_size=batch_size,
            seed=seed,
            numbers=[problem.index for problem in problems],
            file=AttemptFile(path, settings),
            describe=describe,
            progress=progress_of("sampling, problems"),
        )
    return problems, attempts


def scored(
    judge: AnswerVerifier | AnswerRewards, problems: Sequence[Problem], attempts: Sequence[Attempts], batch_size: int
) -> list[list[float]]:
    """(P, n) probabilities that the samples of P problems are right, or the preferred ones, as `rerank` takes them."""
    from modern_llm.experiment.contract import progress_of

    pairs = [
        (problem.question, sample.text) for problem, a in zip(problems, attempts, strict=True) for sample in a.samples
    ]
    questions, answers = ([pair[i] for pair in pairs] for i in (0, 1))
    scores = judge.score(questions, answers, batch_size, progress_of("judging answers"))
    if judge.truncated:
        say(f"{judge.truncated} answers are read without the beginning of their problem, to fit")
    return judge.weights(scores.reshape(len(problems), -1)).tolist()


_SAMPLED_SOLUTIONS = Defaults("task/data/sampled")


@dataclass(frozen=True)
class SampledSolutions:
    """Answers that a model at hand draws to problems of the training split, marked by the number they come to.

    They are kept in the run folder, in a file that `task/data=solution_files` reads as well.

    Args:
        generator: which model.
        problems: the problems.
        samples: answers drawn of each.
        asking: how the model is asked.
        max_problems: a sample drawn by the seed; null: all.
        held_out: problems on which the best checkpoint is chosen, and as many again that are reported on.
    """

    generator: PretrainedModel | ModelFromRun
    problems: ProblemData
    samples: int = _SAMPLED_SOLUTIONS("samples")
    asking: Asking = field(default_factory=Asking)
    max_problems: int | None = _SAMPLED_SOLUTIONS("max_problems")
    held_out: int = _SAMPLED_SOLUTIONS("held_out")

    def __post_init__(self) -> None:
        self.asking.require_variety("task.data.samples", self.samples)
        require(self.held_out >= 1, "task.data.held_out", self.held_out, "must be at least 1", "Use 50")
        enough = self.max_problems is None or self.max_problems > 2 * self.held_out
        require(enough, "task.data.max_problems", self.max_problems,
                f"must exceed twice task.data.held_out={self.held_out}", "Raise it, or use null")  # fmt: skip

    def drawn(
        self, folder: RunFolder, runtime: Runtime, batch_size: int, mirror: str | None, seed: int
    ) -> SolutionData:
        """Draw what is still missing, and say where it stands; arguments as in `ask`."""
        from modern_llm.data.solutions.problems import read_problems

        problems, _ = read_problems(self.problems, "train", mirror, self.max_problems, seed)
        path = folder.path / SAMPLES_FILE
        loaded = load_solver(self.generator, runtime, mirror)
        ask(loaded, runtime, self.problems, problems, self.samples, self.asking, path=path, batch_size=batch_size,
            seed=seed, greedy=False)  # fmt: skip
        return SolutionData(FileRows(str(path), None, self.held_out), answer_column="text")


def without_known(
    problems: Sequence[Problem],
    known: frozenset[str],
    remedy: str = "Choose other problems (task.data), or task.verifier=null",
    key: str = "task.verifier",
    part: str = "",
) -> list[Problem]:
    """Problems that a verifier or a reward model was not trained or calibrated on.

    Args:
        problems: of which they are.
        known: `problem_id` of those that it was.
        remedy, key: for the message.
        part: of the data, where there are several.

    Raises:
        ValueError: it knows them all; with key and remedy.
    """
    named = f"{len(problems)} problems{f' of the {part} part' if part else ''}"
    left = [problem for problem in problems if problem.identity not in known]
    if not left:
        raise ValueError(f"{key}: it was trained on all of the {named}, so that its judgement would flatter. {remedy}.")
    if len(left) < len(problems):
        say(f"{len(problems) - len(left)} of {named} are left out: the verifier was trained on them")
    return left
