"""Training pretrained models: adapters, heads, the end of text, resuming, and what is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made import labelled
from safetensors.torch import load_file

from modern_llm.config.instantiate import build
from modern_llm.data.batches import CompletionBatch, LengthBatches
from modern_llm.data.forms import CompletionForm
from modern_llm.data.labelled import Example, LabelledData
from modern_llm.data.rows import FileRows
from modern_llm.evaluation.answering import write_answers
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.models.recomputing import HostMemory
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.objectives.seq2seq import Seq2Seq
from modern_llm.pretrained.classifier import Classifier
from modern_llm.pretrained.loaded import LoadedModel
from modern_llm.pretrained.loading import load_hugging_face
from modern_llm.pretrained.lora import lora_targets
from modern_llm.pretrained.settings import FullFinetuning, LoRA, ModelFromRun, PretrainedModel
from modern_llm.tasks.export import Export
from modern_llm.tasks.finetuning import Finetuning
from modern_llm.training.optimization.optimizers import AdamW
from modern_llm.training.settings import Hardware, TrainerSettings

Load = Callable[..., LoadedModel]
HARDWARE = Hardware(device="cpu", precision="fp32", eval_batch_size=4)
SST2 = labelled(
    name="stanfordnlp/sst2", text="{sentence}", prompt="{sentence}. It is",
    labels=["negative", "positive"], evaluation_split="validation", held_out=8,
)  # fmt: skip
GSM8K = labelled(
    name="openai/gsm8k", config="main", prompt="Question: {question}\nAnswer:", target="{answer}",
    remove="<<[^>]*>>", stop=["\nQuestion:"], max_new_tokens=8, held_out=4,
)  # fmt: skip
SAMSUM = labelled(
    name="knkarthick/samsum", prompt="{dialogue}\nSummary:", encoder_text="summarize: {dialogue}", target="{summary}",
    metrics=["rouge1", "rouge2", "rougeL", "rougeLsum"], max_new_tokens=8, held_out=4,
)  # fmt: skip
LORA = LoRA(rank=4, alpha=8, dropout=0.1)


def trainer(steps: int, **changes: Any) -> TrainerSettings:
    given: dict[str, Any] = {"max_steps": steps, "batch_size": 4, "optimizer": AdamW(lr=3e-3, weight_decay=0.0)}
    return TrainerSettings(**{**given, "log_every": 1, "eval_every": 2, **changes})


def task(hub: Path, name: str, data: LabelledData, steps: int = 4, lora: Any = LORA, **changes: Any) -> Finetuning:
    given: dict[str, Any] = {"max_tokens": 64, "paths": Paths(mirror=str(hub))}
    given |= {"model": PretrainedModel(name, lora), "trainer": trainer(steps), "hardware": HARDWARE, "data": data}
    return Finetuning(**{**given, **changes})


def run(made: Any, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    return made.run(RunFolder(folder, {}))


def _figure(card: Path, name: str) -> float:
    """A figure of the table in a model's card."""
    cells = next(line for line in card.read_text().splitlines() if line.startswith(f"| {name} ")).split("|")
    return float(cells[2])


class TestLoRA:
    @pytest.mark.parametrize(
        ("kind", "targets"),
        [
            ("gpt2", {"c_attn", "c_proj", "c_fc"}),
            ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
            ("t5", {"q", "k", "v", "o", "wi", "wo"}),
            ("flan", {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}),
            ("own", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ],
    )
    def test_targets_of_every_architecture(self, load: Load, kind: str, targets: set[str]) -> None:
        assert set(lora_targets(load(kind).base)) == targets

    @pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "own"])
    def test_adapters_start_as_nothing_get_all_gradients_and_merge(self, load: Load, kind: str) -> None:
        plain, loaded = load(kind), load(kind, lora=LoRA(rank=2, alpha=4, dropout=0.0))
        ids = torch.randint(1, 257, (2, 9), generator=torch.Generator().manual_seed(0))

        def states(model: LoadedModel) -> torch.Tensor:
            if model.is_seq2seq:
                return model.model.decoder_states(model.model.encode(ids, torch.ones_like(ids)), ids)  # type: ignore
            return model.model.hidden_states(ids).hidden  # type: ignore[operator]

        torch.testing.assert_close(states(loaded), states(plain))
        trained = {n: p for n, p in loaded.model.named_parameters() if p.requires_grad}
        assert all("lora_" in name for name in trained)
        for name, parameter in trained.items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        states(loaded).square().sum().backward()
        without = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
        assert not without
        assert all(p.grad is None for p in loaded.model.parameters() if not p.requires_grad)
        adapted = states(loaded).detach()
        assert (adapted - states(plain)).abs().max() > 0.01
        torch.testing.assert_close(states(loaded.merged()), adapted, atol=1e-3, rtol=1e-3)

    def test_unknown_targets_are_named(self, load: Load) -> None:
        with pytest.raises(ValueError, match=r"no linear map 'q_proj'\. Choose among c_attn"):
            load("gpt2", lora=LoRA(targets=["q_proj"]))


