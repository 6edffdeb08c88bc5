"""Pieces of text against the text of all ids at once."""

from __future__ import annotations

import random

import pytest

from modern_llm.data.text.sources import TextFiles
from modern_llm.data.text.stream import TextStream
from modern_llm.data.text.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer

TEXTS = ["plain", "naïve café ✓", "👩‍👩‍👧 family 🎉🎉 日本語\n", "\x00 control \u202e", "é" * 30]


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("\n".join(TEXTS * 30))
    choice = ByteTokenizer() if request.param == "bytes" else BPETokenizer(300)
    return choice.prepare(TextFiles([str(folder / "a.txt")]), folder / "cache", None)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_come_as_early_as_they_can(tokenizer: Tokenizer, text: str) -> None:
    stream, told = TextStream(tokenizer), ""
    ids = tokenizer.encode(text)
    for count, token in enumerate(ids, 1):
        told += stream.add(token)
        assert told == tokenizer.decode(ids[:count]).rstrip("\ufffd")
    assert told + stream.finish() == text


@pytest.mark.parametrize("seed", range(5))
def test_any_ids_give_the_text_of_all_of_them(tokenizer: Tokenizer, seed: int) -> None:
    """Bytes that are no text, special tokens in between, and an end in the middle of a character."""
    draw = random.Random(seed)
    ids = [draw.randrange(tokenizer.vocab_size) for _ in range(200)]
    stream = TextStream(tokenizer)
    assert "".join(map(stream.add, ids)) + stream.finish() == tokenizer.decode(ids)


def test_a_tokenizer_that_strips_the_first_space_keeps_the_others() -> None:
    """Llama 2's kind, whose decoder drops the blank in front of a text's first word."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    words = ["▁one", "▁two", "▁three", "</s>"]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="</s>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    stream = TextStream(Tokenizer(backend, eos_id=3))
    assert [stream.add(i) for i in (0, 1, 2, 0)] == ["one", " two", " three", " one"]
