"""Instruction finetuning: packed rows against single ones, and runs of every kind of model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import trained_from_scratch
from made_models import byte_tokenizer
from safetensors.torch import load_file

from modern_llm.config.instantiate import describe
from modern_llm.data.arithmetic import Arithmetic
from modern_llm.data.batches import PackedBatches
from modern_llm.data.chat import DEFAULT_TEMPLATE, EncodedConversation
from modern_llm.data.instructions.read import ConversationBatch
from modern_llm.data.instructions.settings import InstructionData
from modern_llm.data.text.replay import Replay, WithReplay
from modern_llm.data.text.sources import TextFiles
from modern_llm.data.text.tokenizers import Tokenizer
from modern_llm.data.text.tokens import tokenise
from modern_llm.evaluation.perplexity import perplexity
from modern_llm.experiment.base_text import text_of
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.experiment.loading import load_model
from modern_llm.experiment.samples import Samples
from modern_llm.models.fused_loss import IGNORE_INDEX
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.pretrained.four_bits import four_bit_maps
from modern_llm.pretrained.loaded import LoadedModel
from modern_llm.pretrained.settings import FullFinetuning, LoRA, ModelFromRun, PretrainedModel
from modern_llm.tasks.sft import SFT
from modern_llm.training.optimization.optimizers import AdamW
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware, TrainerSettings

HARDWARE = Hardware(device="cpu", precision="fp32", eval_batch_size=4)
LORA = LoRA(rank=4, alpha=8, dropout=0.1)
DATA = InstructionData(Arithmetic("instructions", largest=5, held_out=4))


def conversations(count: int) -> list[EncodedConversation]:
    random = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        n = int(torch.randint(4, 30, (), generator=random))
        ids = torch.randint(1, 257, (n,), generator=random).tolist()
        made.append(EncodedConversation(i, ids, [j >= n // 2 for j in range(n)]))
    return made


def task(hub: Path, name: str, steps: int = 4, lora: Any = LORA, **changes: Any) -> SFT:
    trainer = TrainerSettings(max_steps=steps, batch_size=2, optimizer=AdamW(lr=3e-3, weight_decay=0.0), log_every=1,
                              eval_every=2, keep_checkpoints=9)  # fmt: skip
    given: dict[str, Any] = {"max_tokens": 160, "max_train_examples": None, "max_evaluation_examples": None}
    given |= {"paths": Paths(mirror=str(hub)), "samples": Samples(["Hi?"], 4), "suggested_steps": 500}
    given |= {"model": PretrainedModel(name, lora), "trainer": trainer, "hardware": HARDWARE, "data": DATA}
    given |= {"objective_metric": "evaluation_loss"}
    return SFT(**{**given, **changes})


def run(made: Any, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    return made.run(RunFolder(folder, {}))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "own"])
def test_packed_rows_give_the_loss_and_gradients_of_single_ones(load: Callable[..., LoadedModel], kind: str) -> None:
    """Three rows of several conversations against one conversation a row, padding included, to 1e-5."""
    model, items, collate = load(kind).model, conversations(9), ConversationBatch(0)
    objective = LanguageModeling()
    results = []
    for rows in ([items[:2], items[2:6], items[6:]], [[item] for item in items]):
        batch = collate(rows)
        count = objective.count(batch)
        model.zero_grad()
        loss = objective(model, batch).loss_sum / count  # type: ignore[arg-type]
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((count, loss.detach(), gradients))
    (packed_count, packed, packed_gradients), (count, single, gradients) = results
    assert packed_count == count
    torch.testing.assert_close(packed, single, atol=1e-5, rtol=1e-5)
    assert packed_gradients.keys() == gradients.keys()
    scale = max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in gradients.items():
        assert float((packed_gradients[name] - gradient).abs().max()) <= 1e-5 * scale, name


def test_a_changed_neighbour_changes_nothing(load: Callable[..., LoadedModel]) -> None:
    model, items, collate = load("llama").model, conversations(3), ConversationBatch(0)
    other = replace(items[0], ids=[(i + 5) % 257 for i in items[0].ids])
    ours = model.hidden_states(**_inputs(collate([items])))  # type: ignore[operator]
    theirs = model.hidden_states(**_inputs(collate([[other, *items[1:]]])))  # type: ignore[operator]
    start = items[0].length
    assert torch.equal(ours.hidden[:, start:], theirs.hidden[:, start:])


def _inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: batch[name] for name in ("input_ids", "document_ids")}


class TestRuns:
    @pytest.mark.parametrize(
        ("name", "lora", "packing"),
        [("openai-community/gpt2", LORA, True), ("made/llama", FullFinetuning(), True), ("made/llama", LORA, False),
         ("made/llama", replace(LORA, base_bits=4), False)],
    )  # fmt: skip
    def test_it_learns_is_resumed_exactly_and_is_trained_on(
        self, hub: Path, tmp_path: Path, name: str, lora: Any, packing: bool
    ) -> None:
        made = task(hub, name, 8, lora, packing=packing)
        metrics = run(made, tmp_path / "whole")
        rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
        losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
        assert losses[-1] < losses[0]
        assert metrics["evaluation_loss"] > 0
        result = json.loads((tmp_path / "whole" / "result.json").read_text())
        assert result["headline"] == ["evaluation_loss", "evaluation_perplexity"]
        assert result["samples"][0]["prompt"] == "Hi?"
        shutil.copytree(tmp_path / "whole", tmp_path / "broken")
        for step in (6, 8):
            shutil.rmtree(tmp_path / "broken" / "checkpoints" / f"step_{step:08d}")
        assert run(made, tmp_path / "broken")["evaluation_loss"] == metrics["evaluation_loss"]
        one, two = (
            load_file(tmp_path / f / "checkpoints/step_00000008/model.safetensors") for f in ("whole", "broken")
        )
        assert all(torch.equal(one[key], two[key]) for key in one)
        further = replace(made, model=ModelFromRun(str(tmp_path / "whole"), LORA))
        assert run(further, tmp_path / "further")["train_loss"] < metrics["train_loss"]

    def test_a_run_in_four_bits_is_taken_up_with_the_weights_it_was_trained_upon(
        self, hub: Path, tmp_path: Path
    ) -> None:
        run(task(hub, "openai-community/gpt2", 3, replace(LORA, base_bits=4)), tmp_path / "run")
        choice, ids = ModelFromRun(str(tmp_path / "run"), FullFinetuning()), torch.arange(12)[None]
        narrow = load_model(choice, Runtime(HARDWARE), str(hub), [], train=False)
        whole = load_model(choice, Runtime(HARDWARE), str(hub), [], train=True)
        plain = load_model(PretrainedModel("openai-community/gpt2"), Runtime(HARDWARE), str(hub), [], train=False)
        assert len(four_bit_maps(narrow.model)) == 8
        assert not four_bit_maps(whole.model)
        mine, theirs, before = (
            loaded.model.eval().hidden_states(ids).hidden
            for loaded in (narrow, whole, plain)  # type: ignore[operator]
        )
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
        assert (mine - before).abs().max() > 0.01

    def test_the_template_goes_with_the_model(self, hub: Path, tmp_path: Path) -> None:
        from modern_llm.experiment.loading import load_chat_model

        run(task(hub, "openai-community/gpt2", 2), tmp_path / "first")
        for folder in ("adapter", "checkpoints/step_00000002/tokenizer"):
            assert Tokenizer.load(tmp_path / "first" / folder).chat_template == DEFAULT_TEMPLATE
        again = replace(task(hub, "x"), model=ModelFromRun(str(tmp_path / "first")))
        assert (
            load_chat_model(again.model, Runtime(HARDWARE), str(hub), train=False).tokenizer.chat_template
            == DEFAULT_TEMPLATE
        )

    def test_a_decoder_of_our_own(self, tmp_path: Path) -> None:
        base = trained_from_scratch(tmp_path / "base", byte_tokenizer())
        made = replace(task(tmp_path, "x", paths=Paths()), model=ModelFromRun(str(base), FullFinetuning()))
        assert run(made, tmp_path / "sft")["steps"] == 4
        assert ModelFromRun(str(tmp_path / "sft")).checkpoint().is_dir()

    def test_adapters_on_a_decoder_of_our_own_are_found_again(self, tmp_path: Path) -> None:
        from bases import trained_from_scratch

        base = trained_from_scratch(tmp_path / "base", byte_tokenizer())
        made = replace(task(tmp_path, "x", 2, paths=Paths()), model=ModelFromRun(str(base), LORA))
        run(made, tmp_path / "sft")
        assert run(replace(made, model=ModelFromRun(str(tmp_path / "sft"), LORA)), tmp_path / "further")["steps"] == 2


class TestRefusals:
    def test_an_encoder_decoder(self, hub: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no conversation"):
            run(task(hub, "google-t5/t5-small"), tmp_path)

    def test_a_base_with_another_tokenizer_than_the_adapters(self, hub: Path, tmp_path: Path) -> None:
        from modern_llm.experiment.loading import load_chat_model

        copied = tmp_path / "hub"
        shutil.copytree(hub / "models" / "made", copied / "models" / "made")
        run(task(copied, "made/llama", 2), tmp_path / "first")
        path = copied / "models" / "made" / "llama" / "tokenizer.json"
        text = json.loads(path.read_text())
        vocabulary = text["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        path.write_text(json.dumps(text))
        again = replace(task(copied, "x"), model=ModelFromRun(str(tmp_path / "first")))
        with pytest.raises(ValueError, match="was trained with another tokenizer"):
            load_chat_model(again.model, Runtime(HARDWARE), str(copied), train=False)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"max_tokens": 3}, r"task\.max_tokens=3"),
            ({"max_train_examples": 0}, r"task\.max_train_examples=0"),
            ({"objective_metric": "rouge"}, r"task\.objective_metric='rouge': is not measured"),
        ],
    )
    def test_impossible_settings(self, hub: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            task(hub, "x", **changes)


@pytest.mark.parametrize(
    "data", ["alpaca", "arithmetic_instructions", "chat", "instruction_files", "p3", "self_instruct"]
)
def test_every_choice_of_data_composes_and_names_every_key(data: str, tmp_path: Path) -> None:
    from dataclasses import fields

    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from modern_llm.config.instantiate import build

    (tmp_path / "a.jsonl").write_text("{}\n")
    given = [f"task.data.source.train={tmp_path}/a.jsonl"] if data == "instruction_files" else []
    with initialize_config_dir(str(Path(__file__).resolve().parents[2] / "conf"), version_base="1.3"):
        config = compose("config", ["name=x", "task=sft", f"task/data={data}", "model=smollm2_135m", *given])
    made = build(config.task)
    written = OmegaConf.to_container(config.task, resolve=True)
    assert isinstance(written, dict)
    for built, node in ((made, written), (made.data, written["data"]), (made.data.source, written["data"]["source"])):
        assert {f.name for f in fields(built)} == node.keys() - {"_target_"}


class TestReplay:
    """Text of the base among conversations."""

    @pytest.fixture
    def text(self, tmp_path: Path) -> TextFiles:
        path = tmp_path / "text.txt"
        path.write_text("".join(f"Line {i} says {i * i}.\n" for i in range(200)))
        return TextFiles(train=[str(path)], validation=[str(path)])

    def test_rows_of_text_stand_below_the_conversations(self, text: TextFiles, tmp_path: Path) -> None:
        tokenizer = byte_tokenizer()
        corpus = tokenise(text, "train", tokenizer, tmp_path / "cache")
        items, whole = conversations(12), (tmp_path / "text.txt").read_text()

        def stream(seed: int = 3) -> WithReplay:
            inner = PackedBatches(items, 3, 40, 1, ConversationBatch(0), "x")
            return WithReplay(inner, Replay(text, 0.4), corpus, seed)

        plain, one = PackedBatches(items, 3, 40, 1, ConversationBatch(0), "x"), stream()
        for _ in range(5):
            alone, batch = next(plain), next(one)
            B, T = alone["input_ids"].shape
            assert len(batch["input_ids"]) == B + Replay(text, 0.4).rows(B)
            K = alone["labels"].shape[1]
            for name, tensor in alone.items():
                upper = batch[name][:B]
                assert torch.equal(upper[:, :K] if name in ("labels", "target_positions") else upper, tensor)
            assert (batch["labels"][:B, K:] == IGNORE_INDEX).all()
            for ids, labels in zip(batch["input_ids"][B:], batch["labels"][B:], strict=True):
                assert tokenizer.decode([*ids.tolist(), int(labels[-1])]) in whole
                assert torch.equal(ids[1:], labels[:-1])
            assert torch.equal(batch["target_positions"][B:], torch.arange(T).expand(len(batch["labels"]) - B, -1))
        again = stream()
        again.load_state_dict(one.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(next(one).values(), next(again).values(), strict=True))
        (tmp_path / "text.txt").write_text(whole + "More of it.\n")
        other = WithReplay(plain, Replay(text, 0.4), tokenise(text, "train", tokenizer, tmp_path / "cache"), 3)
        with pytest.raises(ValueError, match=r"task\.replay has changed"):
            other.load_state_dict(one.state_dict())

    def test_the_text_of_the_base_is_found_in_its_run_and_remembered(self, text: TextFiles, tmp_path: Path) -> None:
        base = trained_from_scratch(tmp_path / "base", byte_tokenizer())
        (base / "config.yaml").write_text(describe({"task": {"_target_": "modern_llm.tasks.pretraining.Pretraining",
                                                             "data": text}}))  # fmt: skip
        measured = {}
        for name, replay in (("plain", None), ("kept", Replay(None, 0.5))):
            made = task(tmp_path, "x", 30, model=ModelFromRun(str(base), FullFinetuning()), replay=replay,
                        paths=Paths(cache=str(tmp_path / "cache")))  # fmt: skip
            run(made, tmp_path / name)
            loaded = load_model(ModelFromRun(str(tmp_path / name)), Runtime(HARDWARE), None, [], train=False)
            corpus = tokenise(text, "train", loaded.tokenizer, tmp_path / "cache")
            device = torch.device("cpu")
            measured[name] = perplexity(loaded.decoder, corpus, context=64, stride=64, batch_size=8, device=device)
        assert measured["kept"].token_perplexity < 0.5 * measured["plain"].token_perplexity
        finetuned = {"task": {"_target_": "modern_llm.tasks.sft.SFT"}, "model": ModelFromRun(str(base))}
        (tmp_path / "kept" / "config.yaml").write_text(describe(finetuned))
        assert text_of(ModelFromRun(str(tmp_path / "kept"))) == text

    def test_a_model_without_a_text_of_its_own(self, hub: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"task\.replay\.data=None"):
            run(task(hub, "made/llama", replay=Replay(None, 0.5)), tmp_path / "run")
        with pytest.raises(ValueError, match=r"task\.replay\.share=1\.0"):
            Replay(None, 1.0)
