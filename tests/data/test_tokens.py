"""Tokenizers, the token cache and the packed stream."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modern_llm.data.text import tokens as cache_module
from modern_llm.data.text.packing import PackedStream
from modern_llm.data.text.ramp import Ramp
from modern_llm.data.text.sources import Split, TextFiles
from modern_llm.data.text.tokenizers import BPETokenizer, ByteTokenizer, HubTokenizer, Tokenizer
from modern_llm.data.text.tokens import CorpusCounts, TokenCorpus, tokenise

TEXT = "The quick brown fox — naïve, 日本語 and 🙂 — jumps.\n\n  Indented\ttabs.\n" * 20


def source(folder: Path, text: str = TEXT) -> TextFiles:
    folder.mkdir(exist_ok=True)
    (folder / "train.txt").write_text(text)
    (folder / "validation.txt").write_text(TEXT)
    return TextFiles(train=[str(folder / "train.txt")], validation=[str(folder / "validation.txt")])


@pytest.mark.parametrize(
    ("tokens", "ids", "documents"),
    [(1, "|a|", 1), (3, "|abc|", 1), (4, "|abc|d|", 2), (8, "|abc|defgh|", 2), (10, "|abc|defgh|ij|", 3)],
)
def test_the_first_tokens_of_a_text(tokens: int, ids: str, documents: int) -> None:
    text = np.frombuffer(b"|abc|defgh|ijk|", dtype=np.uint8).astype(np.uint16)
    corpus = TokenCorpus(text, ord("|"), CorpusCounts(11, 3, 3, 11), "")
    head = corpus.head(tokens)
    assert bytes(head.ids.tolist()).decode() == ids
    assert (head.counts.tokens, head.counts.documents) == (tokens, documents)
    assert head.fingerprint != corpus.fingerprint
    with pytest.raises(ValueError, match="train_tokens=12: is more than the 11 tokens of the text"):
        corpus.head(12)


@pytest.mark.parametrize("choice", [ByteTokenizer(), BPETokenizer(vocab_size=300)])
def test_every_text_survives(choice: ByteTokenizer, tmp_path: Path) -> None:
    tokenizer = choice.prepare(source(tmp_path), tmp_path, None)
    for text in (TEXT, "", " ", "\x00\x7f", "é" * 3, "never seen: Ωμέγα"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_id not in ids
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.encode_batch([TEXT, "a"]) == [tokenizer.encode(TEXT), tokenizer.encode("a")]


def test_bytes_are_bytes(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer().prepare(source(tmp_path), tmp_path, None)
    assert tokenizer.vocab_size == 257
    assert len(tokenizer.encode(TEXT)) == len(TEXT.encode())


def test_bpe_has_the_size_asked_for_is_kept_and_loads_in_transformers(tmp_path: Path) -> None:
    text = (
        " ".join(f"{a}{b}" for a in ("un", "re", "pre", "over") for b in ("do", "make", "view", "take", "think")) * 40
    )
    tokenizer = BPETokenizer(vocab_size=280).prepare(source(tmp_path, text), tmp_path / "cache", None)
    assert tokenizer.vocab_size == 280
    assert len(tokenizer.encode(text)) < len(text) / 2
    (kept,) = (tmp_path / "cache" / "tokenizers").iterdir()
    before = (kept / "tokenizer.json").stat().st_mtime_ns
    BPETokenizer(vocab_size=280).prepare(source(tmp_path, text), tmp_path / "cache", None)
    assert (kept / "tokenizer.json").stat().st_mtime_ns == before
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(kept))
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert theirs.eos_token_id == tokenizer.eos_id


def test_a_hugging_face_tokenizer_by_folder_and_by_mirror(tmp_path: Path) -> None:
    made = BPETokenizer(vocab_size=270).prepare(source(tmp_path), tmp_path, None)
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=made.backend, eos_token="<|endoftext|>")
    theirs.save_pretrained(str(tmp_path / "mirror" / "models" / "o" / "tok"))
    by_folder = HubTokenizer(str(tmp_path / "mirror/models/o/tok")).prepare(source(tmp_path), tmp_path, None)
    by_name = HubTokenizer("o/tok").prepare(source(tmp_path), tmp_path, str(tmp_path / "mirror"))
    assert by_folder.encode(TEXT) == by_name.encode(TEXT) == made.encode(TEXT)
    assert by_name.eos_id == made.eos_id
    assert by_name.fingerprint == by_folder.fingerprint


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path: Path) -> None:
    made = ByteTokenizer().prepare(source(tmp_path), tmp_path, None)
    made.backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="eos_token"):
        Tokenizer.load(tmp_path)


def test_cached_ids_are_the_text(tmp_path: Path) -> None:
    text = source(tmp_path)
    tokenizer = ByteTokenizer().prepare(text, tmp_path, None)
    corpus = tokenise(text, "train", tokenizer, tmp_path)
    assert corpus.ids[0] == corpus.ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(corpus.ids[1:-1].tolist()) == TEXT
    assert isinstance(corpus.ids, np.memmap)
    assert corpus.counts.tokens == corpus.counts.bytes == len(TEXT.encode())
    assert corpus.counts.words == len(TEXT.split())
    assert corpus.counts.documents == 1


class Unreadable(TextFiles):
    """Knows its fingerprint, and must not be read again."""

    def documents(self, split: Split, mirror: str | None) -> Iterator[str]:
        raise AssertionError("read again")


def test_the_second_start_reads_no_text_and_changed_text_is_read(tmp_path: Path) -> None:
    text = source(tmp_path)
    tokenizer = ByteTokenizer().prepare(text, tmp_path, None)
    first = tokenise(text, "train", tokenizer, tmp_path)
    again = tokenise(Unreadable(text.train, text.validation), "train", tokenizer, tmp_path)
    assert np.array_equal(first.ids, again.ids)
    assert first.fingerprint == again.fingerprint
    changed = tokenise(source(tmp_path, TEXT + "more"), "train", tokenizer, tmp_path)
    assert changed.fingerprint != first.fingerprint
    assert len(changed.ids) == len(first.ids) + 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "no counts"])
def test_a_damaged_cache_is_made_anew_with_a_word(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, text = ByteTokenizer().prepare(source(tmp_path), tmp_path, None), source(tmp_path)
    before = tokenise(text, "train", tokenizer, tmp_path / "cache")
    ids, whole = np.array(before.ids), before.counts
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    content = bytearray((folder / "ids.bin").read_bytes())
    if damage == "cut":
        (folder / "ids.bin").write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[301] ^= 4
        (folder / "ids.bin").write_bytes(content)
    elif damage == "emptied":
        for file in folder.iterdir():
            file.write_bytes(b"")
    else:
        (folder / "counts.json").unlink()
    again = tokenise(text, "train", tokenizer, tmp_path / "cache")
    assert np.array_equal(again.ids, ids)
    assert again.counts == whole
    assert "damaged" in capsys.readouterr().err
    tokenise(text, "train", tokenizer, tmp_path / "cache")
    assert "damaged" not in capsys.readouterr().err


def test_a_half_written_tokenizer_is_trained_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice = BPETokenizer(vocab_size=280)
    fingerprint = choice.prepare(source(tmp_path), tmp_path / "cache", None).fingerprint
    (folder,) = (tmp_path / "cache" / "tokenizers").iterdir()
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:100])
    assert choice.prepare(source(tmp_path), tmp_path / "cache", None).fingerprint == fingerprint
    assert str(folder) in capsys.readouterr().err


def test_what_a_killed_process_left_in_the_cache_goes(tmp_path: Path) -> None:
    import os

    folder = tmp_path / "cache" / "tokens"
    (folder / "old.x.part").mkdir(parents=True)
    (folder / "new.y.part").mkdir()
    long_ago = (folder / "old.x.part").stat().st_mtime - 2 * 24 * 3600
    os.utime(folder / "old.x.part", (long_ago, long_ago))
    tokenizer = ByteTokenizer().prepare(source(tmp_path), tmp_path, None)
    tokenise(source(tmp_path), "train", tokenizer, tmp_path / "cache")
    assert not (folder / "old.x.part").exists()
    assert (folder / "new.y.part").exists()  # another process may be at it


def test_a_killed_tokenisation_leaves_no_half_cache(tmp_path: Path) -> None:
    class Breaks(TextFiles):
        def documents(self, split: Split, mirror: str | None) -> Iterator[str]:
            yield "a"
            raise KeyboardInterrupt

    text = source(tmp_path)
    tokenizer = ByteTokenizer().prepare(text, tmp_path, None)
    with pytest.raises(KeyboardInterrupt):
        tokenise(Breaks(text.train, text.validation), "train", tokenizer, tmp_path)
    assert len(tokenise(text, "train", tokenizer, tmp_path).ids) == len(TEXT.encode()) + 2


def test_memory_stays_flat_as_the_corpus_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_BATCH_BYTES", 2**16)
    peaks = []
    for times in (1, 8):
        folder = tmp_path / str(times)
        folder.mkdir()
        for number in range(times * 4):
            (folder / f"{number}.txt").write_text(f"document {number} says this. " * 2000)
        text = TextFiles(train=[str(folder)], validation=[str(folder / "0.txt")])
        tokenizer = ByteTokenizer().prepare(text, folder, None)
        tracemalloc.start()
        tokenise(text, "train", tokenizer, folder / "cache")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    text = source(tmp_path, " \n")
    with pytest.raises(ValueError, match="train split has no text"):
        tokenise(text, "train", ByteTokenizer().prepare(text, tmp_path, None), tmp_path)


# -- the packed stream


def test_no_padding_labels_are_the_next_tokens_and_an_epoch_visits_each_block_once(corpus: TokenCorpus) -> None:
    stream = PackedStream(corpus, 16, 5, seed=3)
    seen: list[int] = []
    while stream.epoch == 0:
        batch = next(stream)
        for row, start in enumerate(batch["sequence_ids"].tolist()):
            assert batch["input_ids"][row].tolist() == corpus.ids[start : start + 16].tolist()
            assert batch["labels"][row].tolist() == corpus.ids[start + 1 : start + 17].tolist()
        seen += batch["sequence_ids"].tolist()
    blocks = (len(corpus.ids) - 1) // 16
    first_epoch = seen[: blocks - 1]
    assert len(set(first_epoch)) == len(first_epoch)
    assert len({start % 16 for start in first_epoch}) == 1


@pytest.mark.parametrize("steps", [0, 1, 7, 90])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_saved_place_continues_with_the_same_batches(corpus: TokenCorpus, steps: int, shuffle: bool) -> None:
    settings: dict[str, Any] = {"seed": 1, "document_ids": True, "shuffle_documents": shuffle}
    whole, half = (PackedStream(corpus, 16, 6, **settings) for _ in range(2))
    for _ in range(steps):
        next(half)
        next(whole)
    resumed = PackedStream(corpus, 16, 6, **settings)
    resumed.load_state_dict(half.state_dict())
    for _ in range(40):
        expected, got = next(whole), next(resumed)
        assert all(torch.equal(expected[k], got[k]) for k in expected)


def test_order_depends_on_seed_and_epoch_alone(corpus: TokenCorpus) -> None:
    def order(seed: int, epochs: int) -> list[int]:
        stream, ids = PackedStream(corpus, 16, 1, seed), list[int]()
        while stream.epoch < epochs:
            ids += next(stream)["sequence_ids"].tolist()
        return ids

    torch.manual_seed(7)
    first = order(0, 2)
    torch.manual_seed(8)
    assert order(0, 2) == first
    assert order(1, 2) != first
    assert first[:50] != first[len(first) // 2 :][:50]


def documents_of(ids: list[int], eos_id: int) -> list[tuple[int, ...]]:
    """The documents of a text, in their order."""
    places = [i for i, token in enumerate(ids) if token == eos_id]
    return [tuple(ids[a + 1 : b]) for a, b in itertools.pairwise(places)]


def test_each_epoch_strings_whole_documents_together_in_an_order_of_its_own(corpus: TokenCorpus) -> None:
    stream = PackedStream(corpus, 16, 1, seed=0, shuffle_documents=True)
    plain = corpus.ids.tolist()
    orders = []
    for epoch in range(3):
        while stream.epoch < epoch:
            next(stream)
        text = stream._text[0 : len(plain)].tolist()
        assert sorted(documents_of(text, corpus.eos_id)) == sorted(documents_of(plain, corpus.eos_id))
        assert text[0] == text[-1] == corpus.eos_id
        orders.append(documents_of(text, corpus.eos_id))
        batch = next(stream)
        start = int(batch["sequence_ids"])
        assert batch["input_ids"][0].tolist() == text[start : start + 16]
        assert batch["labels"][0].tolist() == text[start + 1 : start + 17]
    assert orders[0] != orders[1] != orders[2] != documents_of(plain, corpus.eos_id)


def test_a_ramp_doubles_batch_and_sequences_and_keeps_what_is_read(corpus: TokenCorpus) -> None:
    stream = PackedStream(corpus, 16, 8, seed=0, ramp=Ramp(batch_size=2, seq_len=4, share=0.5))
    plain = PackedStream(corpus, 16, 8, seed=0)
    shapes, read = [], []
    for progress in (0.0, 0.2, 0.25, 0.49, 0.5, 1.0):
        stream.at(progress)
        batch = next(stream)
        shapes.append(tuple(batch["input_ids"].shape))
        assert torch.equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
        assert len(batch["sequence_ids"]) == len(batch["input_ids"])
        read += batch["input_ids"].flatten().tolist()
    assert shapes == [(8, 4), (8, 4), (8, 8), (8, 8), (8, 16), (8, 16)]
    whole = [token for _ in range(3) for token in next(plain)["input_ids"].flatten().tolist()]
    assert read[: len(whole)] == whole[: len(read)]


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"batch_size": 9}, "batch_size"), ({"seq_len": 12}, "seq_len"), ({"seq_len": 32}, "seq_len")],
)
def test_a_ramp_that_does_not_lead_there_is_refused(settings: dict[str, int], key: str) -> None:
    with pytest.raises(ValueError, match=rf"^task\.ramp\.{key}="):
        Ramp(**settings).check(8, 16)


def test_documents_are_numbered_by_their_separators(corpus: TokenCorpus) -> None:
    batch = next(PackedStream(corpus, 64, 4, seed=0, document_ids=True))
    for ids, documents in zip(batch["input_ids"].tolist(), batch["document_ids"].tolist(), strict=True):
        number = 0
        for token, document in zip(ids, documents, strict=True):
            number += token == 0
            assert document == number


def test_a_corpus_shorter_than_a_sequence_is_refused(corpus: TokenCorpus) -> None:
    with pytest.raises(ValueError, match=r"task\.seq_len=5000"):
        PackedStream(corpus, 5000, 1, seed=0)
