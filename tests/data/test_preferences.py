"""Preference pairs: read from three forms, through chat templates, and what is left out or refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from modern_llm.data.chat import DEFAULT_TEMPLATE, ChatWriter
from modern_llm.data.preferences.read import (
    EncodedPair,
    PairBatch,
    dialogue_turns,
    pair_of,
    prompt_ids,
    read_preferences,
    with_mismatched,
)
from modern_llm.data.preferences.settings import PreferenceData
from modern_llm.data.rows import FileRows, HubRows
from modern_llm.data.solutions.settings import problem_id
from modern_llm.data.text.tokenizers import ByteTokenizer
from modern_llm.hub import find_dataset

DIALOGUE = "\n\nHuman: one?\n\nAssistant: eins\n\nHuman: two?\n\nAssistant:"


def writer(template: str = DEFAULT_TEMPLATE) -> ChatWriter:
    return ChatWriter(ByteTokenizer().prepare(None, Path(), None).with_chat_template(template))  # type: ignore[arg-type]


def source(folder: Path, rows: list[dict[str, Any]], held_out: int = 1) -> FileRows:
    folder.joinpath("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileRows(str(folder / "train.jsonl"), str(folder / "train.jsonl"), held_out)


def read(folder: Path, rows: list[dict[str, Any]], form: Any = "texts", max_tokens: int = 200, **more: Any) -> Any:
    data = PreferenceData(source(folder, rows), form, **more)
    return read_preferences(data, writer(), "evaluation", max_tokens, None)


class TestForms:
    def test_all_three_give_the_same_ids(self, tmp_path: Path) -> None:
        turns = [
            {"role": "user", "content": "one?"},
            {"from": "gpt", "value": "eins"},
            {"from": "human", "value": "two?"},
        ]
        chat = {k: [*turns, {"role": "assistant", "content": a}] for k, a in (("chosen", "zwei"), ("rejected", "drei"))}
        dialogues = {"chosen": f"{DIALOGUE} zwei", "rejected": f"{DIALOGUE} drei"}
        (of_chat,) = read(tmp_path, [chat], "chat").pairs
        (of_dialogues,) = read(tmp_path, [dialogues], "dialogues").pairs
        assert of_chat == of_dialogues
        single = {"prompt": "one?", "chosen": "eins", "rejected": "zwei"}
        (of_texts,) = read(tmp_path, [single]).pairs
        row = {"chosen": "\n\nHuman: one?\n\nAssistant: eins", "rejected": "\n\nHuman: one?\n\nAssistant: zwei"}
        assert read(tmp_path, [row], "dialogues").pairs == [of_texts]

    def test_prompt_and_answers_are_what_the_model_reads_and_writes(self, tmp_path: Path) -> None:
        rows = [{"chosen": f"{DIALOGUE} zwei", "rejected": f"{DIALOGUE} drei"}]
        (pair,) = read(tmp_path, rows, "dialogues", system="Be short.").pairs
        made = writer()
        turns = [{"role": "system", "content": "Be short."}, *dialogue_turns(rows[0]["chosen"])]
        assert pair.prompt_ids == made.prompt(turns[:-1])
        eos = made.tokenizer.eos_id
        assert pair.chosen_ids == [*made.tokenizer.encode("zwei"), eos]
        assert pair.rejected_ids == [*made.tokenizer.encode("drei"), eos]
        assert pair.context == len(pair.prompt_ids) + 4
        assert pair.length == len(pair.prompt_ids) + 8

    def test_turns_of_one_speaker_are_one(self) -> None:
        text = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nd\n\nAssistant: e"
        assert dialogue_turns(text) == [
            {"role": "user", "content": "a\n\nb"},
            {"role": "assistant", "content": "c\n\nd\n\ne"},
        ]
        assert dialogue_turns("no turns") == []


class TestLeftOut:
    @pytest.mark.parametrize(
        ("row", "why"),
        [
            ({"prompt": "a", "chosen": "b", "rejected": " b "}, "chosen and rejected the same"),
            ({"prompt": "a", "chosen": "b", "rejected": "  "}, "an empty answer"),
            ({"prompt": "a", "chosen": None, "rejected": "b"}, "an empty answer"),
            ({"prompt": " ", "chosen": "b", "rejected": "c"}, "no prompt"),
            ({"prompt": "a" * 300, "chosen": "b", "rejected": "c"}, "a prompt that fills the 200 tokens"),
            ({"prompt": "a", "chosen": "b" * 300, "rejected": "c"}, "longer than 200 tokens"),
        ],
    )
    def test_it_is_counted_by_its_reason(self, tmp_path: Path, row: dict[str, Any], why: str) -> None:
        good = {"prompt": "a", "chosen": "b", "rejected": "c"}
        found = read(tmp_path, [row, good, good])
        assert found.skipped == {why: 1}
        assert [pair.index for pair in found.pairs] == [1, 2]
        with pytest.raises(ValueError, match=rf"none of 2 pairs can be learned from.*{why}.*task\.max_tokens"):
            read(tmp_path, [row, row])

    def test_dialogues_that_part_before_the_last_turn(self, tmp_path: Path) -> None:
        data = PreferenceData(source(tmp_path, [{}]), "dialogues")
        other = {"chosen": f"{DIALOGUE} zwei", "rejected": DIALOGUE.replace("two", "three") + " drei"}
        assert pair_of(data, other, 0) == "answers to different prompts"
        for rejected in ("", "\n\nHuman: one?", DIALOGUE):
            assert pair_of(data, {"chosen": f"{DIALOGUE} zwei", "rejected": rejected}, 0) == "an empty answer"


MANY = [{"prompt": f"Ask {n % 30}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(90)]


class TestFolds:
    def parts(self, folder: Path, folds: int, limit: int | None = None, **more: Any) -> list[list[EncodedPair]]:
        made = source(folder, MANY, 9)
        every = [PreferenceData(made, folds=folds, fold=fold, **more) for fold in range(folds)]
        return [read_preferences(data, writer(), "train", 200, None, limit).pairs for data in every]

    def test_together_they_are_all_pairs_and_share_no_prompt(self, tmp_path: Path) -> None:
        (whole,) = self.parts(tmp_path, 1)
        for folds in (2, 3):
            parts = self.parts(tmp_path, folds)
            assert sorted((pair for part in parts for pair in part), key=lambda pair: pair.index) == whole
            prompts = [{tuple(pair.prompt_ids) for pair in part} for part in parts]
            assert sum(map(len, prompts)) == len(set.union(*prompts)) == 30
            assert min(map(len, prompts)) >= 4

    def test_a_prompt_is_in_the_same_fold_of_other_data_and_however_it_is_written(self, tmp_path: Path) -> None:
        files, parts = [], []
        for name, change in (("one", str.upper), ("two", lambda text: f"  {text} ")):
            (folder := tmp_path / name).mkdir()
            rows = [{**row, "prompt": change(row["prompt"])} for row in MANY]
            files.append(source(folder, rows, 1))
            parts.append(prompt_ids(PreferenceData(files[-1], folds=2, fold=1), ["train"], None, {}, 0))
        other = prompt_ids(PreferenceData(files[0], folds=2), ["train"], None, {}, 0)
        assert parts[0] == parts[1]
        assert not other & parts[0]
        assert len(other | parts[0]) == 30

    def test_a_sample_is_drawn_of_the_fold_and_what_is_held_out_is_dealt_to_none(self, tmp_path: Path) -> None:
        for whole, sample in zip(self.parts(tmp_path, 2), self.parts(tmp_path, 2, limit=10), strict=True):
            assert len(sample) == 10
            assert all(pair in whole for pair in sample)
        made = source(tmp_path, MANY, 9)
        for part in ("selection", "evaluation"):
            held_out = [
                read_preferences(PreferenceData(made, folds=folds, fold=folds - 1), writer(), part, 200, None).pairs  # type: ignore[arg-type]
                for folds in (1, 2, 5)
            ]
            assert held_out[0] == held_out[1] == held_out[2]

    def test_folds_that_are_none_are_refused(self, tmp_path: Path) -> None:
        made = source(tmp_path, MANY[:1] * 9, 1)
        with pytest.raises(ValueError, match=r"task\.data\.fold=2: is none of the 2 folds"):
            PreferenceData(made, folds=2, fold=2)
        with pytest.raises(ValueError, match=r"task\.data\.folds=0: must be at least 1"):
            PreferenceData(made, folds=0)
        for fold in (0, 1):
            data = PreferenceData(made, folds=2, fold=fold)
            if fold == int(problem_id(MANY[0]["prompt"]), 16) % 2:
                assert len(read_preferences(data, writer(), "train", 200, None).pairs) == 8
                continue
            with pytest.raises(ValueError, match=rf"task\.data\.fold={fold}: none of the 1 prompts"):
                read_preferences(data, writer(), "train", 200, None)


class TestRefusals:
    def test_a_template_that_drops_turns_names_the_example(self, tmp_path: Path) -> None:
        drops = "{% for m in messages[-2:] %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        data = PreferenceData(
            source(tmp_path, [{"chosen": f"{DIALOGUE} a", "rejected": f"{DIALOGUE} b"}] * 2), "dialogues"
        )
        with pytest.raises(ValueError, match=r"example 0: the chat template drops"):
            read_preferences(data, writer(drops), "evaluation", 200, None)

    def test_a_column_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has no column 'rejected'.*It has prompt, chosen"):
            read(tmp_path, [{"prompt": "a", "chosen": "b"}])

    def test_a_turn_without_a_role(self, tmp_path: Path) -> None:
        turns = [{"content": "a"}]
        with pytest.raises(ValueError, match=r"example 0: a turn .*no content, or a role"):
            read(tmp_path, [{"chosen": turns, "rejected": turns}], "chat")


def test_a_part_that_the_hub_keeps_in_a_folder(tmp_path: Path) -> None:
    """Anthropic/hh-rlhf declares no configurations."""
    for part, text in (("harmless-base", "a"), ("helpful-base", "b")):
        folder = tmp_path / "datasets" / "o" / "hh" / part
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text(json.dumps({"chosen": text}) + "\n")
    for part, text in (("harmless-base", "a"), ("helpful-base", "b")):
        assert find_dataset("o/hh", part, "train", str(tmp_path))["chosen"][:] == [text]
    with pytest.raises(ValueError, match=r"BuilderConfig 'nothing' not found"):
        find_dataset("o/hh", "nothing", "train", str(tmp_path))


def test_real_dialogues(mirror: Path) -> None:
    """All 250 pairs of the test part: every prompt is shared, read a second way by cutting the texts."""
    data = PreferenceData(HubRows("Anthropic/hh-rlhf", "harmless-base", "test"), "dialogues")
    rows = data.source.rows("evaluation", str(mirror)).rows
    found = read_preferences(data, writer(), "evaluation", 10**6, str(mirror))
    assert len(found.pairs) + sum(found.skipped.values()) == len(rows) == 250
    decode = writer().tokenizer.decode
    expected = Counter(row["chosen"].rpartition("\n\nAssistant:")[2].strip() for row in rows)
    read_back = Counter(decode(pair.chosen_ids[:-1]) for pair in found.pairs)
    # The few pieces that speakers said in a row are joined, and are the only difference.
    assert sum((read_back - expected).values()) <= 3
    assert all(isinstance(pair, EncodedPair) and pair.prompt_ids for pair in found.pairs)


PAIRS = [EncodedPair(i, [7, i // 3], [20 + i] * (1 + i % 5), [50 + i, 0]) for i in range(12)]


class TestMismatched:
    def test_each_is_an_answer_to_another_prompt_and_drawn_by_the_seed_alone(self) -> None:
        found = with_mismatched(PAIRS, 90, seed=3)
        assert found == with_mismatched(PAIRS, 90, seed=3)
        assert found != with_mismatched(PAIRS, 90, seed=4)
        owners = {tuple(answer): p.prompt_ids for p in PAIRS for answer in p.answers}
        for pair, plain in zip(found, PAIRS, strict=True):
            assert pair.answers[:2] == plain.answers
            assert owners[tuple(pair.answers[2])] != pair.prompt_ids
            assert pair.length == plain.length + len(pair.answers[2]) - 1
        taken = {tuple(pair.answers[2]) for pair in found}
        assert {answer[0] >= 50 for answer in taken} == {True, False}  # both kinds of answers
        assert len(taken) > 4

    def test_what_does_not_fit_is_cut_off(self) -> None:
        found = with_mismatched(PAIRS, 3, seed=0)
        assert max(len(pair.answers[2]) for pair in found) == 2
        assert max(len(pair.prompt_ids) + len(pair.answers[2]) - 1 for pair in found) == 3

    def test_one_prompt_alone(self) -> None:
        with pytest.raises(ValueError, match="the 3 pairs of a part of the data have one prompt alone"):
            with_mismatched(PAIRS[:3], 90, seed=0)

    def test_a_third_branch(self) -> None:
        batch = PairBatch(99)([EncodedPair(0, [1, 2], [3, 4], [5], (0.0, 0.0, 0.0), [6, 7, 8])])
        assert batch["input_ids"].tolist() == [[1, 2, 3, 6, 7, 99, 99, 99]]
        assert batch["branch_ids"][0, :5].tolist() == [0, 0, 1, 3, 3]
        assert batch["labels"][0].tolist() == [[3, 4, -100], [5, -100, -100], [6, 7, 8]]
        assert batch["target_positions"][0, 2].tolist() == [1, 3, 4]
