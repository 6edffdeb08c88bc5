"""Errors of a run in groups. Reads the rows of `predictions.jsonl` alone, and imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Z = 1.959964  # 97.5 % quantile of the normal distribution
_CONFIDENCE = re.compile(r"^p\(.*\) = ([0-9.]+)$", re.DOTALL)


def wilson(wrong: float, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), which holds for few examples and for shares near 0 and 1, too."""
    share, spread = wrong / count, Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def grouped(rows: Iterable[dict[str, Any]], name_of: Callable[[dict[str, Any]], str | None]) -> list[dict[str, Any]]:
    """Examples and errors of each group, in the order in which the groups come; rows without a name are left out."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = name_of(row)
        if name is not None:
            groups.setdefault(name, []).append(row)
    table = []
    for name, members in groups.items():
        scores = [float(row["score"]) for row in members]
        wrong = sum(1 - score for score in scores)
        low, high = wilson(wrong, len(scores))
        table.append({"group": name, "examples": len(scores), "errors": wrong, "share": wrong / len(scores),
                      "low": low, "high": high})  # fmt: skip
    return table


def words(text: str) -> int:
    """Whitespace-separated words."""
    return len(text.split())


def by_length(rows: Sequence[dict[str, Any]], groups: int) -> list[dict[str, Any]]:
    """Errors by the words of the input, in groups of about the same size; equal lengths stay together."""
    lengths = sorted(words(row["input"]) for row in rows)
    borders = sorted({lengths[len(lengths) * number // groups] for number in range(1, groups)} - {lengths[0]})
    edges = [lengths[0], *borders, lengths[-1] + 1]

    def name_of(row: dict[str, Any]) -> str:
        place = sum(words(row["input"]) >= border for border in borders)
        low, high = edges[place], edges[place + 1] - 1
        return f"{low} words" if low == high else f"{low} to {high} words"

    return grouped(sorted(rows, key=lambda row: words(row["input"])), name_of)


def by_label(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Errors by the right label."""
    return grouped(sorted(rows, key=lambda row: row["reference"]), lambda row: row["reference"])


def confusion(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How often each label was taken for each: a row for the right one, a column for the chosen one."""
    labels = sorted({row[key] for row in rows for key in ("reference", "prediction")})
    return [
        {"right label": right} | {
            chosen: sum(row["reference"] == right and row["prediction"] == chosen for row in rows) for chosen in labels
        }
        for right in labels
    ]  # fmt: skip


def confidence(row: dict[str, Any]) -> float | None:
    """Probability of the chosen label, as `detail` says it; None where it does not."""
    found = _CONFIDENCE.match(str(row.get("detail", "")))
    return float(found[1]) if found else None


def by_confidence(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Errors by the probability of the chosen label, in tenths: a calibrated model is wrong in one less that share."""
    known = [(value, row) for row in rows if (value := confidence(row)) is not None]

    def name_of(row: dict[str, Any]) -> str:
        tenth = min(int((confidence(row) or 0.0) * 10 + 1e-9), 9)
        return f"{tenth / 10:.1f} to {(tenth + 1) / 10:.1f}"

    return grouped([row for _, row in sorted(known, key=lambda pair: pair[0])], name_of)


def calibration_error(rows: Sequence[dict[str, Any]]) -> float | None:
    """Expected calibration error over tenths (Naeini et al. 2015): |confidence - accuracy|, weighted by examples."""
    tenths: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        value = confidence(row)
        if value is not None:
            tenths.setdefault(min(int(value * 10 + 1e-9), 9), []).append((value, float(row["score"])))
    count = sum(map(len, tenths.values()))
    gaps = (abs(sum(p for p, _ in pairs) - sum(score for _, score in pairs)) for pairs in tenths.values())
    return sum(gaps) / count if count else None


def by_kind(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the wrong answers, how many fail in which way, as `detail` says it."""
    wrong = [row for row in rows if row["score"] < 1 and row.get("detail")]
    kinds = sorted({row["detail"] for row in wrong}, key=lambda kind: -sum(row["detail"] == kind for row in wrong))
    found = []
    for kind in kinds:
        number = sum(row["detail"] == kind for row in wrong)
        low, high = wilson(number, len(rows))
        found.append({"group": kind, "examples": len(rows), "errors": number, "share": number / len(rows),
                      "low": low, "high": high})  # fmt: skip
    return found


def worst(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Examples that are not perfectly right, the worst ones first."""
    return sorted((row for row in rows if row["score"] < 1), key=lambda row: -float(row.get("badness", 0.0)))[:count]
