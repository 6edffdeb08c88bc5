"""The loop: exact accumulation, guards, precision, evaluation, early stopping."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Evaluations, Ragged, model, rows, stream, trainer
from made_models import make_model

from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.models import MoEConfig
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.pretrained.causal import HuggingFaceCausalLM
from modern_llm.training.callbacks import Callback
from modern_llm.training.checkpoint import load_model_tensors
from modern_llm.training.dropout import switch_off_dropout
from modern_llm.training.guard import TrainingDivergedError
from modern_llm.training.optimization.optimizers import AdamW, Muon
from modern_llm.training.optimization.schedules import Constant
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware


@pytest.mark.parametrize("moe", [False, True])
def test_micro_batches_with_unequal_target_counts_give_the_gradients_of_the_whole(
    tmp_path: Path, corpus: TokenCorpus, moe: bool
) -> None:
    """16 sequences at once, and 8 times 2, auxiliary losses of experts included."""
    experts = MoEConfig(4, 2, balance_loss_weight=0.5, z_loss_weight=0.1) if moe else None
    gradients = []
    for number, micro in enumerate((16, 2)):
        net = model(moe=experts).double()
        loop = trainer(
            tmp_path / str(number),
            {"micro_batch_size": micro},
            batch_size=16,
            max_steps=1,
            grad_clip=None,
        )
        kept: dict[str, torch.Tensor] = {}
        for name, p in net.named_parameters():
            p.register_post_accumulate_grad_hook(lambda p, name=name, kept=kept: kept.update({name: p.grad.clone()}))
        loop.fit(net, LanguageModeling(), Ragged(corpus, 16, 16, seed=0))
        gradients.append(kept)
    assert gradients[0].keys() == gradients[1].keys()
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-9, atol=1e-12)


def test_one_step_is_what_plain_torch_does(tmp_path: Path, corpus: TokenCorpus) -> None:
    ours, theirs = model().double(), model().double()
    settings = {"optimizer": AdamW(lr=0.01, weight_decay=0.1), "schedule": Constant(0.0), "grad_clip": 0.05}
    trainer(tmp_path, max_steps=3, **settings).fit(ours, LanguageModeling(), stream(corpus))
    decayed = [p for p in theirs.parameters() if p.dim() > 1]
    plain = [p for p in theirs.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=0.01, betas=(0.9, 0.95)
    )
    data = stream(corpus)
    for _ in range(3):
        batch = next(data)
        logits = theirs(batch["input_ids"]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), Muon(lr=1e-2)])
def test_it_learns_a_batch_by_heart(tmp_path: Path, corpus: TokenCorpus, optimizer: AdamW) -> None:
    short = TokenCorpus(corpus.ids[:65], 0, corpus.counts, "short")
    loop = trainer(tmp_path, optimizer=optimizer, max_steps=120, log_every=40, schedule=Constant(0.0))
    loop.fit(model(), LanguageModeling(), stream(short))
    losses = [row["loss"] for row in rows(tmp_path)]
    assert losses[0] > 1.0
    assert losses[-1] < 0.3


class Poisoned(LanguageModeling):
    """NaN whenever a batch has one of the given sequences, or from a step on."""

    def __init__(self, first_bad_call: int) -> None:
        self.calls, self.first_bad_call = 0, first_bad_call

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> Any:
        self.calls += 1
        output = super().__call__(model, batch)
        if self.calls >= self.first_bad_call:
            output.loss_sum = output.loss_sum * math.nan
        return output


def test_nan_stops_the_run_naming_step_sequences_and_checkpoint(tmp_path: Path, corpus: TokenCorpus) -> None:
    net = model()
    loop = trainer(tmp_path, max_steps=50, save_every=2, max_bad_steps=3)
    data = stream(corpus)
    with pytest.raises(TrainingDivergedError) as stop:
        loop.fit(net, Poisoned(first_bad_call=6), data)
    message = str(stop.value)
    last_batch = stream(corpus)
    for _ in range(8):
        ids = next(last_batch)["sequence_ids"].tolist()
    assert "step 8" in message
    assert str(ids) in message
    assert "step_00000006" in message
    good = model(seed=1)
    load_model_tensors(good, tmp_path / "checkpoints" / "step_00000006")
    assert all(torch.isfinite(p).all() for p in good.parameters())
    # The bad steps left the weights alone: five good ones were taken.
    reference = model()
    loop2 = trainer(tmp_path / "reference", max_steps=50, save_every=5, max_bad_steps=1)
    with pytest.raises(TrainingDivergedError):
        loop2.fit(reference, Poisoned(first_bad_call=6), stream(corpus))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), reference.parameters(), strict=True))


def test_a_single_bad_step_is_skipped(tmp_path: Path, corpus: TokenCorpus) -> None:
    class Once(Poisoned):
        def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> Any:
            output = super().__call__(model, batch)
            self.first_bad_call = 10**9 if self.calls >= 3 else 3
            return output

    result = trainer(tmp_path, max_steps=6, max_bad_steps=2).fit(model(), Once(3), stream(corpus))
    assert (result.step, result.skipped_steps) == (6, 1)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert rows(tmp_path)[2]["loss"] is None


def test_a_spike_is_skipped(tmp_path: Path, corpus: TokenCorpus) -> None:
    class Spike(LanguageModeling):
        calls = 0

        def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> Any:
            self.calls += 1
            output = super().__call__(model, batch)
            output.loss_sum = output.loss_sum * (1000 if self.calls == 30 else 1)
            return output

    result = trainer(tmp_path, max_steps=40, spike_factor=10.0).fit(model(), Spike(), stream(corpus))
    assert result.skipped_steps == 1


def test_fp16_skips_an_overflowing_step_and_goes_on(tmp_path: Path, corpus: TokenCorpus) -> None:
    class Steep(LanguageModeling):
        """Gradients that overflow fp16 at the first loss scales."""

        def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> Any:
            output = super().__call__(model, batch)
            output.loss_sum = output.loss_sum * 3000
            return output

    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    result = trainer(tmp_path, {"precision": "fp16"}, max_steps=30).fit(net, Steep(), stream(corpus))
    scales = [row["loss_scale"] for row in rows(tmp_path)]
    assert result.step == 30
    assert 1 <= result.skipped_steps < 30
    assert scales[-1] < 65536
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_bf16_trains_close_to_fp32(tmp_path: Path, corpus: TokenCorpus) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer(tmp_path / precision, {"precision": precision}, max_steps=10).fit(
            model(), LanguageModeling(), stream(corpus)
        )
        losses[precision] = [row["loss"] for row in rows(tmp_path / precision)]
    assert losses["fp32"] == pytest.approx(losses["bf16"], rel=0.02)
    assert losses["fp32"] != losses["bf16"]


def test_activation_checkpointing_changes_nothing(tmp_path: Path, corpus: TokenCorpus) -> None:
    weights = []
    for on in (False, True, 2):
        net = model(dropout=0.2, moe=MoEConfig(4, 2), n_layers=3)
        torch.manual_seed(3)
        trainer(tmp_path / str(on), {"activation_checkpointing": on}).fit(net, LanguageModeling(), stream(corpus))
        weights.append(list(net.parameters()))
    for others in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], others, strict=True))


def test_best_checkpoint_and_patience(tmp_path: Path, corpus: TokenCorpus) -> None:
    loop = trainer(tmp_path, max_steps=20, eval_every=2, keep_checkpoints=1, early_stopping_patience=2)
    result = loop.fit(model(), LanguageModeling(), stream(corpus), Evaluations([3.0, 2.0, 2.5, 2.1, 9.9]))
    assert result.step == 8
    assert result.stopped_early
    assert result.best_checkpoint is not None
    assert result.best_checkpoint.name == "step_00000004"
    assert [p.name for p in loop.checkpoints.all()] == ["step_00000004", "step_00000008"]


def test_a_metric_that_is_not_measured_is_refused_before_training(tmp_path: Path, corpus: TokenCorpus) -> None:
    with pytest.raises(ValueError, match=r"trainer\.monitor='accuracy'.*validation_loss"):
        trainer(tmp_path, monitor="accuracy").fit(model(), LanguageModeling(), stream(corpus), Evaluations([]))


def test_an_evaluation_that_fails_loses_no_step(tmp_path: Path, corpus: TokenCorpus) -> None:
    with pytest.raises(StopIteration):
        trainer(tmp_path, eval_every=3).fit(model(), LanguageModeling(), stream(corpus), Evaluations([]))
    resumed = trainer(tmp_path, eval_every=3)
    started: list[int] = []

    class Watch(Callback):
        def on_start(self, step: int, max_steps: int) -> None:
            started.append(step)

    resumed.callbacks = [Watch()]
    result = resumed.fit(model(1), LanguageModeling(), stream(corpus), Evaluations([2.0, 1.0]))
    assert started == [3]
    assert result.step == 6
    evaluated = [row["step"] for row in rows(tmp_path) if "validation_loss" in row]
    assert evaluated == [3, 6]


def test_torn_checkpoint_costs_only_the_steps_behind_it(tmp_path: Path, corpus: TokenCorpus) -> None:
    undisturbed, disturbed = model(dropout=0.1), model(dropout=0.1)
    torch.manual_seed(5)
    trainer(tmp_path / "a", save_every=2).fit(undisturbed, LanguageModeling(), stream(corpus))
    torch.manual_seed(5)
    trainer(tmp_path / "b", save_every=2).fit(disturbed, LanguageModeling(), stream(corpus))
    last = tmp_path / "b" / "checkpoints" / "step_00000006"
    (last / "trainer.safetensors").write_bytes(b"")
    fresh = model(seed=9, dropout=0.1)
    with pytest.warns(UserWarning, match="torn"):
        trainer(tmp_path / "b", save_every=2).fit(fresh, LanguageModeling(), stream(corpus))
    assert all(torch.equal(a, b) for a, b in zip(undisturbed.parameters(), fresh.parameters(), strict=True))
    drop = ("seconds", "tokens_per_second", "peak_memory_gb")
    plain = [[{k: v for k, v in row.items() if k not in drop} for row in rows(tmp_path / n)] for n in "ab"]
    assert plain[0] == plain[1]


def test_changed_text_is_refused_on_resume(tmp_path: Path, corpus: TokenCorpus) -> None:
    trainer(tmp_path, max_steps=2).fit(model(), LanguageModeling(), stream(corpus))
    other = TokenCorpus(corpus.ids, 0, corpus.counts, "other")
    with pytest.raises(ValueError, match="text or the tokenizer has changed"):
        trainer(tmp_path, max_steps=4).fit(model(), LanguageModeling(), stream(other))


def test_out_of_memory_says_what_to_change(tmp_path: Path, corpus: TokenCorpus) -> None:
    class Hungry(LanguageModeling):
        def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> Any:
            torch.empty(2**60)
            return super().__call__(model, batch)

    with pytest.raises(RuntimeError, match=r"micro_batch_size=2 .*activation_checkpointing=true"):
        trainer(tmp_path).fit(model(), Hungry(), stream(corpus))


def test_learning_rate_override_takes_effect_on_resume(tmp_path: Path, corpus: TokenCorpus) -> None:
    first = {"optimizer": AdamW(lr=1e-3), "schedule": Constant(0.0)}
    trainer(tmp_path, max_steps=2, **first).fit(model(), LanguageModeling(), stream(corpus))
    second = {"optimizer": AdamW(lr=5e-4), "schedule": Constant(0.0)}
    trainer(tmp_path, max_steps=4, **second).fit(model(), LanguageModeling(), stream(corpus))
    assert [row["lr"] for row in rows(tmp_path)] == [1e-3, 1e-3, 5e-4, 5e-4]


@pytest.mark.parametrize(("kind", "targets"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn"])])
def test_frozen_maps_in_16_bits_compute_what_autocast_computed_of_them(kind: str, targets: list[str]) -> None:
    from peft import LoraConfig, get_peft_model

    theirs = make_model(kind)
    get_peft_model(theirs, LoraConfig(r=4, target_modules=targets, fan_in_fan_out=kind == "gpt2"))
    net = HuggingFaceCausalLM(theirs).train()
    switch_off_dropout(net)
    torch.manual_seed(0)
    for name, p in net.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.1)
    ids = torch.randint(1, 250, (4, 30))
    runtime, outcomes = Runtime(Hardware(device="cpu", precision="bf16")), []
    for prepared in (False, True):
        if prepared:
            runtime.prepare(net)
        net.zero_grad()
        with runtime.autocast():
            loss = LanguageModeling()(net, {"input_ids": ids, "labels": ids.roll(-1, 1)}).loss_sum
        loss.backward()
        outcomes.append([loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)])
    assert all(torch.equal(before, after) for before, after in zip(*outcomes, strict=True))
    assert {p.dtype for p in net.parameters() if p.requires_grad} == {torch.float32}
    frozen = [p for name, p in net.named_parameters() if f"{targets[0]}.base_layer.weight" in name]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    assert net.output_head.weight.dtype == (torch.float32 if kind == "gpt2" else torch.bfloat16)  # gpt2's is tied
