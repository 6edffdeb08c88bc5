"""Several texts as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from modern_llm.data.text.mixture import Mixture
from modern_llm.data.text.sources import Source, Split


@dataclass(frozen=True)
class Made:
    """Documents of one letter."""

    letter: str
    count: int
    size: int = 10
    newlines_are_words: bool = False

    def splits(self) -> tuple[Split, ...]:
        return ("train", "validation")

    def fingerprint(self, split: Split, mirror: str | None) -> str:
        return f"{self} {split}"

    def documents(self, split: Split, mirror: str | None) -> Iterator[str]:
        for _ in range(self.count if split == "train" else 2):
            yield self.letter * self.size


SOURCES: dict[str, Source] = {"a": Made("a", 90), "b": Made("b", 400, 7)}


def test_each_source_has_its_share_of_the_bytes_all_along() -> None:
    mixture = Mixture(SOURCES, weights={"a": 3, "b": 1})
    bytes_of = {"a": 0, "b": 0}
    for document in mixture.documents("train", None):
        bytes_of[document[0]] += len(document)
        assert abs(bytes_of["a"] / 3 - bytes_of["b"]) <= 10  # one document
    assert bytes_of["a"] == 900  # used up, and the text ends
    assert list(mixture.documents("validation", None)) == ["a" * 10] * 2 + ["b" * 7] * 2


def test_a_source_may_be_gone_through_several_times() -> None:
    mixture = Mixture(SOURCES, weights={"a": 3, "b": 1}, repeats={"a": 4})
    found = "".join(mixture.documents("train", None))
    assert found.count("a") == 3600
    assert found.count("b") == pytest.approx(1200, abs=10)
    equal = "".join(Mixture(SOURCES).documents("train", None))
    assert equal.count("a") == 900
    assert equal.count("b") == pytest.approx(900, abs=10)


def test_the_fingerprint_is_that_of_everything() -> None:
    changed = [Mixture(SOURCES), Mixture(SOURCES, weights={"a": 2}), Mixture(SOURCES, repeats={"a": 2}),
               Mixture({"a": SOURCES["a"]}), Mixture(SOURCES | {"b": Made("b", 401, 7)})]  # fmt: skip
    assert len({mixture.fingerprint("train", None) for mixture in changed}) == len(changed)


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task\.data\.sources=\{\}: names none"):
        Mixture({})
    with pytest.raises(ValueError, match=r"task\.data\.weights\.c=1: is for no source\. Known: a, b"):
        Mixture(SOURCES, weights={"c": 1})
    with pytest.raises(ValueError, match=r"task\.data\.weights\.a=0: must be above 0"):
        Mixture(SOURCES, weights={"a": 0})
    with pytest.raises(ValueError, match=r"task\.data\.sources\.empty=.*has no text"):
        list(Mixture(SOURCES | {"empty": Made("c", 0)}).documents("train", None))
