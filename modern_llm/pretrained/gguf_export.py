"""A decoder as a GGUF file for llama.cpp, through the package `gguf`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modern_llm.data.text.tokenizers import Tokenizer
from modern_llm.pretrained.loaded import HuggingFaceModel

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt_oss": "gpt-oss"}
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}  # llama_ftype
_BLOCK = 32  # numbers of a row that share a scale in q8_0
# How llama.cpp splits texts in front of the merges, by what the tokenizer's own splitter says.
_DIGITS_THEN_BYTES = ["Digits", "ByteLevel"]
_SPLITTERS = {"\\p{N}{1,3}": "llama-bpe", "|\\p{N}|": "qwen2"}


def write_gguf(model: HuggingFaceModel, path: Path, weights: str) -> None:
    """Write a file.

    Args:
        model: of transformers, adapters merged.
        path: of the file; folders are made.
        weights: numbers of matrices: `f32`, `f16` or `q8_0`. Vectors and routers are always f32; rows that are no
            multiple of 32 numbers stay f16 in q8_0.

    Raises:
        ValueError: an architecture, a part or a tokenizer that llama.cpp would read otherwise, by name.
    """
    import gguf

    config = model.base.config
    architecture, tokens = _checked(config), _tokenizer(model.tokenizer, config.vocab_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(model.name)
    writer.add_file_type(_FILE_TYPES[weights])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture == "gpt-oss":
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_sliding_window(_window(config))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokens["pre"])
    writer.add_token_list(tokens["list"])
    writer.add_token_types(tokens["types"])
    writer.add_token_merges(tokens["merges"])
    writer.add_eos_token_id(model.tokenizer.eos_id)
    if model.tokenizer.bos_id is not None:
        writer.add_bos_token_id(model.tokenizer.bos_id)
    writer.add_add_bos_token(False)
    if model.tokenizer.chat_template is not None:
        writer.add_chat_template(model.tokenizer.chat_template)
    names = gguf.get_tensor_name_map(_number_of(architecture), config.num_hidden_layers)
    for name, tensor in model.base.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings and architecture != "gpt-oss":
            continue
        whole = tensor.detach().to(torch.float32).cpu().numpy()
        for stem, suffix, content in _pieces(name, whole, architecture, config):
            found = names.get_name(stem)
            if found is None:
                raise ValueError(
                    f"{name}: llama.cpp has no such weight in {architecture}. Use task.format=hugging_face."
                )
            kind = _kind(f"{found}.{suffix}", content, weights)
            writer.add_tensor(f"{found}.{suffix}", gguf.quants.quantize(content, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _checked(config: Any) -> str:
    """The architecture's name there.

    Raises:
        ValueError: it has none, or what it computes would be another thing there.
    """
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise ValueError(
            f"model_type={config.model_type!r}: is not written as GGUF here. {', '.join(_ARCHITECTURES)} are; "
            "use task.format=hugging_face."
        )
    refused = []
    if config.rope_parameters.get("rope_type", "default") != "default":
        refused.append(f"rope_type={config.rope_parameters['rope_type']}")
    if architecture == "gpt-oss":
        refused += _unlike_gpt_oss(config)
    else:
        window = getattr(config, "sliding_window", None)
        windowed = getattr(config, "use_sliding_window", True) and window is not None
        if windowed and window < config.max_position_embeddings:
            refused.append(f"sliding_window={window}")
        for key in ("attention_bias", "mlp_bias"):
            if getattr(config, key, False) and architecture != "qwen2":
                refused.append(key)
    if config.hidden_act != "silu":
        refused.append(f"hidden_act={config.hidden_act}")
    if refused:
        raise ValueError(
            f"{config.model_type}: llama.cpp's {architecture} does not compute {', '.join(refused)}. "
            "Use task.format=hugging_face."
        )
    return architecture


def _number_of(architecture: str) -> Any:
    import gguf

    return next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)


def _unlike_gpt_oss(config: Any) -> list[str]:
    """What llama.cpp takes as given in gpt-oss, and is otherwise here."""
    refused = []
    for key, given in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        if getattr(config, key) != given:
            refused.append(f"{key}={getattr(config, key)}")
    if not config.attention_bias:
        refused.append("attention_bias=False")
    kinds = config.layer_types
    turns = [("sliding_attention", "full_attention")[i % 2] for i in range(len(kinds))]
    if kinds != turns and "sliding_attention" in kinds:
        refused.append(f"layer_types={kinds}")
    return refused


def _window(config: Any) -> int:
    """Of every second layer, the first among them: no window is one that holds everything."""
    windowed = "sliding_attention" in config.layer_types
    return int(config.sliding_window if windowed else config.max_position_embeddings)


def _pieces(name: str, content: np.ndarray, architecture: str, config: Any) -> list[tuple[str, str, np.ndarray]]:
    """A weight of transformers as those of llama.cpp: stem of the name, `weight` or `bias`, and numbers, (…, out, in)
    for matrices."""
    stem, _, last = name.rpartition(".")
    if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
        heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
        return [(stem, last, _in_pairs(content, heads))]
    if architecture != "gpt-oss" or last in ("weight", "bias"):
        return [(stem, last, content)]
    suffix = "bias" if last.endswith("_bias") else "weight"
    last = last.removesuffix("_bias")
    if last == "gate_up_proj":  # (E, d, 2 F), gate and up by turns
        pieces = [("gate_proj", content[..., ::2]), ("up_proj", content[..., 1::2])]
    else:
        pieces = [(last, content)]
    return [
        (f"{stem}.{piece}", suffix, numbers.swapaxes(1, 2).copy() if numbers.ndim == 3 else numbers.copy())
        for piece, numbers in pieces
    ]


def _kind(name: str, content: np.ndarray, weights: str) -> Any:
    """What a tensor is stored as. Routers stay whole, as llama.cpp's own converter leaves them: which experts a token
    has should not depend on rounding."""
    from gguf import GGMLQuantizationType as Kinds

    if content.ndim < 2 or name.endswith(".bias") or "ffn_gate_inp" in name or weights == "f32":
        return Kinds.F32
    return Kinds.Q8_0 if weights == "q8_0" and content.shape[-1] % _BLOCK == 0 else Kinds.F16


def _in_pairs(content: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection in llama.cpp's order: it rotates neighbours, where transformers rotates the halves of a
    head."""
    halves = content.reshape(heads, 2, content.shape[0] // heads // 2, *content.shape[1:])
    return halves.swapaxes(1, 2).reshape(content.shape)


def _tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Tokens, their types and merges, and the splitter's name.

    Raises:
        ValueError: no byte-level BPE, or one that splits texts in a way that llama.cpp has no name for.
    """
    content = json.loads(tokenizer.backend.to_str())
    model, merges = content["model"], content["model"].get("merges") or []
    if model.get("type") != "BPE" or model.get("byte_fallback") or not merges:
        raise ValueError("the tokenizer is no byte-level BPE with merges. Use task.format=hugging_face.")
    vocabulary = {i: token for token, i in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    special = {added["id"] for added in content["added_tokens"] if added["special"]}
    own = {added["id"] for added in content["added_tokens"] if not added["special"]}
    normal, control, user, unused = 1, 3, 4, 5  # gguf.TokenType
    types = [
        control if i in special else user if i in own else normal if i in vocabulary else unused
        for i in range(vocab_size)
    ]
    return {
        "pre": _splitter(content["pre_tokenizer"]),
        "list": [vocabulary.get(i, f"[PAD{i}]") for i in range(vocab_size)],
        "types": types,
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
    }


def _splitter(described: dict[str, Any] | None) -> str:
    steps = (described or {}).get("pretokenizers") or [described or {}]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == _DIGITS_THEN_BYTES and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = str(steps[0]["pattern"].get("Regex", ""))
        found = next((name for part, name in _SPLITTERS.items() if part in pattern), None)
        if found is not None:
            return found
    raise ValueError(
        f"the tokenizer splits texts by {', '.join(map(str, kinds))}, for which no name of llama.cpp is known here. "
        "Use task.format=hugging_face."
    )