class TestClassifier:
    @pytest.mark.parametrize("kind", ["gpt2", "llama", "own"])
    def test_the_last_real_token_counts_under_any_padding(self, load: Load, kind: str) -> None:
        model = load(kind, SST2.labels).model
        assert isinstance(model, Classifier)
        texts = [torch.randint(0, 257, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 9, 6)]
        alone = torch.cat([model(text[None]) for text in texts])
        assert len({tuple(row) for row in alone.tolist()}) == 3
        for left in (True, False):
            ids, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
            for row, text in enumerate(texts):
                where = slice(9 - len(text), 9) if left else slice(0, len(text))
                ids[row, where], mask[row, where] = text, 1
            torch.testing.assert_close(model(ids, mask), alone, atol=1e-4, rtol=1e-4)
        last = torch.tensor([len(text) - 1 for text in texts])
        torch.testing.assert_close(model.logits(ids, last), alone, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    def test_transformers_gives_the_same_logits(self, load: Load, kind: str) -> None:
        loaded = load(kind, SST2.labels)
        ids = torch.randint(1, 257, (1, 7))
        torch.testing.assert_close(loaded.model(ids), loaded.base(ids).logits, atol=1e-5, rtol=1e-5)


class TestObjectives:
    def test_loss_on_answers_is_plain_cross_entropy_there(self, load: Load) -> None:
        loaded = load("gpt2")
        form = CompletionForm(GSM8K, loaded.tokenizer, 64)
        rows = [Example(i, {"question": "1+1" * i, "answer": "2" * i}, None, "2" * i) for i in (1, 3, 2)]
        items = form.encode(rows)
        batch = form.collate(items)
        objective = LanguageModeling()
        ours = objective(loaded.model, batch).loss_sum  # type: ignore[arg-type]
        theirs = torch.zeros(())
        for item in items:
            ids = torch.tensor([item.input_ids + item.target_ids])
            labels = torch.tensor([[-100] * len(item.input_ids) + item.target_ids])
            theirs += loaded.base(ids, labels=labels).loss * len(item.target_ids)
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
        assert objective.count(batch) == sum(len(item.target_ids) for item in items)
        assert objective.tokens(batch) == sum(item.length - 1 for item in items)

    @pytest.mark.parametrize("kind", ["t5", "flan"])
    def test_seq2seq_loss_is_that_of_transformers(self, load: Load, kind: str) -> None:
        from modern_llm.data.forms import Seq2SeqForm

        loaded = load(kind)
        form = Seq2SeqForm(SAMSUM, loaded.tokenizer, 64)
        rows = [Example(i, {"dialogue": "a" * i, "summary": "b" * i}, None, "b" * i) for i in (1, 4)]
        items = form.encode(rows)
        theirs = sum(
            loaded.base(torch.tensor([i.input_ids]), labels=torch.tensor([i.target_ids])).loss * len(i.target_ids)
            for i in items
        )
        ours = Seq2Seq()(loaded.model, form.collate(items)).loss_sum  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_activation_checkpointing_changes_nothing(load: Load, kind: str) -> None:
    gradients = []
    for on, memory in ((False, None), (True, None), (2, None), (2, HostMemory(torch.device("cpu")))):
        loaded = load(kind, lora=LoRA(rank=2, alpha=4, dropout=0.0))
        loaded.model.activation_checkpointing, loaded.model.host_memory = on, memory  # type: ignore[assignment]
        loaded.model.train()
        for module in loaded.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        ids = torch.randint(1, 257, (2, 9), generator=torch.Generator().manual_seed(0))
        batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
        objective: Any = Seq2Seq() if loaded.is_seq2seq else LanguageModeling()
        objective(loaded.model, batch).loss_sum.backward()
        gradients.append({n: p.grad for n, p in loaded.model.named_parameters() if p.requires_grad})
    assert any(g.any() for g in gradients[0].values() if g is not None)
    for name, gradient in gradients[0].items():
        for others in gradients[1:]:
            torch.testing.assert_close(others[name], gradient, msg=name)


def test_a_finetuned_gpt2_stops_by_itself(load: Load) -> None:
    """Padding and end of text share an id, and the end is learned all the same."""
    loaded = load("gpt2")
    data = labelled(name="x", prompt="{q}=", target="{a}")
    rows = [
        Example(i, {"q": q, "a": a}, None, a) for i, (q, a) in enumerate([("a", "xy"), ("bb", "z"), ("ccc", "u v")])
    ]
    form = CompletionForm(data, loaded.tokenizer, 32)
    stream = LengthBatches(form.encode(rows), 3, 0, CompletionBatch(loaded.tokenizer.eos_id), "")
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=3e-3)
    objective = LanguageModeling()
    for _ in range(150):
        batch = next(stream)
        optimizer.zero_grad()
        (objective(loaded.model, batch).loss_sum / objective.count(batch)).backward()  # type: ignore[arg-type]
        optimizer.step()
    prompts = form.prompts(rows, 8)
    answers = write_answers(
        loaded.model,
        loaded.tokenizer,
        prompts,
        max_new_tokens=20,
        batch_size=3,  # type: ignore[arg-type]
    )
    assert [a.text for a in answers] == [" xy", " z", " u v"]
    assert all(a.ended for a in answers)


