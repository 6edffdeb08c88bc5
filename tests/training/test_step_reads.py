"""How often the host waits for what lies on the device: once a step, once a batch of an evaluation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from apart import device_apart
from hydra import compose, initialize_config_dir

from modern_llm.config.instantiate import build
from modern_llm.experiment.contract import RunFolder
from modern_llm.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
DECODER = ["task=python_docs", "model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.max_seq_len=64",
           "task.evaluation.tokens_in_training=1024"]  # fmt: skip
LLAMA = ["model=pretrained", "model.name=made/llama"]
PAIRS = ["task=dpo", "task/data=arithmetic_preferences", *LLAMA]
RL = ["task=rl", "task/reward=length", "task.asking.max_new_tokens=8", "task.evaluation.selection=4",
      "task.evaluation.problems=4", *LLAMA]  # fmt: skip
RUNS = {
    "decoder": DECODER,
    "documents": [*DECODER, "task.document_masking=true"],
    "windows": [*DECODER, "model.use_attention_sinks=true", "model/sinks=streaming", "model.sinks.window=16"],
    "experts": [*DECODER, "model/moe=top2of8"],
    "micro-batches, EMA, AdamW": [
        *DECODER,
        "hardware.micro_batch_size=2",
        "trainer/average=ema",
        "trainer/optimizer=adamw",
    ],
    "LoRA": ["task=sst2", "task.data.source.held_out=8", *LLAMA, "model/lora=on"],
    "encoder-decoder": [
        "task=samsum",
        "task.data.source.held_out=4",
        "model=pretrained",
        "model.name=google-t5/t5-small",
    ],
    "SFT": ["task=sft", "task/data=arithmetic_instructions", *LLAMA],
    "DPO": PAIRS,
    "DPO with LoRA": [*PAIRS, "model/lora=on"],
    "KTO": [*PAIRS, "task/loss=kto"],
    "reward model": ["task=reward_model", "task/data=arithmetic_preferences", *LLAMA],
    "verifier": ["task=verifier", "task/data=arithmetic_solutions", *LLAMA],
    "RL": RL,
    "RL with a reference": [
        *RL,
        "task/policy_loss=grpo",
        "task.policy_loss.beta=0.1",
        "model/lora=on",
        "task.drawing.updates=2",
    ],
}


class _DoneError(Exception):
    """The run need not go on."""


@pytest.mark.parametrize("overrides", RUNS.values(), ids=RUNS)
def test_a_step_reads_once_and_an_evaluation_once_a_batch(
    overrides: list[str], hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=[
            "name=x", "hardware.precision=fp32", f"paths.mirror={hub}", f"paths.cache={hub}/cache",
            "trainer.max_steps=2", "trainer.batch_size=4", "hardware.eval_batch_size=4", *overrides,
        ])  # fmt: skip
    task = build(config.task)
    steps: list[Counter[str]] = []
    evaluated: Counter[str] = Counter()
    where: Counter[str] = Counter()
    step = Trainer._step

    def counted(self: Trainer, *given: Any) -> Any:
        reads.clear()
        done = step(self, *given)
        steps.append(Counter(reads))
        return done

    def evaluate(self: Trainer) -> None:
        def called(module: Any, *given: Any) -> None:
            evaluated["passes"] += module is self.model.blocks[0]

        reads.clear()
        with torch.nn.modules.module.register_module_forward_hook(called):
            assert self.evaluator is not None
            self.evaluator(self.model.eval())
        evaluated["reads"] += sum(reads.values())
        where.update(reads)
        raise _DoneError

    monkeypatch.setattr(Trainer, "_step", counted)
    monkeypatch.setattr(Trainer, "_evaluate_if_due", lambda self: evaluate(self) if len(steps) == 2 else None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    with device_apart(monkeypatch) as reads, pytest.raises(_DoneError):
        task.run(RunFolder(tmp_path / "run", {}))
    assert [sum(one.values()) for one in steps] == [1, 1], steps
    if "task=rl" not in overrides:  # which draws answers
        assert 0 < evaluated["reads"] <= evaluated["passes"], where
