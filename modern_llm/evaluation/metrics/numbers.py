"""GSM8K answers: read from a text, compared, and told apart where they are wrong (Cobbe et al. 2021).

A number is written as in the data set, with a decimal point and commas between thousands:

- `1,234` and TeX's `1{,}234` are one number; `1, 2`, `1,23`, `0,123` and `1,234,5` are lists of numbers.
- `-5`, `−5` and `+5` carry a sign, also before a currency, `-$5`. A minus right behind a number, a letter or a closing
  bracket is a range or a subtraction, and one with a space behind it a dash: `3-4`, `x-5` and `- 5` end in 4, 5 and 5.
- The full stop behind `42.` is left out, and so are currencies, `%` (20 % is 20), Markdown, TeX and units: `5kg` is 5,
  `3rd` is 3, `\\boxed{42}` is 42.
- Nothing is worked out: `1/2` and `1e5` are two numbers each, and `four` is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Literal

FailureKind = Literal["no number", "wrong number", "cut off"]

_NUMBER = r"""
    (?: (?<! [\w)\]}%°\-−] ) (?<! [0-9][$€£¥₹] )
        (?P<sign> [-+−] ) (?: \\?[$€£¥₹]\ ? )? )?
    (?P<digits>
        (?<! [0-9], ) [1-9][0-9]{0,2} (?: (?: , | \{,\} ) [0-9]{3} )+ (?! [0-9] | ,[0-9] ) (?: \.[0-9]+ )?
      | [0-9]+ (?: \.[0-9]+ )?
      | (?<! [\w.] ) \.[0-9]+
    )
"""
_ANY_NUMBER = re.compile(_NUMBER, re.VERBOSE)
# Between marker and number, on one line: spaces, Markdown, TeX, a currency. No word, and no hyphen that is not a sign.
_DECORATION = r"[^\w\n+\-−.]*"
_MARKED_NUMBER = re.compile(
    rf"(?<!\#) \#\#\#\# (?!\#) {_DECORATION} (?: \\boxed {_DECORATION} )? {_NUMBER}", re.VERBOSE
)
_NEXT_QUESTION = re.compile(r"\n\s*(?:Question|Q):")


def strict_answer(text: str) -> str | None:
    """The number behind the first `####` that has one on its line, before any further question; None: there is none.

    What is published as `strict-match`. The number comes without separators or currency: `-1234.50`.
    """
    match = _MARKED_NUMBER.search(_first_solution(text))
    return _plain(match) if match else None


def flexible_answer(text: str) -> str | None:
    """The last number of the text, before any further question; None: there is none.

    What is published as `flexible-extract`. A number behind `####` does not take precedence. A model that runs on is
    read up to its next `Question:` or `Q:` at the beginning of a line; a question that opens the text is no such one.
    """
    matches = list(_ANY_NUMBER.finditer(_first_solution(text)))
    return _plain(matches[-1]) if matches else None


def reference_answer(text: str) -> str:
    """The answer of a GSM8K reference, whose line `#### n` holds the number alone.

    Raises:
        ValueError: there is no such line.
    """
    match = _MARKED_NUMBER.search(text)
    if match is None or text[match.end() :].partition("\n")[0].strip():
        raise ValueError(
            f"the reference {text!r} has no line '#### n' with one number. "
            "References of GSM8K end in one; check which column holds the answer."
        )
    return _plain(match)


def same_number(first: str | None, second: str | None) -> bool:
    """Whether two texts hold one number each, and the same: compared as exact decimals, `$1,234.50` is `1234.5`.

    None, as of a text without an answer, is the same as nothing.
    """
    one, other = _value(first), _value(second)
    return one is not None and one == other


def failure_kind(
    prediction: str,
    reference: str,
    *,
    hit_length_limit: bool,
    answer: Callable[[str], str | None] = flexible_answer,
) -> FailureKind | None:
    """Why a prediction counts as wrong; None: it counts as right.

    Args:
        prediction: generated text.
        reference: the right number, of `reference_answer`.
        hit_length_limit: the text ends because no more tokens were allowed.
        answer: how the answer is read: `flexible_answer` or `strict_answer`.

    Returns:
        `cut off` where the limit came before a marked answer and before any further question, so that a number in the
        text is a step on the way; else `no number` or `wrong number`.
    """
    found = answer(prediction)
    if same_number(found, reference):
        return None
    unfinished = strict_answer(prediction) is None and _first_solution(prediction) == prediction.lstrip()
    if hit_length_limit and unfinished:
        return "cut off"
    return "no number" if found is None else "wrong number"


def _first_solution(text: str) -> str:
    return _NEXT_QUESTION.split(text.lstrip(), maxsplit=1)[0]


def _plain(match: re.Match[str]) -> str:
    sign = "-" if match["sign"] in ("-", "−") else ""
    return sign + match["digits"].replace("{,}", "").replace(",", "")


def _value(text: str | None) -> Decimal | None:
    matches = list(_ANY_NUMBER.finditer(text or ""))
    return Decimal(_plain(matches[0])) if len(matches) == 1 else None
