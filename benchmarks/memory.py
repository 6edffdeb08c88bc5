"""Which pretrained decoders can be finetuned with adapters on a card, by the memory plan: nothing is loaded or trained.

python benchmarks/memory.py [--limit 11.5] [--tokens 1024] [overrides …]

Models are made of the shapes that their families publish, without weights. A plan is of one row at a time in bf16;
`tests/tasks/test_task_memory.py` holds plans against what torch allocates.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness import print_table
from hydra import compose, initialize_config_dir

from modern_llm.config.instantiate import build
from modern_llm.data.text.tokenizers import ByteTokenizer
from modern_llm.defaults import CONFIG_FOLDER
from modern_llm.experiment.contract import RunFolder
from modern_llm.experiment.memory import plan_of

# Hidden size, width of the feed-forward layer, layers, heads, heads of keys and values, width of a head, vocabulary.
SHAPES = {
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 64, 49152),
    "SmolLM2-360M": (960, 2560, 32, 15, 5, 64, 49152),
    "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, 64, 151936),
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, 64, 128256),
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, 128, 151936),
    "SmolLM2-1.7B": (2048, 8192, 24, 32, 32, 64, 49152),
    "Qwen2.5-3B": (2048, 11008, 36, 16, 2, 128, 151936),
    "Llama-3.2-3B": (3072, 8192, 28, 24, 8, 128, 128256),
    "Qwen3-4B": (2560, 9728, 36, 32, 8, 128, 151936),
    "Mistral-7B": (4096, 14336, 32, 32, 8, 128, 32768),
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128, 128256),
    "Phi-3-medium-14B": (5120, 17920, 40, 40, 10, 128, 32064),
}
UNTIED = {"Mistral-7B", "Llama-3.1-8B", "Phi-3-medium-14B"}  # whose head is no embedding
CHECKPOINTED = ["hardware.activation_checkpointing=true"]
WAYS = {
    "LoRA": [],
    "checkpointed": CHECKPOINTED,
    "QLoRA": ["model/lora=qlora"],
    "QLoRA, checkpointed": ["model/lora=qlora", *CHECKPOINTED],
}
CARD = ["hardware=rtx3060", "hardware.memory_limit_gb=null", "hardware.micro_batch_size=1", "name=memory"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=11.5)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        with_adapters(options, Path(folder))


def planned(words: Sequence[str]) -> float:
    """GB of a task's step."""
    task = build(compose("config", overrides=[*CARD, *words]).task)
    return plan_of(task, RunFolder(Path(), {}), task.hardware).total / 1e9


def with_adapters(options: argparse.Namespace, folder: Path) -> None:
    """What finetuning pretrained models with adapters needs."""
    from transformers import AutoConfig

    rows = []
    for name, (width, hidden, layers, heads, groups, head, vocabulary) in SHAPES.items():
        kind = "qwen2" if name.startswith("Qwen") else "llama"
        sizes = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers, "head_dim": head,
                 "num_attention_heads": heads, "num_key_value_heads": groups, "vocab_size": vocabulary}  # fmt: skip
        place = folder / name
        tied = name not in UNTIED
        described = AutoConfig.for_model(kind, **sizes, tie_word_embeddings=tied, max_position_embeddings=8192)
        described.save_pretrained(place)
        ByteTokenizer().prepare(None, Path(), None).save(place)  # type: ignore[arg-type]
        words = ["task=sft", "model=pretrained", f"model.name={place}", f"task.max_tokens={options.tokens}",
                 "hardware.compile=false", *options.overrides]  # fmt: skip
        needs = [planned([*words, *way]) for way in WAYS.values()]
        rows.append([name, *(f"{need:.1f} GB{'' if need <= options.limit else ', too much'}" for need in needs)])
    print_table(
        f"Adapters on a row of {options.tokens} tokens; frozen weights in bf16, with QLoRA linear maps in 4 bits",
        ["", *WAYS],
        rows,
    )


if __name__ == "__main__":
    main()
