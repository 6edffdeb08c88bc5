"""Batches from one shard after another, the next ones being tokenised meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any

import numpy as np

from modern_llm.data.text.packing import PackedStream
from modern_llm.data.text.ramp import Ramp
from modern_llm.data.text.shards import ShardedText
from modern_llm.data.text.tokenizers import Tokenizer
from modern_llm.data.text.tokens import TokenCorpus, tokenise
from modern_llm.objectives.base import Batch


class ShardStream:
    """Endless batches, in an order that depends on the seed alone. An epoch visits the shards in an order of its own,
    and each shard's sequences in a random order. Sequences that fill no batch at the end of a shard are left out. Its
    state is the place of the shard and the place in it: resuming tokenises that shard at most.

    Args:
        text: the shards.
        tokenizer: what makes ids of them; it works on several threads at once.
        cache, mirror: as in `tokenise`.
        seq_len, batch_size, seed, document_ids, shuffle_documents, ramp: as in `PackedStream`.
        report: told which shard is being read.

    Raises:
        ValueError: a shard has fewer sequences than a batch; as in `tokenise`.
    """

    def __init__(
        self,
        text: ShardedText,
        tokenizer: Tokenizer,
        cache: Path,
        mirror: str | None,
        seq_len: int,
        batch_size: int,
        seed: int,
        document_ids: bool = False,
        shuffle_documents: bool = False,
        ramp: Ramp | None = None,
        report: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.tokenizer, self.cache, self.mirror, self.report = tokenizer, cache, mirror, report
        self.seed, self.batch_size = seed, batch_size
        self.packing = {"document_ids": document_ids, "shuffle_documents": shuffle_documents, "ramp": ramp}
        self.seq_len = seq_len
        self.shards = text.shards("train", mirror)
        self.fingerprint = f"{text.fingerprint('train', mirror)} {tokenizer.fingerprint}"
        self.room = Semaphore(text.workers)
        self.ahead: dict[int, Future[TokenCorpus]] = {}
        self.workers = text.workers
        self.progress = 0.0
        self.epoch, self.place = 0, 0
        self.order = self._order(0)
        self.inner: PackedStream | None = None

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=[self.seed, 2**32 + epoch])).permutation(len(self.shards))

    def _tokens(self, shard: int) -> Future[TokenCorpus]:
        """The ids of a shard, being made if they are not yet."""
        if shard not in self.ahead:
            future = self.ahead[shard] = Future[TokenCorpus]()

            def work() -> None:
                with self.room:
                    try:
                        future.set_result(
                            tokenise(self.shards[shard], "train", self.tokenizer, self.cache, self.mirror)
                        )
                    except BaseException as failure:
                        future.set_exception(failure)

            # A run that ends does not wait for what it would have read next, as a pool of threads would.
            Thread(target=work, name="tokenising", daemon=True).start()
        return self.ahead[shard]

    def _open(self) -> PackedStream:
        """The stream of the shard that stands next; those behind it are begun."""
        shard = int(self.order[self.place])
        following = [int(s) for s in self.order[self.place : self.place + 1 + self.workers]]
        futures = [self._tokens(s) for s in following]
        if not futures[0].done():
            self.report(f"tokenising {self.shards[shard].file}")
        corpus = futures[0].result()
        self.ahead = {s: f for s, f in self.ahead.items() if s in following}
        inner = PackedStream(
            corpus,
            self.seq_len,
            self.batch_size,
            self._seed_of(shard),
            **self.packing,  # type: ignore[arg-type]
        )
        if inner.left < self.batch_size:
            raise ValueError(
                f"trainer.batch_size={self.batch_size}: {self.shards[shard].file} has only {inner.left} sequences of "
                f"{self.seq_len} tokens. Use smaller batches, shorter sequences or larger files."
            )
        return inner

    def _seed_of(self, shard: int) -> int:
        """A shard's own order in each epoch."""
        return int(np.random.Generator(np.random.Philox(key=[self.seed, self.epoch * 2**20 + shard])).integers(2**31))

    def at(self, progress: float) -> None:
        """As in `PackedStream`."""
        self.progress = progress

    def facts(self) -> dict[str, float]:
        """Passes over all shards so far."""
        inside = 0.0 if self.inner is None else min(self.inner.facts()["epochs"], 1.0)
        return {"epochs": self.epoch + (self.place + inside) / len(self.shards)}

    @property
    def independent_of_run(self) -> bool:
        """Whether the next batch is the same however far the run has come."""
        return self.packing.get("ramp") is None

    @property
    def same_shape(self) -> bool:
        """Whether all batches have one."""
        return self.independent_of_run

    def __iter__(self) -> ShardStream:
        return self

    def __next__(self) -> Batch:
        if self.inner is None:
            self.inner = self._open()
        self.inner.at(self.progress)
        if self.inner.left < self.inner.rows:
            self.place += 1
            if self.place == len(self.shards):
                self.epoch, self.place = self.epoch + 1, 0
                self.order = self._order(self.epoch)
            self.inner = self._open()
            self.inner.at(self.progress)
        return next(self.inner)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        inner = None if self.inner is None else self.inner.state_dict()
        return {"epoch": self.epoch, "place": self.place, "inner": inner, "shards": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a stream with the same settings stood.

        Raises:
            ValueError: the shards or the tokenizer are others.
        """
        if state["shards"] != self.fingerprint:
            raise ValueError(
                "the shards or the tokenizer have changed since the checkpoint was written, so the run cannot be "
                "resumed exactly. Restore them, or start a new run."
            )
        self.epoch, self.place = state["epoch"], state["place"]
        self.order = self._order(self.epoch)
        self.inner = None
        if state["inner"] is not None:
            self.inner = self._open()
            self.inner.load_state_dict(state["inner"])
