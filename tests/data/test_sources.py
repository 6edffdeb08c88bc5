"""Where text comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modern_llm.data.text.sources import HubText, PythonDocs, TextFiles


def lines_data_set(root: Path, owner_name: str, splits: dict[str, list[str]], column: str = "text") -> None:
    """A data set in the hub's layout."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    folder = root / "datasets" / owner_name
    (folder / "data").mkdir(parents=True)
    files = []
    for split, rows in splits.items():
        parquet.write_table(arrow.table({column: rows}), folder / "data" / f"{split}-00000.parquet")
        files.append({"split": split, "path": f"data/{split}-*.parquet"})
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: " + json.dumps(files) + "\n---\n"
    )


WIKI = ["", " = One = ", "", " First line .", " == Part == ", " more .", "", " = Two = ", " text ."]


def test_lines_become_articles_and_nothing_is_lost(tmp_path: Path) -> None:
    lines_data_set(tmp_path, "o/wiki", {"train": WIKI, "validation": WIKI[:4]})
    source = HubText("o/wiki", None, document_start="^ = [^=]", newlines_are_words=True, test=False)
    documents = list(source.documents("train", str(tmp_path)))
    assert len(documents) == 2
    assert documents[1].startswith(" = Two = \n")
    assert "".join(documents) == "".join(line + "\n" for line in WIKI)
    assert list(source.documents("validation", str(tmp_path))) == ["\n = One = \n\n First line .\n"]


def test_a_row_is_a_document_without_a_pattern(tmp_path: Path) -> None:
    lines_data_set(tmp_path, "o/rows", {"train": ["a b", " ", "c"], "validation": ["d"]})
    assert list(HubText("o/rows", test=False).documents("train", str(tmp_path))) == ["a b", "c"]


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    prints = []
    for number, text in enumerate(("one", "two", "one")):
        root = tmp_path / str(number)
        lines_data_set(root, "o/rows", {"train": [text], "validation": [text]})
        prints.append(HubText("o/rows", test=False).fingerprint("train", str(root)))
    assert prints[0] != prints[1]


def test_a_missing_column_split_or_data_set_is_named(tmp_path: Path) -> None:
    lines_data_set(tmp_path, "o/rows", {"train": ["a"], "validation": ["b"]}, column="content")
    with pytest.raises(ValueError, match=r"text_column='text'.*\['content'\]"):
        list(HubText("o/rows").documents("train", str(tmp_path)))
    with pytest.raises(ValueError, match="'test'"):
        list(HubText("o/rows", text_column="content").documents("test", str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"o/none: not found.*mirror.*cache.*hub.*MODERN_LLM_MIRROR"):
        list(HubText("o/none").documents("train", str(tmp_path)))


def test_wikitext2_has_the_published_number_of_words(mirror: Path) -> None:
    """The mirror's training split is the published validation part: 217,646 tokens, line ends included."""
    source = HubText("Salesforce/wikitext", "wikitext-2-v1", document_start="^ = [^=]", newlines_are_words=True)
    documents = list(source.documents("train", str(mirror)))
    assert sum(len(d.split()) + d.count("\n") for d in documents) == 217_646
    assert len(documents) == 60


def test_python_docs_splits_are_english_and_apart() -> None:
    source = PythonDocs()
    train, validation = (list(source.documents(split, None)) for split in ("train", "validation"))
    assert not set(train) & set(validation)
    size = sum(map(len, train))
    assert size > 500_000
    assert 0.02 < sum(map(len, validation)) / size < 0.2
    words = " ".join(validation).lower().split()
    assert words.count("the") / len(words) > 0.02


def test_text_files_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "a.txt").write_text(text)
    source = TextFiles(train=[str(tmp_path)], validation_percent=10)
    train, validation = ("".join(source.documents(s, None)) for s in ("train", "validation"))
    assert train + validation == text
    assert len(validation) / len(text) == pytest.approx(0.1, abs=0.01)


def test_text_files_by_folder_pattern_and_separator(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("two\n<|endoftext|>\nthree\n")
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "v.dat").write_text("validation\n")
    source = TextFiles(train=[str(tmp_path)], validation=[str(tmp_path / "*.dat")], document_separator="<|endoftext|>")
    assert list(source.documents("train", None)) == ["one\n", "two\n", "three\n"]
    assert list(source.documents("validation", None)) == ["validation\n"]
    nested = TextFiles(train=[str(tmp_path / "**" / "*.md")])
    assert "".join(nested.documents("train", None)).startswith("two")


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task\.data\.train=.*nothing\.txt.*matches no file"):
        TextFiles(train=[str(tmp_path / "nothing.txt")])
    (tmp_path / "latin.txt").write_bytes("für\n".encode("latin-1") * 3)
    with pytest.raises(ValueError, match=r"latin\.txt, line 1: not UTF-8"):
        list(TextFiles(train=[str(tmp_path)]).documents("train", None))
