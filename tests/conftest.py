"""What all tests share."""

from __future__ import annotations

import gc
import os
from pathlib import Path

# Tests run side by side, one process a core; a process with more threads would wait for the others' cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing is fetched; a name that is not there is then told at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable

import numpy as np
import pytest
import torch
from made_models import NAMES, byte_tokenizer, make_mirror

from modern_llm.data.text.tokens import CorpusCounts, TokenCorpus
from modern_llm.models.config import GQAConfig, ModernLLMConfig
from modern_llm.models.transformer import ModernDecoderLM
from modern_llm.pretrained.loaded import LoadedModel, OwnDecoder
from modern_llm.pretrained.loading import load_hugging_face
from modern_llm.pretrained.settings import FullFinetuning, LoRA, PretrainedModel

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_finish() -> None:
    """Every training run would look through all tests twice for garbage."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror."""
    return make_mirror(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def load(hub: Path) -> Callable[..., LoadedModel]:
    """Loads a small model by kind: gpt2, llama, t5, flan, or own."""

    def load_kind(kind: str, labels: list[str] | None = None, lora: LoRA | None = None) -> LoadedModel:
        torch.manual_seed(3)
        if kind == "own":
            config = ModernLLMConfig(
                vocab_size=257, d_model=32, n_layers=2, n_heads=4, max_seq_len=256, gqa=GQAConfig(2)
            )
            loaded = OwnDecoder.of(ModernDecoderLM(config), byte_tokenizer(), "own", labels)
            for parameter in loaded.model.parameters():
                if parameter.dim() > 1:
                    parameter.data.mul_(3)
        else:
            settings = PretrainedModel(NAMES[kind], lora or FullFinetuning())
            loaded = load_hugging_face(settings, str(hub), labels)
        if lora is not None:
            loaded = loaded.with_lora(lora)
        loaded.model.eval()
        return loaded

    return load_kind
