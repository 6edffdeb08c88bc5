"""GGUF files, read back by transformers' own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modern_llm.data.text.sources import TextFiles
from modern_llm.data.text.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer
from modern_llm.pretrained.causal import HuggingFaceCausalLM
from modern_llm.pretrained.gguf_export import write_gguf
from modern_llm.pretrained.loaded import HuggingFaceModel

gguf = pytest.importorskip("gguf")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
TEXT = "The cat's 12 hats, and 345 others; naïve Ünicode too.\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("".join(f"{TEXT} {i} times {i} is {i * i}.\n" for i in range(300)))
    source = TextFiles(train=[str(folder / "a.txt")])
    return BPETokenizer(vocab_size=400).prepare(source, folder / "cache", None)


def made(family: str, tokenizer: Tokenizer, **more: Any) -> HuggingFaceModel:
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    kinds = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    settings: dict[str, Any] = SIZES | {"vocab_size": tokenizer.vocab_size, "tie_word_embeddings": False}
    if family == "qwen3":
        settings |= {"head_dim": 128}  # the only one that transformers reads back
    if family == "mistral":
        settings |= {"sliding_window": None}
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(kinds[family](**(settings | more))).eval()
    for parameter in base.parameters():
        parameter.data.mul_(3)
    return HuggingFaceModel(HuggingFaceCausalLM(base), base, tokenizer, 64, "made", "")


def read_back(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@torch.no_grad()
def test_the_file_is_the_model(family: str, tied: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = made(family, tokenizer, tie_word_embeddings=tied)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    expected = model.base(ids).logits
    write_gguf(model, tmp_path / "whole" / "model.gguf", "f32")
    torch.testing.assert_close(read_back(tmp_path / "whole" / "model.gguf")(ids).logits, expected, atol=1e-4, rtol=1e-4)
    write_gguf(model, tmp_path / "half" / "model.gguf", "f16")
    half = read_back(tmp_path / "half" / "model.gguf")(ids).logits
    torch.testing.assert_close(half, expected, atol=0.05 * float(expected.std()), rtol=0)
    assert not torch.equal(half, expected)
    # Eight bits: the logits of the model whose matrices were rounded so.
    write_gguf(model, tmp_path / "eight" / "model.gguf", "q8_0")
    kind = gguf.GGMLQuantizationType.Q8_0
    for parameter in model.base.parameters():
        if parameter.dim() == 2:
            packed = gguf.quants.quantize(parameter.numpy().astype(np.float32), kind)
            parameter.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
    rounded = model.base(ids).logits
    torch.testing.assert_close(read_back(tmp_path / "eight" / "model.gguf")(ids).logits, rounded, atol=1e-3, rtol=1e-3)
    sizes = [(tmp_path / name / "model.gguf").stat().st_size for name in ("whole", "half", "eight")]
    assert sizes == sorted(sizes, reverse=True)


def test_its_tokenizer_makes_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_gguf(made("llama", tokenizer), tmp_path / "model.gguf", "f16")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert theirs(TEXT, add_special_tokens=False)["input_ids"] == tokenizer.encode(TEXT)
    assert theirs.eos_token_id == tokenizer.eos_id


def test_what_llama_cpp_would_read_otherwise_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    scaled = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
    with pytest.raises(ValueError, match="llama does not compute rope_type=linear"):
        write_gguf(made("llama", tokenizer, **scaled), path, "f16")
    with pytest.raises(ValueError, match="does not compute sliding_window=16"):
        write_gguf(made("mistral", tokenizer, sliding_window=16), path, "f16")
    with pytest.raises(ValueError, match="does not compute attention_bias"):
        write_gguf(made("llama", tokenizer, attention_bias=True), path, "f16")
    bytes_alone = ByteTokenizer().prepare(None, tmp_path, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no byte-level BPE with merges"):
        write_gguf(made("llama", bytes_alone), path, "f16")
    other = made("llama", tokenizer)
    other.base.config.model_type = "opt"
    with pytest.raises(ValueError, match="model_type='opt': is not written as GGUF here"):
        write_gguf(other, path, "f16")
    assert not path.exists()