class TestRuns:
    @pytest.mark.parametrize(
        ("name", "data"),
        [("openai-community/gpt2", SST2), ("google-t5/t5-small", SAMSUM), ("made/llama", GSM8K),
         ("google-t5/t5-small", SST2)],
    )  # fmt: skip
    def test_a_run_leaves_its_record(self, hub: Path, tmp_path: Path, name: str, data: LabelledData) -> None:
        made = task(hub, name, data)
        metrics = run(made, tmp_path)
        assert made.objective_metric in metrics
        assert metrics[f"{made.objective_metric}_low"] <= metrics[made.objective_metric]
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["status"] == "finished"
        assert result["metrics"] == metrics
        predictions = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
        errors = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
        assert len(predictions) == result["evaluated_on"][""]["examples"]
        assert len(errors) == sum(p["score"] < 1 for p in predictions)
        assert 0 <= metrics["padding_share"] < 0.5
        assert (tmp_path / "report.html").stat().st_size > 1000
        assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()

    def test_choices_of_each_row_are_learned(self, hub: Path, tmp_path: Path) -> None:
        """Every row has options of its own, and the same word among them is right."""
        rows = []
        for i in range(48):
            options = ["tea", f"cake {i}", "a sea"][: 2 + i % 2]
            options.insert(i % 3 % (len(options) + 1), "ink")
            rows.append({"ask": f"Question {i}?", "options": options, "right": options.index("ink")})
        (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = FileRows(str(tmp_path / "quiz.jsonl"), evaluation=None, held_out=6)
        data = labelled(source=source, prompt="{ask}", choices_column="options", label_column="right",
                        metrics=["accuracy", "normalised_accuracy"])  # fmt: skip
        folder = tmp_path / "run"
        metrics = run(task(hub, "made/llama", data, steps=40, lora=FullFinetuning()), folder)
        predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        asked = {row["ask"]: row["options"] for row in rows}
        for row in predictions:
            (options,) = (known for ask, known in asked.items() if ask in json.dumps(row))
            assert row["reference"] == "ink"
            assert row["prediction"] in options
        right = [row["prediction"] == "ink" for row in predictions]
        assert metrics["accuracy"] == sum(right) / len(right) == 1

    @pytest.mark.parametrize("lora", [LORA, FullFinetuning()], ids=["lora", "full"])
    def test_a_resumed_run_is_exact(self, hub: Path, tmp_path: Path, lora: Any) -> None:
        made = task(hub, "openai-community/gpt2", SST2, steps=6, lora=lora)
        made = replace(made, trainer=replace(made.trainer, keep_checkpoints=9))
        metrics = run(made, tmp_path / "whole")
        shutil.copytree(tmp_path / "whole", tmp_path / "broken")
        shutil.rmtree(tmp_path / "broken" / "checkpoints" / "step_00000006")
        again = run(made, tmp_path / "broken")
        one, two = (
            load_file(tmp_path / f / "checkpoints/step_00000006/model.safetensors") for f in ("whole", "broken")
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert again["accuracy"] == metrics["accuracy"]
        rows = [(tmp_path / f / "metrics.jsonl").read_text().splitlines() for f in ("whole", "broken")]
        losses = [[json.loads(r).get("loss") for r in found] for found in rows]
        assert losses[0] == losses[1]

    @pytest.mark.parametrize("data", [SST2, GSM8K], ids=["head", "text"])
    def test_micro_batches_change_nothing(self, hub: Path, tmp_path: Path, data: LabelledData) -> None:
        losses = []
        for size in (None, 1, 3):
            made = task(hub, "made/llama", data, steps=3, lora=replace(LORA, dropout=0.0))
            made = replace(made, hardware=replace(HARDWARE, micro_batch_size=size))
            losses.append(run(made, tmp_path / str(size))["train_loss"])
        assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)

    def test_checkpoints_hold_what_is_trained_alone(self, hub: Path, tmp_path: Path) -> None:
        run(task(hub, "openai-community/gpt2", SST2), tmp_path)
        names = load_file(tmp_path / "checkpoints" / "step_00000004" / "model.safetensors")
        assert all("lora_" in name or "score" in name for name in names)

    def test_peft_reads_the_adapter_and_its_head(self, hub: Path, tmp_path: Path) -> None:
        from peft import PeftModelForSequenceClassification
        from transformers import AutoModelForSequenceClassification

        run(task(hub, "made/llama", SST2, steps=8), tmp_path)
        base = AutoModelForSequenceClassification.from_pretrained(
            hub / "models/made/llama", num_labels=2, pad_token_id=0
        )
        theirs = PeftModelForSequenceClassification.from_pretrained(base, str(tmp_path / "adapter")).eval()
        tokenizer = load_hugging_face(PretrainedModel("made/llama"), str(hub)).tokenizer
        rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
        for row in rows:
            logits = theirs(torch.tensor([tokenizer.encode(row["input"])])).logits[0]
            assert SST2.labels[int(logits.argmax())] == row["prediction"]
            chance = float(logits.softmax(-1).max())
            assert row["detail"].endswith(f"{chance:.3f}")

    @pytest.mark.parametrize("data", [SST2, GSM8K], ids=["head", "text"])
    def test_a_run_is_measured_again_merged_and_trained_on(self, hub: Path, tmp_path: Path, data: LabelledData) -> None:
        first = run(task(hub, "made/llama", data), tmp_path / "first")
        again = task(hub, "made/llama", data, train=False)
        again = replace(again, model=ModelFromRun(str(tmp_path / "first")))
        measured = run(again, tmp_path / "again")
        assert measured[again.objective_metric] == first[again.objective_metric]
        texts = [(tmp_path / f / "predictions.jsonl").read_text() for f in ("first", "again")]
        assert texts[0] == texts[1]
        assert "steps" not in measured

        (card,) = (tmp_path / "first").glob("*/README.md")
        assert first[again.objective_metric] == pytest.approx(_figure(card, again.objective_metric), rel=1e-3, abs=1e-3)

        run(Export(ModelFromRun(str(tmp_path / "first")), Paths(mirror=str(hub))), tmp_path / "merged")
        folder = str(tmp_path / "merged" / "model")
        merged = replace(again, model=PretrainedModel(folder))
        assert run(merged, tmp_path / "of_merged")[again.objective_metric] == first[again.objective_metric]

        further = replace(again, model=ModelFromRun(str(tmp_path / "first"), LORA), train=True)
        assert run(further, tmp_path / "further")["steps"] == 4

    def test_a_decoder_from_scratch_stands_where_a_pretrained_one_may(self, hub: Path, tmp_path: Path) -> None:
        scratch = {
            "_target_": "modern_llm.tasks.pretraining.Pretraining",
            "model": {"_target_": "modern_llm.models.config.ModernLLMConfig", "d_model": 32, "n_layers": 2,
                      "n_heads": 2,                      "max_seq_len": 64},
            "trainer": {"_target_": "modern_llm.training.settings.TrainerSettings", "max_steps": 2, "batch_size": 2},
            "hardware": {"_target_": "modern_llm.training.settings.Hardware", "device": "cpu", "precision": "fp32"},
            "data": {"_target_": "modern_llm.data.text.sources.TextFiles", "train": [str(tmp_path / "text.txt")]},
            "tokenizer": {"_target_": "modern_llm.data.text.tokenizers.ByteTokenizer"},
            "seq_len": 32,
            "paths": {"_target_": "modern_llm.experiment.contract.Paths", "cache": str(tmp_path / "cache")},
            "samples": {"_target_": "modern_llm.experiment.samples.Samples", "prompts": [], "max_new_tokens": 4},
        }  # fmt: skip
        (tmp_path / "text.txt").write_text("one film is good and one is bad.\n" * 200)
        run(build(scratch), tmp_path / "base")
        for form, lora in (("auto", LORA), ("label_words", LORA), ("auto", FullFinetuning())):
            folder = tmp_path / f"{form}_{type(lora).__name__}"
            made = task(hub, "unused", SST2, form=form, max_tokens=48)
            made = replace(made, model=ModelFromRun(str(tmp_path / "base"), lora))
            metrics = run(made, folder)
            again = replace(made, model=ModelFromRun(str(folder)), train=False)
            assert run(again, tmp_path / "again" / folder.name)["accuracy"] == metrics["accuracy"]


class TestMonitor:
    def test_the_best_checkpoint_by_a_metric_that_should_be_high(self, hub: Path, tmp_path: Path) -> None:
        made = task(hub, "made/llama", SST2, steps=8)
        made = replace(made, trainer=replace(made.trainer, monitor="validation_accuracy", keep_checkpoints=9))
        run(made, tmp_path)
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        found = {row["step"]: row["validation_accuracy"] for row in rows if "validation_accuracy" in row}
        best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
        assert best["value"] == max(found.values())
        assert found[int(best["checkpoint"].removeprefix("step_"))] == max(found.values())

    def test_what_is_not_measured(self, hub: Path) -> None:
        made = task(hub, "x", SST2)
        with pytest.raises(ValueError, match=r"trainer\.monitor='validation_rougeL'.*validation_macro_f1"):
            replace(made, trainer=replace(made.trainer, monitor="validation_rougeL"))


class TestRefusals:
    def test_a_mistake_in_the_data_is_told_before_a_model_is_loaded(self, hub: Path, tmp_path: Path) -> None:
        made = task(hub, "nowhere/no-such-model", replace(SST2, prompt="{no_such_column}"))
        with pytest.raises(ValueError, match="has no column 'no_such_column'"):
            run(replace(made, form="label_words"), tmp_path)

    def test_a_label_that_no_example_has(self, hub: Path, tmp_path: Path) -> None:
        made = task(hub, "made/llama", replace(SST2, labels=["bad", "good", "meh"]))
        with pytest.raises(ValueError, match="names meh, which no training example has"):
            run(made, tmp_path)

    def test_metrics_of_another_kind_of_answer(self, hub: Path) -> None:
        with pytest.raises(ValueError, match=r"task\.data\.metrics='rougeL': is no metric of answers that are labels"):
            task(hub, "x", replace(SST2, metrics=["rougeL"]))

    def test_a_classification_head_for_t5(self, hub: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="label_words"):
            run(task(hub, "google-t5/t5-small", SST2, form="classification"), tmp_path)

    def test_a_classifier_that_should_write(self, hub: Path, tmp_path: Path) -> None:
        run(task(hub, "made/llama", SST2, steps=2), tmp_path / "first")
        made = replace(task(hub, "x", GSM8K, train=False), model=ModelFromRun(str(tmp_path / "first")))
        with pytest.raises(ValueError, match=r"is a classifier \(negative, positive\) and writes no text"):
            run(made, tmp_path / "second")

    def test_other_labels(self, hub: Path, tmp_path: Path) -> None:
        run(task(hub, "made/llama", SST2, steps=2), tmp_path / "first")
        made = task(hub, "x", replace(SST2, labels=["bad", "good"]), train=False)
        with pytest.raises(ValueError, match="classifies negative, positive, and the data have bad, good"):
            run(replace(made, model=ModelFromRun(str(tmp_path / "first"))), tmp_path / "second")

    def test_an_adapter_for_another_base(self, hub: Path, tmp_path: Path) -> None:
        from made_models import NAMES, byte_tokenizer, make_model

        run(task(hub, "made/llama", SST2, steps=2), tmp_path / "first")
        other = tmp_path / "hub" / "models" / NAMES["llama"]
        model = make_model("llama")
        model.model.layers[0].mlp.up_proj.weight.data.mul_(2)
        model.save_pretrained(other)
        byte_tokenizer().save(other)
        made = replace(task(hub, "x", SST2, train=False), model=ModelFromRun(str(tmp_path / "first")))
        shutil.copytree(hub / "datasets", tmp_path / "hub" / "datasets")
        with pytest.raises(ValueError, match="trained on another made/llama than the one that is found now"):
            run(replace(made, paths=Paths(mirror=str(tmp_path / "hub"))), tmp_path / "second")

    def test_a_model_that_writes_no_text(self, hub: Path, tmp_path: Path) -> None:
        from transformers import BertConfig, BertForMaskedLM

        folder = tmp_path / "bert"
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertForMaskedLM(BertConfig(vocab_size=257, **sizes)).save_pretrained(folder)
        shutil.copy(hub / "models/made/llama/tokenizer.json", folder)
        shutil.copy(hub / "models/made/llama/tokenizer_config.json", folder)
        with pytest.raises(ValueError, match="BertForMaskedLM, which writes no text"):
            load_hugging_face(PretrainedModel(str(folder)), None)

    def test_a_tokenizer_without_an_end_of_text(self, hub: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(hub / "models/made/llama", folder)
        for named in ("{}", '{"eos_token": "<|of another|>"}'):
            (folder / "tokenizer_config.json").write_text(named)
            with pytest.raises(ValueError, match=r"model\.name='.*': its tokenizer names no eos_token.*Name one in"):
                load_hugging_face(PretrainedModel(str(folder)), None)

    def test_a_model_that_is_nowhere(self, hub: Path) -> None:
        with pytest.raises(
            FileNotFoundError, match=r"mirror.*local Hugging Face cache and on the hub.*MODERN_LLM_MIRROR"
        ):
            load_hugging_face(PretrainedModel("nobody/nothing"), str(hub))

    def test_more_context_than_positions(self, hub: Path) -> None:
        with pytest.raises(ValueError, match="max_seq_len=999: made/llama has 256 positions"):
            load_hugging_face(PretrainedModel("made/llama", max_seq_len=999), str(hub))

    def test_a_run_without_a_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no checkpoint"):
            ModelFromRun(str(tmp_path))

    def test_fp16_and_t5(self, hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        made = replace(
            task(hub, "google-t5/t5-small", SAMSUM, train=False), hardware=replace(HARDWARE, precision="fp16")
        )
        run(made, tmp_path)
        assert "fp16 overflows" in capsys.readouterr().err
        assert json.loads((tmp_path / "result.json").read_text())["runtime"]["precision"] == "fp32"
