"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

# Tests run side by side, one process a core; a process with more threads would wait for the others' cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

from modern_llm.data.text.tokens import CorpusCounts, TokenCorpus

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The local mirror with real data, where there is one."""
    folder = Path(os.environ.get("MODERN_LLM_MIRROR") or ROOT.parent / "shared" / "data")
    if not (folder / "datasets").is_dir():
        pytest.skip("no local mirror of real data (MODERN_LLM_MIRROR)")
    return folder


@pytest.fixture
def corpus() -> TokenCorpus:
    """Random documents over 50 ids, separator 0."""
    return random_corpus(tokens=3000, vocab_size=50, seed=0)


def random_corpus(tokens: int, vocab_size: int, seed: int) -> TokenCorpus:
    random = np.random.default_rng(seed)
    ids = random.integers(1, vocab_size, tokens).astype("<u2")
    ids[random.random(tokens) < 0.02] = 0
    ids[0] = ids[-1] = 0
    text = int((ids != 0).sum())
    counts = CorpusCounts(tokens=text, documents=int((ids == 0).sum()) - 1, words=text // 2, bytes=text * 3)
    return TokenCorpus(ids, eos_id=0, counts=counts, fingerprint=f"random {tokens} {vocab_size} {seed}")
