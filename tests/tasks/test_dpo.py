"""Learning from preferences: runs of every kind of model and loss, the reference, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bases import trained_from_scratch
from made_models import byte_tokenizer
from safetensors.torch import load_file

from modern_llm.data.arithmetic import Arithmetic
from modern_llm.data.chat import ChatWriter, with_chat
from modern_llm.data.preferences.read import PairBatch, read_preferences
from modern_llm.data.preferences.settings import PreferenceData
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.experiment.loading import load_model
from modern_llm.experiment.samples import Samples
from modern_llm.objectives.preference import PreferenceOptimisation, answer_log_probs
from modern_llm.objectives.preference_losses import IPO, KTO, ORPO, SigmoidDPO, SimPO
from modern_llm.pretrained.loaded import LoadedModel
from modern_llm.pretrained.settings import FullFinetuning, LoRA, ModelFromRun, PretrainedModel
from modern_llm.tasks.dpo import DPO
from modern_llm.training.dropout import switch_off_dropout
from modern_llm.training.optimization.optimizers import AdamW
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware, TrainerSettings

HARDWARE = Hardware(device="cpu", precision="fp32", eval_batch_size=4)
LORA = LoRA(rank=4, alpha=8, dropout=0.3)
DATA = PreferenceData(Arithmetic("preferences", largest=5, held_out=4))


def task(hub: Path, name: str, cache: Path, steps: int = 4, lora: Any = LORA, **changes: Any) -> DPO:
    trainer = TrainerSettings(max_steps=steps, batch_size=4, optimizer=AdamW(lr=3e-3, weight_decay=0.0), log_every=1,
                              eval_every=2, keep_checkpoints=9)  # fmt: skip
    given: dict[str, Any] = {"max_tokens": 160, "paths": Paths(mirror=str(hub), cache=str(cache))}
    given |= {"samples": Samples(["Hi?"], 4), "max_train_examples": None, "max_evaluation_examples": None}
    given |= {"suggested_steps": 200, "objective_metric": "evaluation_preference_accuracy"}
    given |= {"model": PretrainedModel(name, lora), "trainer": trainer, "hardware": HARDWARE, "data": DATA}
    return DPO(**{**given, **changes})


def run(made: DPO, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    return made.run(RunFolder(folder, {}))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class TestRuns:
    @pytest.mark.parametrize(
        ("name", "lora", "loss"),
        [
            ("openai-community/gpt2", LORA, SigmoidDPO(0.5)),
            ("made/llama", FullFinetuning(), IPO(0.5)),
            ("made/llama", LORA, SimPO()),
            ("made/llama", FullFinetuning(), ORPO()),
            ("made/llama", LORA, KTO(0.5)),
        ],
        ids=["gpt2-lora-dpo", "llama-full-ipo", "llama-lora-simpo", "llama-full-orpo", "llama-lora-kto"],
    )
    def test_it_learns_and_is_resumed_exactly(self, hub: Path, tmp_path: Path, name: str, lora: Any, loss: Any) -> None:
        made = task(hub, name, tmp_path / "cache", 10, lora, loss=loss)
        metrics = run(made, tmp_path / "whole")
        measured = [row["validation_loss"] for row in rows_of(tmp_path / "whole") if "validation_loss" in row]
        assert measured[-1] < measured[0]
        result = json.loads((tmp_path / "whole" / "result.json").read_text())
        assert result["headline"] == ["evaluation_preference_accuracy", "evaluation_reward_margin"]
        logged = {"preference_accuracy", "reward_margin", "chosen_log_prob", "rejected_log_prob", "chosen_reward"}
        assert logged | ({"kl_estimate"} if loss.needs_reference else set()) <= rows_of(tmp_path / "whole")[0].keys()
        shutil.copytree(tmp_path / "whole", tmp_path / "broken")
        for step in (6, 8, 10):
            shutil.rmtree(tmp_path / "broken" / "checkpoints" / f"step_{step:08d}")
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # the reference is then computed again
        assert run(made, tmp_path / "broken")["evaluation_loss"] == metrics["evaluation_loss"]
        one, two = (
            load_file(tmp_path / f / "checkpoints/step_00000010/model.safetensors") for f in ("whole", "broken")
        )
        assert all(torch.equal(one[key], two[key]) for key in one)

    @pytest.mark.parametrize("name", ["openai-community/gpt2", "made/llama"])
    def test_it_starts_at_log_two(self, hub: Path, tmp_path: Path, name: str) -> None:
        """The first step's loss is that of a policy that is the reference, dropout of 0.3 in the adapters or not."""
        run(task(hub, name, tmp_path, 2), tmp_path / "run")
        assert rows_of(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)

    def test_the_reference_is_the_model_before_and_not_a_trained_adapter(self, hub: Path, tmp_path: Path) -> None:
        first = task(hub, "made/llama", tmp_path / "cache", 6)
        run(first, tmp_path / "first")
        second = replace(first, model=ModelFromRun(str(tmp_path / "first"), LORA))
        run(second, tmp_path / "second")
        rows = rows_of(tmp_path / "second")
        assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
        # Three parts of the data, two references.
        files = sorted((tmp_path / "cache" / "reference_log_probs").iterdir())
        assert len(files) == 6
        run(replace(first, seed=5), tmp_path / "third")  # another adapter beside the same reference
        assert sorted((tmp_path / "cache" / "reference_log_probs").iterdir()) == files
        choice = ModelFromRun(str(tmp_path / "first"))
        plain = load_model(choice, Runtime(HARDWARE), str(hub), [], train=False)
        part = read_preferences(DATA, ChatWriter(with_chat(plain.tokenizer)), "evaluation", 160, str(hub))
        with torch.no_grad():
            fresh = answer_log_probs(plain.model.eval(), PairBatch(0)(part.pairs))[0].double().numpy()  # type: ignore[arg-type]
        kept = [np.frombuffer(file.read_bytes()[32:], "<f8").reshape(-1, 2) for file in files]
        assert any(k.shape == fresh.shape and np.abs(k - fresh).max() < 1e-3 for k in kept)

    def test_a_decoder_of_our_own(self, tmp_path: Path) -> None:
        base = trained_from_scratch(tmp_path / "base", byte_tokenizer())
        made = task(tmp_path, "x", tmp_path / "cache", paths=Paths(cache=str(tmp_path / "cache")))
        for lora in (FullFinetuning(), LORA):
            made = replace(made, model=ModelFromRun(str(base), lora))
            folder = tmp_path / type(lora).__name__
            assert run(made, folder)["steps"] == 4
            assert rows_of(folder)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "own"])
