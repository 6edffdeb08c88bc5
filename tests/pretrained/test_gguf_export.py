"""GGUF files, read back by transformers' own reader, and by llama.cpp where it is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
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
    from transformers import GptOssConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    kinds = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config,
             "gpt_oss": GptOssConfig}  # fmt: skip
    settings: dict[str, Any] = SIZES | {"vocab_size": tokenizer.vocab_size, "tie_word_embeddings": False}
    if family == "qwen3":
        settings |= {"head_dim": 128}  # the only one that transformers reads back
    if family == "gpt_oss":
        settings |= {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}  # fmt: skip
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


# In a process of its own: what it does not understand of a file ends the whole process.
_READER = """
import json, sys
import numpy as np
from llama_cpp import Llama, llama_cpp
defaults = llama_cpp.llama_model_default_params
def plain():
    settings = defaults()
    settings.use_extra_bufts = False  # AMX, which a processor may name and a sandbox forbid
    return settings
llama_cpp.llama_model_default_params = plain
path, ids = sys.argv[1], json.loads(sys.argv[2])
model = Llama(path, n_ctx=64, n_batch=64, n_threads=1, n_threads_batch=1, logits_all=True, type_k=0, type_v=0)
model.eval(ids)
np.save(path + ".npy", model.scores[: len(ids)])
"""


def by_llama_cpp(path: Path, ids: list[int]) -> torch.Tensor:
    """(T, V) logits, with keys and values in f32."""
    done = subprocess.run([sys.executable, "-c", _READER, str(path), json.dumps(ids)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.from_numpy(np.load(f"{path}.npy"))


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_oss"])
@torch.no_grad()
def test_llama_cpp_gives_the_same_logits(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = made(family, tokenizer)
    ids = tokenizer.encode(3 * TEXT)[:40]  # five windows of gpt-oss
    expected = model.base(torch.tensor([ids])).logits[0]
    spread = float(expected.std())
    # f16 rounds the weights; q8_0 rounds them and what they multiply, to 8 bits of the largest of 32.
    for weights, allowed in (("f32", 5e-5), ("f16", 0.01), ("q8_0", 0.15)):
        path = tmp_path / weights / "model.gguf"
        write_gguf(model, path, weights)
        error = (by_llama_cpp(path, ids) - expected).square().mean().sqrt()
        assert float(error) < allowed * spread, weights


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
    with pytest.raises(ValueError, match="gpt-oss does not compute swiglu_limit=3"):
        write_gguf(made("gpt_oss", tokenizer, swiglu_limit=3.0), path, "f16")
    turned = {"layer_types": ["full_attention", "sliding_attention"]}
    with pytest.raises(ValueError, match="gpt-oss does not compute layer_types="):
        write_gguf(made("gpt_oss", tokenizer, **turned), path, "f16")
    longer = {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}}
    with pytest.raises(ValueError, match="gpt-oss does not compute rope_type=yarn"):
        write_gguf(made("gpt_oss", tokenizer, **longer), path, "f16")
    other = made("llama", tokenizer)
    other.base.config.model_type = "opt"
    with pytest.raises(ValueError, match="model_type='opt': is not written as GGUF here"):
        write_gguf(other, path, "f16")
    assert not path.exists()
