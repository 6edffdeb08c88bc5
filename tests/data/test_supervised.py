"""Rows to examples, examples to ids, ids to batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import made
import numpy as np
import pytest
import torch

from modern_llm.data.batches import CompletionBatch, Encoded, LengthBatches, Seq2SeqBatch, by_length, slots
from modern_llm.data.forms import ClassificationForm, CompletionForm, Seq2SeqForm
from modern_llm.data.labelled import Example, LabelledData
from modern_llm.data.rows import FileRows
from modern_llm.data.shots import PromptWriter, draw_shots
from modern_llm.data.text.tokenizers import ByteTokenizer, Tokenizer
from modern_llm.models.fused_loss import IGNORE_INDEX


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return ByteTokenizer().prepare(None, Path(), None)  # type: ignore[arg-type]


def data(**changes: Any) -> LabelledData:
    given: dict[str, Any] = {"prompt": "Q: {question}\nA:", "target": "{answer}", "held_out": 5}
    return made.labelled(**{**given, **changes})


def labelled(**changes: Any) -> LabelledData:
    return data(**{"prompt": "{question} is", "target": "", "labels": ["no", "yes"], **changes})


def write(mirror: Path, split: str, rows: list[dict[str, Any]]) -> str:
    folder = mirror / "datasets" / "some" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(mirror)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"question": f"what is {i}", "answer": f"it is {i}", "label": i % 2} for i in range(count)]


class TestReading:
    def test_held_out_examples_are_never_trained_on(self, tmp_path: Path) -> None:
        mirror = write(tmp_path, "train", rows(30))
        train = {e.index for e in data().examples("train", mirror).rows}
        selection = {e.index for e in data().examples("selection", mirror).rows}
        assert len(selection) == 5
        assert not train & selection
        evaluation = {e.index for e in data().examples("evaluation", mirror).rows}
        assert not (train | selection) & evaluation
        assert train | selection | evaluation == set(range(30))
        again = {e.index for e in data().examples("selection", mirror, seed=9).rows}
        assert again == selection, "another seed must be compared on the same examples"

    def test_limits_are_drawn_by_seed(self, tmp_path: Path) -> None:
        mirror = write(tmp_path, "train", rows(60))
        draws = [[e.index for e in data().examples("train", mirror, 10, seed).rows] for seed in (0, 0, 1)]
        assert draws[0] == draws[1] != draws[2]
        assert all(len(d) == 10 for d in draws)

    def test_validation_stands_in_for_a_test_split_that_is_not_there(self, tmp_path: Path) -> None:
        write(tmp_path, "train", rows(30))
        mirror = write(tmp_path, "validation", rows(4))
        assert data().examples("evaluation", mirror).split == "validation"

    def test_text_is_cleaned_and_rows_without_content_are_counted(self, tmp_path: Path) -> None:
        odd = [{"question": "a\r\nb <<1+1=2>>c ", "answer": " 2 "}, {"question": "x", "answer": None},
               {"question": "", "answer": "3"}]  # fmt: skip
        mirror = write(tmp_path, "test", odd)
        examples = data(remove="<<[^>]*>>").examples("evaluation", mirror)
        assert [(e.fields["question"], e.target) for e in examples.rows] == [("a\nb c", "2")]
        assert examples.empty == 2

    def test_a_line_ends_at_a_line_feed_alone(self, tmp_path: Path) -> None:
        """U+2028, U+2029 and U+0085 stand inside JSON texts as they are."""
        path = tmp_path / "mine.jsonl"
        texts = ["a\u2028b", "c\u2029d", "e\u0085f", "g\u000bh"]
        path.write_text("".join(json.dumps({"question": t, "answer": "x"}, ensure_ascii=False) + "\n" for t in texts))
        found = data(source=FileRows(str(path), held_out=1)).examples("train", None).rows
        assert {e.fields["question"] for e in found} < {t.replace("\u000b", "\x0b") for t in texts}

    @pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
    def test_a_table_of_ones_own(self, tmp_path: Path, suffix: str, delimiter: str) -> None:
        path = tmp_path / f"mine.{suffix}"
        lines = [["question", "label"], ['"what, or', "yes"], ["b", "1"], ["c", "no"], ["d", " 0 "]]
        quoted = [f'"{a.replace(chr(34), chr(34) * 2)}"{delimiter}{b}' for a, b in lines]
        path.write_text("\ufeff" + "\n".join(quoted) + "\n", encoding="utf-8")
        table = labelled(source=FileRows(str(path), str(path), held_out=1))
        assert [(e.fields["question"], e.label) for e in table.examples("evaluation", None).rows] == [
            ('"what, or', 1), ("b", 1), ("c", 0), ("d", 0),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("question,label\na,b,c\n", "line 2: has another number of cells than the header"),
            ("question,label\na\n", "line 2: has another number of cells than the header"),
            ('question,label\n"a,1\n', "is no row of a table"),
            (b"question,label\n\xff,1\n", "is no UTF-8 text"),
        ],
    )
    def test_a_bad_table_is_named(self, tmp_path: Path, content: str | bytes, message: str) -> None:
        path = tmp_path / "mine.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=message):
            labelled(source=FileRows(str(path), str(path), held_out=1)).examples("evaluation", None)

    def test_labels_as_words_or_numbers(self, tmp_path: Path) -> None:
        for yes, no in (("yes", "no"), (1, 0), (True, False)):
            mirror = write(tmp_path, "test", [{"question": "a", "label": yes}, {"question": "b", "label": no}])
            assert [e.label for e in labelled().examples("evaluation", mirror).rows] == [1, 0]

    @pytest.mark.parametrize(
        ("found", "changes", "message"),
        [
            ([{"question": "a", "reply": "b"}], {}, "no column 'answer'. It has question, reply"),
            ([{"question": "", "answer": ""}], {}, "no row has both an input and an answer"),
            ([{"question": "a", "label": 7}], {"labelled": True}, "row 0: label=7 is none of the 2 labels"),
            ([{"question": "a", "label": -1}], {"labelled": True}, "choose a split with labels"),
        ],
    )
    def test_bad_data_is_named(
        self, tmp_path: Path, found: list[dict[str, Any]], changes: dict[str, Any], message: str
    ) -> None:
        mirror = write(tmp_path, "test", found)
        with pytest.raises(ValueError, match=message):
            (labelled() if changes else data()).examples("evaluation", mirror)

    def test_more_held_out_than_there_is(self, tmp_path: Path) -> None:
        mirror = write(tmp_path, "train", rows(5))
        with pytest.raises(ValueError, match="held_out=5: leaves nothing of the 5 rows of some/data to train on"):
            data().examples("train", mirror)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"prompt": "no column"}, "names no column"),
            ({"prompt": "{"}, "Double the braces"),
            ({"labels": ["one"]}, "two different words"),
            ({"metrics": []}, "names none"),
            ({"remove": "("}, "no regular expression"),
            ({"stop": [""]}, "empty text"),
            ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ],
    )
    def test_impossible_settings(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            data(**changes)


def example(question: str, answer: str, label: int | None = None) -> Example:
    return Example(0, {"question": question, "answer": answer}, label, answer)


class TestForms:
    def test_the_loss_is_on_the_answer_and_its_end_alone(self, tokenizer: Tokenizer) -> None:
        form = CompletionForm(data(), tokenizer, max_tokens=64)
        items = form.encode([example("how?", "so"), example("and how many?", "three")])
        batch = form.collate(items)
        for row, item in enumerate(items):
            kept = batch["labels"][row] != IGNORE_INDEX
            assert tokenizer.decode(batch["labels"][row][kept].tolist()) == (" so", " three")[row]
            # The end of text is learned once, though the padding has the same id.
            assert (batch["labels"][row] == tokenizer.eos_id).sum() == 1
            # What is predicted at a position is the next id of prompt and answer.
            text = item.input_ids + item.target_ids
            for place, label in zip(batch["target_positions"][row][kept], batch["labels"][row][kept], strict=True):
                assert text[place + 1] == label
                assert text[: place + 1] == batch["input_ids"][row, : place + 1].tolist()
        assert batch["input_ids"].shape[1] % 8 == 0
        assert batch["lengths"].tolist() == [item.length - 1 for item in items]

    def test_a_long_prompt_keeps_its_end(self, tokenizer: Tokenizer) -> None:
        form = CompletionForm(data(), tokenizer, max_tokens=24, start_ids=[0])
        (item,) = form.encode([example("0123456789" * 5, "so")])
        assert item.length == 24
        assert item.input_ids[0] == 0
        assert tokenizer.decode(item.input_ids).endswith("89\nA:")
        assert form.truncated == 1

    def test_an_answer_that_cannot_fit_is_skipped_and_counted(self, tokenizer: Tokenizer) -> None:
        form = CompletionForm(data(), tokenizer, max_tokens=16)
        assert len(form.encode([example("a", "b"), example("a", "b" * 20)])) == 1
        assert form.skipped == 1
        with pytest.raises(ValueError, match="max_tokens=16: no answer fits"):
            form.encode([example("a", "b" * 20)])
        with pytest.raises(ValueError, match="leaves no room for a prompt beside an answer of 16"):
            form.prompts([example("a", "b")], reserve=16)

    def test_a_classifier_reads_the_beginning(self, tokenizer: Tokenizer) -> None:
        form = ClassificationForm(labelled(text="{question}"), tokenizer, max_tokens=6)
        items = form.encode([example("abcdefgh", "yes", 1), example("ab", "no", 0)])
        assert [tokenizer.decode(i.input_ids) for i in items] == ["abcdef", "ab"]
        batch = form.collate(items)
        assert batch["last"].tolist() == [5, 1]
        assert batch["labels"].tolist() == [1, 0]

    def test_sources_and_answers_of_an_encoder_decoder(self, tokenizer: Tokenizer) -> None:
        form = Seq2SeqForm(data(encoder_text="ask {question}"), tokenizer, max_tokens=64, start_id=5)
        (item,) = form.encode([example("it", "so")])
        batch = Seq2SeqBatch(0, 5)([item])
        assert tokenizer.decode(item.input_ids) == "ask it"
        assert item.input_ids[-1] == item.target_ids[-1] == tokenizer.eos_id
        labels = batch["labels"][0][batch["labels"][0] != IGNORE_INDEX].tolist()
        assert batch["decoder_input_ids"][0, : len(labels)].tolist() == [5, *labels[:-1]]
        assert batch["attention_mask"].sum() == len(item.input_ids)


def items_of(lengths: np.ndarray) -> list[Encoded]:
    return [Encoded(i, [1] * int(n), [2, 0]) for i, n in enumerate(lengths)]


class TestBatches:
    lengths = np.random.default_rng(0).integers(3, 120, 500)

    def stream(self, seed: int = 0) -> LengthBatches:
        return LengthBatches(items_of(self.lengths), 16, seed, CompletionBatch(0), "same")

    def test_an_epoch_visits_everything_once_in_an_order_of_its_own(self) -> None:
        stream = self.stream()
        orders = []
        for _ in range(2):
            seen: list[int] = []
            while len(seen) < 500:
                seen += next(stream)["sequence_ids"].tolist()
            assert sorted(seen) == list(range(500))
            orders.append(seen)
        assert orders[0] != orders[1]
        assert stream.epochs == 2

    def test_little_is_padding(self) -> None:
        stream, collate = self.stream(), CompletionBatch(0)
        for _ in range(32):
            next(stream)
        items = items_of(self.lengths)
        random = [collate(items[i : i + 16]) for i in range(0, 500, 16)]
        at_random = 1 - sum(int(b["lengths"].sum()) for b in random) / sum(map(slots, random))
        assert stream.padding_share < 0.12 < 0.4 < at_random

    @pytest.mark.parametrize("at", [1, 31, 32, 40])
    def test_resuming_goes_on_with_the_next_batch(self, at: int) -> None:
        stream = self.stream()
        for _ in range(at):
            next(stream)
        state = json.loads(json.dumps(stream.state_dict()))
        other = self.stream()
        other.load_state_dict(state)
        for _ in range(5):
            assert torch.equal(next(stream)["sequence_ids"], next(other)["sequence_ids"])
        assert stream.padding_share == other.padding_share

    def test_other_data_cannot_be_resumed(self) -> None:
        other = LengthBatches(items_of(self.lengths), 16, 0, CompletionBatch(0), "other")
        with pytest.raises(ValueError, match="have changed"):
            other.load_state_dict(self.stream().state_dict())

    def test_evaluation_goes_from_long_to_short(self) -> None:
        places = [p for batch in by_length(items_of(self.lengths), 7) for p in batch]
        assert sorted(places) == list(range(500))
        assert [self.lengths[p] for p in places] == sorted(self.lengths, reverse=True)


class TestShots:
    pool: ClassVar = [Example(i, {"question": str(i)}, i % 2, ["no", "yes"][i % 2]) for i in range(40)]

    @pytest.mark.parametrize("num_shots", [1, 4, 7, 8])
    def test_labels_are_balanced_and_the_seed_decides(self, num_shots: int) -> None:
        drawn = [draw_shots(self.pool, num_shots, 2, seed) for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1] != drawn[2]
        for shots in drawn:
            assert len({s.index for s in shots}) == num_shots
            positive = sum(s.label or 0 for s in shots)
            assert abs(2 * positive - num_shots) <= 1

    def test_too_many(self) -> None:
        with pytest.raises(ValueError, match="num_shots=50: the training split has only 20 examples of label"):
            draw_shots(self.pool, 50, 2, 0)

    def writer(self, tokenizer: Tokenizer, **settings: Any) -> PromptWriter:
        return PromptWriter(labelled(instruction="Judge."), tokenizer, [0], self.pool[:3], **settings)

    def test_prompts_drop_shots_and_never_the_question(self, tokenizer: Tokenizer) -> None:
        writer = self.writer(tokenizer)
        whole = "Judge.\n\n0 is no\n\n1 is yes\n\n2 is no\n\n30 is"
        (full,) = writer.prompts([self.pool[30]], None)
        assert full is not None
        assert tokenizer.decode(full.ids) == whole
        (shorter,) = writer.prompts([self.pool[30]], len(full.ids) - 1)
        assert shorter is not None
        assert shorter.shots == 2
        assert tokenizer.decode(shorter.ids) == "Judge.\n\n0 is no\n\n1 is yes\n\n30 is"
        assert writer.prompts([self.pool[30]], 10) == [None]

    def test_a_conversation(self, tokenizer: Tokenizer) -> None:
        tokenizer = Tokenizer(tokenizer.backend, 0, None, {"chat_template": _TEMPLATE})
        (prompt,) = self.writer(tokenizer, chat=True).prompts([self.pool[30]], None)
        assert prompt is not None
        turns = "[user]Judge.\n\n0 is[assistant]no[user]1 is[assistant]yes[user]2 is[assistant]no[user]30 is[assistant]"
        assert tokenizer.decode(prompt.ids) == turns

    def test_chat_needs_a_template_and_a_decoder(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(ValueError, match="no chat template"):
            self.writer(tokenizer, chat=True)
        with pytest.raises(ValueError, match="reads no conversation"):
            self.writer(tokenizer, chat=True, encoder=True)


_TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
_TEMPLATE += "{% if add_generation_prompt %}[assistant]{% endif %}"
