"""Conversations through chat templates: what is learned, what is packed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modern_llm.data.arithmetic import Arithmetic
from modern_llm.data.batches import PackedBatches
from modern_llm.data.chat import DEFAULT_TEMPLATE, ChatWriter, EncodedConversation, with_chat
from modern_llm.data.instructions.read import ConversationBatch, read_instructions
from modern_llm.data.instructions.settings import InstructionData
from modern_llm.data.rows import FileRows, choose_rows
from modern_llm.data.text.tokenizers import ByteTokenizer, Tokenizer
from modern_llm.models.fused_loss import IGNORE_INDEX

DROPS_TURNS = "{% for m in messages[-2:] %}<{{ m.role }}>{{ m.content }}{% endfor %}"
REWRITES = "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}"
LIKE_SMOLLM2 = (
    "{% for m in messages %}{{ '[' + m.role + ']\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\\n' }}{% endif %}"
)
TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "eins"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "zwei"},
]


def tokenizer(template: str | None = None) -> Tokenizer:
    plain = ByteTokenizer().prepare(None, Path(), None)  # type: ignore[arg-type]
    return plain if template is None else plain.with_chat_template(template)


def learned(item: EncodedConversation, of: Tokenizer) -> list[str]:
    """The stretches that are targets, with special tokens."""
    stretches, before = [""], False
    for token, target in zip(item.ids, item.is_target, strict=True):
        if target:
            stretches[-1] += of.token(token) if token == of.eos_id else of.decode([token])
        elif before:
            stretches.append("")
        before = target
    return [s for s in stretches if s]


class TestTemplates:
    def test_the_default_is_saved_with_the_tokenizer_and_transformers_reads_it(self, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        ours = with_chat(tokenizer())
        assert ours.chat_template == DEFAULT_TEMPLATE
        ours.save(tmp_path)
        assert Tokenizer.load(tmp_path).chat_template == DEFAULT_TEMPLATE
        text = ChatWriter(ours).text(TURNS, answer_follows=True)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        assert theirs.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True) == text
        assert text.startswith("<|endoftext|><|system|>\nBe short.\n<|user|>\none?\n<|assistant|>\neins<|endoftext|>\n")
        assert with_chat(ours) is ours

    @pytest.mark.parametrize("template", [DEFAULT_TEMPLATE, LIKE_SMOLLM2])
    def test_every_turn_of_the_assistant_is_learned_and_nothing_else(self, template: str) -> None:
        made = tokenizer(template)
        writer = ChatWriter(made)
        (item,) = writer.encode([TURNS], [0])
        assert learned(item, made) == ["eins<|endoftext|>", "zwei<|endoftext|>"]
        # What is read before the last turn is what the model is prompted with.
        start = max(i for i, target in enumerate(item.is_target) if not target) + 1
        assert item.ids[:start] == writer.prompt(TURNS[:-1])

    def test_an_end_that_the_template_does_not_write_is_learned(self) -> None:
        made = tokenizer("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
                         "{% if add_generation_prompt %}<assistant>{% endif %}")  # fmt: skip
        (item,) = ChatWriter(made).encode([TURNS], [0])
        assert learned(item, made) == ["eins", "zwei<|endoftext|>"]

    @pytest.mark.parametrize("template", [DROPS_TURNS, REWRITES])
    def test_a_template_that_drops_or_rewrites_turns_is_refused_with_the_example(self, template: str) -> None:
        with pytest.raises(ValueError, match=r"example 7: the chat template drops or rewrites a turn"):
            ChatWriter(tokenizer(template)).encode([TURNS], [7])

    def test_without_a_template(self) -> None:
        with pytest.raises(ValueError, match="has no chat template"):
            ChatWriter(tokenizer())


def files(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> InstructionData:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return InstructionData(FileRows(str(path), held_out=1), **settings)


class TestReading:
    def test_alpaca_columns(self, tmp_path: Path) -> None:
        rows = [{"instruction": f"say {i}", "input": "now" if i % 2 else "", "output": f"{i}!"} for i in range(6)]
        rows[3]["output"] = " "
        rows[4] = {"instruction": "", "input": "", "output": "out of nothing"}
        rows[5]["output"] = "long" * 100
        made = with_chat(tokenizer())
        path = str(files(tmp_path, rows).source.train)  # type: ignore[attr-defined]
        data = InstructionData(FileRows(path, path))
        part = read_instructions(data, ChatWriter(made), "evaluation", 90, None)
        texts = {item.index: made.decode(item.ids) for item in part.items}
        assert texts.keys() == {0, 1, 2}
        assert "say 1\n\nnow\n" in texts[1]
        assert part.skipped == {"without an instruction or an answer": 2, "longer than 90 tokens": 1}

    def test_turns_in_both_spellings(self, tmp_path: Path) -> None:
        turn = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"},
                             {"role": "user", "content": "unanswered"}]}  # fmt: skip
        other = {"messages": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
        made = with_chat(tokenizer())
        data = files(tmp_path, [turn, other, turn, other], form="chat", system="S")
        items = read_instructions(data, ChatWriter(made), "train", 99, None).items
        assert {made.decode(item.ids) for item in items} == {"<|system|>\nS\n<|user|>\nhi\n<|assistant|>\nho"}
        bad = files(tmp_path, [{"messages": [{"role": "robot", "content": "x"}]}] * 3, form="chat")
        with pytest.raises(ValueError, match=r"example \d: a turn .*robot"):
            read_instructions(bad, ChatWriter(made), "train", 99, None)

    def test_what_is_refused(self, tmp_path: Path) -> None:
        writer = ChatWriter(with_chat(tokenizer()))
        with pytest.raises(ValueError, match=r"has no column 'output'. It has instruction"):
            read_instructions(files(tmp_path, [{"instruction": "x"}] * 4), writer, "train", 99, None)
        with pytest.raises(ValueError, match=r"none of 2 conversations can be learned"):
            read_instructions(files(tmp_path, [{"instruction": "x", "output": ""}] * 4), writer, "train", 99, None)
        with pytest.raises(ValueError, match=r"leaves nothing of the 2 rows"):
            read_instructions(files(tmp_path, [{"instruction": "x", "output": "y"}] * 2), writer, "train", 99, None)
        (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{oops\n')
        with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: is no JSON"):
            FileRows(str(tmp_path / "bad.jsonl")).rows("train", None)
        with pytest.raises(ValueError, match=r"task\.data\.source\.train=.*is no file"):
            FileRows("nowhere.jsonl")

    def test_parts_never_share_a_row(self) -> None:
        parts = [choose_rows("x", 50, part, 10, True, None, 0) for part in ("train", "selection", "evaluation")]
        assert sorted(i for part in parts for i in part) == list(range(50))
        assert choose_rows("x", 50, "selection", 10, True, None, 3) == parts[1]
        assert len(choose_rows("x", 50, "train", 10, True, 5, 3)) == 5

    def test_the_fingerprint_follows_data_template_and_length(self, tmp_path: Path) -> None:
        data = InstructionData(Arithmetic("instructions"))
        one, other = (ChatWriter(tokenizer(t)) for t in (DEFAULT_TEMPLATE, LIKE_SMOLLM2))
        prints = [
            read_instructions(data, one, "train", 99, None).fingerprint,
            read_instructions(data, other, "train", 99, None).fingerprint,
            read_instructions(data, one, "train", 98, None).fingerprint,
            read_instructions(data, one, "train", 99, None, limit=9).fingerprint,
        ]
        assert len(set(prints)) == 4
        assert read_instructions(data, one, "train", 99, None).fingerprint == prints[0]


def conversations(count: int, longest: int = 40) -> list[EncodedConversation]:
    random = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        n = int(torch.randint(3, longest, (), generator=random))
        target = (torch.rand(n, generator=random) < 0.5).tolist()
        target[-1] = True
        made.append(EncodedConversation(i, torch.randint(1, 257, (n,), generator=random).tolist(), target))
    return made


class TestPacking:
    def test_an_epoch_holds_every_example_once_and_little_padding(self) -> None:
        items = conversations(300)
        collate = ConversationBatch(0)
        stream = PackedBatches(items, 4, 128, 1, collate, "same")
        visited: list[int] = []
        for planned in stream._batches:
            assert all(sum(items[i].length for i in row) <= 128 for row in planned)
            visited += [i for row in planned for i in row]
        assert sorted(visited) == list(range(300))
        for _ in range(len(stream._batches)):
            next(stream)
        assert stream.padding_share < 0.04
        assert stream.epochs == 1

    def test_the_stream_goes_on_where_it_stood(self) -> None:
        items, collate = conversations(60), ConversationBatch(0)
        one, two = (PackedBatches(items, 2, 64, 1, collate, "same") for _ in range(2))
        for _ in range(17):
            next(one)
        two.load_state_dict(json.loads(json.dumps(one.state_dict())))
        for _ in range(30):
            a, b = next(one), next(two)
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)

    def test_labels_stand_where_they_are_predicted(self) -> None:
        items = conversations(5)
        batch = ConversationBatch(0)([items[:3], items[3:]])
        for row, group in enumerate((items[:3], items[3:])):
            wanted = [t for item in group for t, target in zip(item.ids[1:], item.is_target[1:], strict=True) if target]
            kept = batch["labels"][row] != IGNORE_INDEX
            assert batch["labels"][row][kept].tolist() == wanted
            places = batch["target_positions"][row][kept]
            documents = batch["document_ids"][row]
            start = 0
            for number, item in enumerate(group):
                assert (documents[start : start + item.length] == number).all()
                assert batch["input_ids"][row, start : start + item.length].tolist() == item.ids[:-1]
                start += item.length
            assert batch["lengths"][row] == start
            assert places.max() < start
            assert not torch.isin(documents[start:], torch.arange(len(group))).any()

    def test_an_example_longer_than_a_row(self) -> None:
        with pytest.raises(ValueError, match="an example has"):
            PackedBatches(conversations(9), 2, 8, 0, ConversationBatch(0), "x")
