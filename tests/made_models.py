"""Models and data made on the spot, in the hub's layout: small GPT-2, Llama and T5 of random weights over bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from modern_llm.data.text.tokenizers import ByteTokenizer, Tokenizer

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NAMES = {
    "gpt2": "openai-community/gpt2",
    "llama": "made/llama",
    "t5": "google-t5/t5-small",
    "flan": "google/flan-t5-small",
}


class Letters:
    """Ids as letters; 7 ends a text."""

    eos_id, bos_id = 7, None

    def encode(self, text: str) -> list[int]:
        return [ord(c) - 65 for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(65 + i) for i in ids)


def byte_tokenizer() -> Tokenizer:
    return ByteTokenizer().prepare(None, Path(), None)  # type: ignore[arg-type]


def make_model(kind: str) -> Any:
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(7)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    t5 = {"vocab_size": 264, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
          "decoder_start_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}  # fmt: skip
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(
            GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=256, **ends)
        )
    elif kind == "llama":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=257, num_key_value_heads=2, max_position_embeddings=256, **sizes, **ends)
        )
    elif kind == "t5":
        model = T5ForConditionalGeneration(T5Config(**t5))
    else:
        model = T5ForConditionalGeneration(T5Config(**t5, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    for parameter in model.parameters():  # sharper than initial weights, so that the most likely token is clear
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    return model.eval()


def write_split(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def reviews(count: int, start: int = 0) -> list[dict[str, Any]]:
    words = [("dull and bad", 0), ("a good joy", 1)]
    rows = [(f"film {start + i} is {words[i % 2][0]}", words[i % 2][1]) for i in range(count)]
    return [{"sentence": sentence, "label": label} for sentence, label in rows]


def problems(count: int, start: int = 0) -> list[dict[str, Any]]:
    sums = [(i % 7 + 1, i % 5 + 2) for i in range(start, start + count)]
    return [{"question": f"{a} and {b}?", "answer": f"It is <<{a}+{b}={a + b}>>.\n#### {a + b}"} for a, b in sums]


def dialogues(count: int) -> list[dict[str, Any]]:
    return [{"dialogue": f"Ann: tea {i}?\r\nBob: yes", "summary": f"They drink tea {i}."} for i in range(count)]


# Paradigm, phenomenon and field, as the data call them.
PARADIGMS = [
    ("adjunct_island", "island_effects", "syntax"),
    ("animate_subject_trans", "s-selection", "syntax/semantics"),
]


def make_pairs(root: Path) -> Path:
    """Write six minimal pairs of each of two paradigms, the last one a tie, in BLiMP's layout; returns their folder."""
    data, configs = root / "datasets" / "nyu-mll" / "blimp", ""
    for number, (name, term, field) in enumerate(PARADIGMS):
        rows = [
            {"sentence_good": f"Cats {'x' * (i + number)} sleep.", "sentence_bad": f"Cats {'x' * i} sleeps{'.' * i}",
             "field": field, "linguistics_term": term, "UID": name, "pair_id": i}
            for i in range(6)
        ]  # fmt: skip
        rows[5]["sentence_bad"] = rows[5]["sentence_good"]
        write_split(data / name, "train", rows)
        configs += f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.jsonl\n"
    (data / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return data


def make_mirror(root: Path) -> Path:
    """Write models and data sets below `root`."""
    for kind, name in NAMES.items():
        folder = root / "models" / name
        make_model(kind).save_pretrained(folder)
        byte_tokenizer().save(folder)
    config = root / "models" / NAMES["llama"] / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": CHAT}))
    data = root / "datasets"
    write_split(data / "stanfordnlp" / "sst2", "train", reviews(64))
    write_split(data / "stanfordnlp" / "sst2", "validation", reviews(16, 64))
    write_split(data / "openai" / "gsm8k", "train", problems(40))
    write_split(data / "openai" / "gsm8k", "test", problems(8, 40))
    (data / "openai" / "gsm8k" / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: train.jsonl\n"
        "  - split: test\n    path: test.jsonl\n---\n"
    )
    write_split(data / "knkarthick" / "samsum", "train", dialogues(30))
    write_split(data / "knkarthick" / "samsum", "validation", dialogues(6))
    return root
