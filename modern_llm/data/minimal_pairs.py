"""Minimal pairs: two sentences that differ in one thing, of which one is grammatical (BLiMP, Warstadt et al. 2020,
arXiv 1912.00582)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from modern_llm.checks import require

BLIMP = "nyu-mll/blimp"
_PUBLISHED = "published.jsonl"  # accuracies of other models, where the mirror has them
# The data call some things otherwise than the paper, which has 12 phenomena in 4 fields.
_AS_IN_THE_PAPER = {"s-selection": "argument_structure", "syntax/semantics": "syntax_semantics"}


class MinimalPair(NamedTuple):
    """One pair.

    Attributes:
        good, bad: the grammatical sentence, and the other one.
        paradigm: what was done to it: `adjunct_island`.
        term: the phenomenon that the paradigm is of: `island_effects`.
        field: `morphology`, `syntax`, `semantics`, `syntax_semantics`.
    """

    good: str
    bad: str
    paradigm: str
    term: str
    field: str


def read_pairs(
    name: str, mirror: str | None, paradigms: Sequence[str] = (), limit: int | None = None
) -> list[MinimalPair]:
    """Pairs of a data set in BLiMP's layout, a configuration for each paradigm.

    Args:
        name: of the data set.
        mirror: root of the mirror.
        paradigms: which; empty: all.
        limit: the first ones of each paradigm; None: all.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: it has no such paradigm.
    """
    from modern_llm.hub import dataset_configs, find_dataset

    known = dataset_configs(name, mirror)
    for paradigm in paradigms:
        require(paradigm in known, "task.paradigms", paradigm, f"is none of {name}", f"Choose among {', '.join(known)}")
    pairs = []
    for paradigm in paradigms or known:
        rows = find_dataset(name, paradigm, "train", mirror)
        for row in rows.select(range(min(limit or len(rows), len(rows)))):
            term, field = (_AS_IN_THE_PAPER.get(row[key], row[key]) for key in ("linguistics_term", "field"))
            pairs.append(MinimalPair(row["sentence_good"], row["sentence_bad"], paradigm, term, field))
    return pairs


def published_accuracies(name: str, mirror: str | None) -> dict[str, dict[str, float]]:
    """Accuracies of other models on all pairs, where the mirror has them.

    Returns:
        Paradigm, term or `overall` -> model -> share.
    """
    from modern_llm.hub import file_beside

    path = file_beside(name, _PUBLISHED, mirror)
    if path is None:
        return {}
    found = {}
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        paradigm, term = row.pop("UID"), row.pop("linguistics_term")
        found[term if paradigm == "overall" else paradigm] = {model: float(share) for model, share in row.items()}
    return found