def test_pairs_in_one_row_are_separate_texts(load: Callable[..., LoadedModel], kind: str) -> None:
    loaded = load(kind)
    part = read_preferences(DATA, ChatWriter(with_chat(loaded.tokenizer)), "evaluation", 160, None)
    model: Any = loaded.model.eval()
    together, _ = answer_log_probs(model, PairBatch(0)(part.pairs))
    for pair, sums in zip(part.pairs, together, strict=True):
        for answer, total in zip((pair.chosen_ids, pair.rejected_ids), sums, strict=True):
            ids = torch.tensor([[*pair.prompt_ids, *answer]])
            hidden = model.hidden_states(ids[:, :-1]).hidden[0, len(pair.prompt_ids) - 1 :]
            chance = (hidden @ model.output_head.weight.t()).log_softmax(-1)
            torch.testing.assert_close(
                total, chance.gather(1, torch.tensor(answer)[:, None]).sum(), atol=2e-4, rtol=1e-5
            )


def test_without_dropout_training_is_evaluation(hub: Path) -> None:
    loaded = load_model(PretrainedModel("openai-community/gpt2", LORA), Runtime(HARDWARE), str(hub), [], train=True)
    model: Any = loaded.model.train()
    ids = torch.arange(1, 21)[None]
    for parameter in model.parameters():  # adapters that do something
        parameter.data.add_(0.01)
    assert not torch.equal(model.hidden_states(ids).hidden, model.hidden_states(ids).hidden)
    switch_off_dropout(model)
    assert torch.equal(model.hidden_states(ids).hidden, model.eval().hidden_states(ids).hidden)


def test_the_hash_of_all_weights(hub: Path) -> None:
    def hashed(lora: Any = LORA, index: int | None = None, dtype: torch.dtype = torch.float32) -> str:
        loaded = load_model(PretrainedModel("made/llama", lora), Runtime(HARDWARE), str(hub), [], train=True)
        loaded.model.to(dtype)
        if index is not None:
            next(loaded.base.parameters()).data.view(-1)[index] += 1e-3
        return loaded.weights_hash()

    plain = hashed()
    assert hashed(FullFinetuning()) == plain
    assert len({plain, hashed(index=100), hashed(index=101), hashed(dtype=torch.bfloat16)}) == 4


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"max_tokens": 3}, r"task\.max_tokens=3"),
            ({"max_train_examples": 0}, r"task\.max_train_examples=0"),
            ({"objective_metric": "rouge"}, r"task\.objective_metric='rouge': is not measured"),
            ({"loss": SimPO(), "objective_metric": "evaluation_kl_estimate"}, r"evaluation_kl_estimate.*not measured"),
            ({"max_tokens": 9}, r"none of \d+ pairs can be learned from.*a prompt that fills the 9 tokens"),
        ],
    )
    def test_impossible_settings(self, hub: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            run(task(hub, "made/llama", tmp_path, **changes), tmp_path)

    def test_an_encoder_decoder(self, hub: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no conversation"):
            run(task(hub, "google-t5/t5-small", tmp_path), tmp_path)

    def test_a_metric_that_is_not_measured_in_training(self, hub: Path, tmp_path: Path) -> None:
        made = task(hub, "made/llama", tmp_path)
        with pytest.raises(ValueError, match=r"trainer\.monitor='accuracy'"):
            replace(made, trainer=replace(made.trainer, monitor="accuracy"))


@pytest.mark.parametrize("loss", [SigmoidDPO(), KTO(2.0)], ids=["dpo", "kto"])
def test_micro_batches_change_nothing(hub: Path, tmp_path: Path, loss: Any) -> None:
    """Neither in training nor in what is measured, whose batches are smaller, too."""
    found = []
    for size, rows in ((None, 8), (1, 3)):
        hardware = replace(HARDWARE, micro_batch_size=size, eval_batch_size=rows)
        metrics = run(
            task(hub, "made/llama", tmp_path / "cache", 3, loss=loss, hardware=hardware), tmp_path / str(rows)
        )
        names = ("loss", "validation_loss", "reference_point")
        found.append([row[name] for row in rows_of(tmp_path / str(rows)) for name in names if name in row])
        found[-1] += [metrics["evaluation_loss"], metrics["evaluation_reward_margin"]]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_the_objective_counts_pairs() -> None:
    part = read_preferences(DATA, ChatWriter(with_chat(byte_tokenizer())), "evaluation", 160, None)
    batch = PairBatch(0)(part.pairs)
    assert PreferenceOptimisation(SimPO()).count(batch) == len(part.pairs) == 4
