"""Several texts as one, by weight. Imports nothing heavy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from modern_llm.checks import require
from modern_llm.data.text.sources import Source, Split
from modern_llm.defaults import Defaults

_DEFAULTS = Defaults("task/data/mixture")


@dataclass(frozen=True)
class Mixture:
    """Documents of several sources, interleaved so that at every point of the text each has its share of the bytes, as
    closely as whole documents allow. The next document is always of the source that is furthest behind.

    Validation and test hold all documents of all sources, one source after another, whatever the weights.

    Args:
        sources: by a name of your own.
        weights: share of each in the training text, in proportion to the others; a source that has none has 1.
        repeats: how often each may be gone through; one that has none, once. The training text ends where a source is
            next that has been.
    """

    sources: Mapping[str, Source]
    weights: Mapping[str, float] = field(default_factory=dict)
    repeats: Mapping[str, int] = field(default_factory=dict)
    newlines_are_words: bool = _DEFAULTS("newlines_are_words")

    def __post_init__(self) -> None:
        require(bool(self.sources), "task.data.sources", self.sources, "names none",
                "Give name: source, as in `/task/data@sources.docs: python_docs`")  # fmt: skip
        for key, given, least in (("weights", self.weights, 0.0), ("repeats", self.repeats, 0)):
            for name, value in given.items():
                full = f"task.data.{key}.{name}"
                require(name in self.sources, full, value, "is for no source", f"Known: {', '.join(self.sources)}")
                require(value > least, full, value, "must be above 0", "Leave the source out")

    def splits(self) -> tuple[Split, ...]:
        every = [source.splits() for source in self.sources.values()]
        return ("train", "validation", "test") if all("test" in s for s in every) else ("train", "validation")

    def fingerprint(self, split: Split, mirror: str | None) -> str:
        parts = [f"mixture {split}"]
        for name, source in self.sources.items():
            parts.append(f"{name} {source.fingerprint(split, mirror)}")
            if split == "train":
                parts.append(f"{self.weights.get(name, 1)} {self.repeats.get(name, 1)}")
        return "mixture " + hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def documents(self, split: Split, mirror: str | None) -> Iterator[str]:
        """The documents of a split.

        Raises:
            ValueError: a source of the training text has none.
        """
        if split != "train":
            for source in self.sources.values():
                yield from source.documents(split, mirror)
            return
        taken = dict.fromkeys(self.sources, 0.0)
        left = {name: self.repeats.get(name, 1) for name in self.sources}
        reading = {name: iter(()) for name in self.sources}  # type: dict[str, Iterator[str]]
        while True:
            name = min(taken, key=lambda n: taken[n] / self.weights.get(n, 1))
            document = next(reading[name], None)
            if document is None:
                if not left[name]:
                    return
                left[name] -= 1
                reading[name] = self.sources[name].documents("train", mirror)
                document = next(reading[name], None)
                require(document is not None, f"task.data.sources.{name}", self.sources[name], "has no text",
                        "Leave it out, or check where it is read from")  # fmt: skip
                assert document is not None
            taken[name] += len(document.encode())
            yield document
