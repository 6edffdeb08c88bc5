"""Small batches and short sequences at first: the choices of `task/ramp`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.processes import world

_DEFAULTS = Defaults("task/ramp/doubling")


@dataclass(frozen=True)
class Ramp:
    """The batch and its sequences grow by doubling, in stages of equal length (Smith et al. 2018, arXiv 1711.00489, on
    batches; Li et al. 2022, arXiv 2108.06084, on sequences). A short sequence is a piece of a long one: the batch keeps
    its tokens, of which each sees fewer.

    Args:
        batch_size: sequences of the first batches; null: `trainer.batch_size` throughout.
        seq_len: tokens of the first sequences; null: `task.seq_len` throughout.
        share: of the run, after which both are at their full size.
    """

    batch_size: int | None = _DEFAULTS("batch_size")
    seq_len: int | None = _DEFAULTS("seq_len")
    share: float = _DEFAULTS("share")

    def __post_init__(self) -> None:
        for key in ("batch_size", "seq_len"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"task.ramp.{key}", value, "must be at least 1",
                    "Raise it, or use null")  # fmt: skip
        require(0 < self.share <= 1, "task.ramp.share", self.share, "must lie in (0, 1]", "Use task/ramp=none for none")

    def check(self, batch_size: int, seq_len: int) -> None:
        """Refuse to begin with more than there is in the end.

        Args:
            batch_size, seq_len: in the end.

        Raises:
            ValueError: with key, value and remedy.
        """
        require(self.batch_size is None or self.batch_size <= batch_size, "task.ramp.batch_size", self.batch_size,
                f"is above trainer.batch_size={batch_size}", "Lower it")  # fmt: skip
        require((self.batch_size or batch_size) >= world().count, "task.ramp.batch_size", self.batch_size,
                f"has fewer sequences than there are processes ({world().count})", "Raise it")  # fmt: skip
        doublings = [seq_len // 2**k for k in range(seq_len.bit_length()) if seq_len % 2**k == 0]
        require(self.seq_len is None or self.seq_len in doublings, "task.ramp.seq_len", self.seq_len,
                f"does not grow to the {seq_len} tokens of a sequence by doubling",
                f"Choose among {doublings}")  # fmt: skip

    def rows(self, full: int, progress: float) -> int:
        """Sequences of a batch at `progress` of the run, where there are `full` in the end."""
        return min(full, self._grown(self.batch_size or full, full, progress))

    def pieces(self, full: int, progress: float) -> int:
        """Pieces that each sequence of `full` tokens is cut into."""
        return full // min(full, self._grown(self.seq_len or full, full, progress))

    def _grown(self, first: int, full: int, progress: float) -> int:
        doublings = 0
        while first * 2**doublings < full:
            doublings += 1
        return first * 2 ** min(int(progress / self.share * doublings), doublings) if doublings else full
