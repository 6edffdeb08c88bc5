"""Problems whose answer is a number, and the prompts that ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modern_llm.data.chat import ChatWriter
from modern_llm.data.rows import Part, Rows, require_columns, text_of
from modern_llm.data.solutions.settings import ProblemData, problem_id
from modern_llm.data.text.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        index: of the row in its split.
        question: text.
        solution: as the data have it: a number, or a text in whose line `#### n` it stands.
        identity: the same wherever the problem is found.
    """

    index: int
    question: str
    solution: str
    identity: str


def read_problems(
    data: ProblemData, part: Part, mirror: str | None, limit: int | None = None, seed: int = 0
) -> tuple[list[Problem], Rows]:
    """Problems of a part, each once, and the rows they are from; arguments as in `RowSource.rows`.

    Raises:
        ValueError: a column is missing, or there is no problem.
    """
    rows = data.source.rows(part, mirror, limit, seed)
    require_columns(data.source.name, rows, data.columns)
    found: dict[str, Problem] = {}
    for index, row in zip(rows.indices, rows.rows, strict=True):
        question, solution = (text_of(row.get(column)) for column in data.columns)
        if not question or not solution:
            raise ValueError(
                f"{data.source.name}, split {rows.split!r}, example {index}: has no question or no answer. Mend it, or "
                "leave it out."
            )
        found.setdefault(problem_id(question), Problem(index, question, solution, problem_id(question)))
    return list(found.values()), rows


def prompts_of(
    data: ProblemData, problems: Sequence[Problem], tokenizer: Tokenizer, start_ids: list[int], chat: bool
) -> list[list[int]]:
    """Ids of what a model continues with its answer.

    Args:
        tokenizer: of the model.
        start_ids: what every text of the model begins with; a chat template writes its own beginning.
        chat: ask through the chat template.

    Raises:
        ValueError: a chat without a template.
    """
    if chat:
        writer = ChatWriter(tokenizer)
        asked = [data.chat_prompt.format(question=problem.question) for problem in problems]
        return [writer.prompt([{"role": "user", "content": text}]) for text in asked]
    texts = [data.prompt.format(question=problem.question) for problem in problems]
    return [[*start_ids, *ids] for ids in tokenizer.encode_batch(texts)]
