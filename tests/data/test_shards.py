"""A text of many files, tokenised while it is trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import Workplace, read_rows, with_path

from modern_llm.data.text.packing import PackedStream
from modern_llm.data.text.shard_stream import ShardStream
from modern_llm.data.text.shards import ShardedText
from modern_llm.data.text.tokenizers import ByteTokenizer, Tokenizer
from modern_llm.data.text.tokens import tokenise


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """Five files in the hub's layout, and one that is none of them."""
    folder = tmp_path / "mirror" / "datasets" / "made" / "edu" / "sample"
    folder.mkdir(parents=True)
    for shard in range(5):
        texts = [f"Shard {shard} says that {i} and {i} make {2 * i}." for i in range(40)]
        pq.write_table(pa.table({"text": [*texts, None, " "], "id": [*range(42)]}), folder / f"{shard:03}.parquet")
    (folder / "other.parquet").write_text("no parquet")
    return tmp_path / "mirror"


TEXT = ShardedText("made/edu", "sample/0*.parquet", workers=2)


def tokenizer() -> Tokenizer:
    return ByteTokenizer().prepare(TEXT, Path(), None)


def stream(mirror: Path, seed: int = 3, text: ShardedText = TEXT) -> ShardStream:
    return ShardStream(text, tokenizer(), mirror.parent / "cache", str(mirror), 32, 4, seed)


def test_every_shard_is_gone_through_once_an_epoch(mirror: Path) -> None:
    one = stream(mirror)
    whole = []
    for shard in TEXT.shards("train", str(mirror)):
        corpus = tokenise(shard, "train", tokenizer(), mirror.parent / "cache", str(mirror))
        whole.append(PackedStream(corpus, 32, 4, 0).left // 4)
    assert len(whole) == 4  # the last one is for validation
    seen, visited = [], set()
    for _ in range(sum(whole)):
        batch = next(one)
        seen.append(int(one.order[one.place]))
        rows = {(seen[-1], start) for start in batch["sequence_ids"].tolist()}
        assert not rows & visited
        visited |= rows
    assert [seen.count(shard) for shard in range(4)] == whole
    assert one.epoch == 0
    next(one)
    assert one.epoch == 1
    assert one.facts()["epochs"] == pytest.approx(1, abs=0.1)
    validation = list(TEXT.documents("validation", str(mirror)))
    assert len(validation) == 40
    assert all(text.startswith("Shard 4") for text in validation)


@pytest.mark.parametrize("steps", [0, 1, 13, 40, 90])
def test_it_goes_on_where_it_stood(mirror: Path, steps: int) -> None:
    one = stream(mirror)
    for _ in range(steps):
        next(one)
    state = json.loads(json.dumps(one.state_dict()))
    other = stream(mirror)
    other.load_state_dict(state)
    for _ in range(50):
        expected, found = next(one), next(other)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    with pytest.raises(ValueError, match="have changed since the checkpoint"):
        stream(mirror, text=ShardedText("made/edu", "sample/00[0-3].parquet")).load_state_dict(state)


def test_a_run_is_resumed_exactly_and_tokenises_what_it_comes_to(mirror: Path, tmp_path: Path) -> None:
    places = []
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
        place = Workplace(tmp_path / name)
        words = [w for w in place.words() if "task.data.train" not in w]
        place.words = lambda *more, words=words: [*words, *more]  # type: ignore[method-assign]
        places.append(place)
    own = ["task/data=shards", "task.data.name=made/edu", "task.data.files='sample/0*.parquet'",
           f"paths.mirror={mirror}", "trainer.batch_size=4", "trainer.eval_every=3"]  # fmt: skip
    # Of these, no step depends on how many there will be.
    own += ["trainer.schedule.warmup_fraction=0", "trainer/schedule=constant", "trainer/optimizer=adamw"]
    places[0].run(*own, "trainer.max_steps=6")
    places[1].run(*own, "trainer.max_steps=3")
    places[1].run(*own, "trainer.max_steps=6", f"resume={places[1].only_run()}")
    whole, resumed = (read_rows(place.only_run()) for place in places)
    assert whole == resumed
    # Of four files to train on, the one that was read and the two behind it; and the one for validation.
    assert len(list((tmp_path / "whole" / "cache" / "tokens").glob("*/ids.bin"))) == 4


def test_a_command_ends_while_files_are_being_tokenised(mirror: Path) -> None:
    script = f"""
import time
from pathlib import Path
from modern_llm.data.text import shard_stream
from modern_llm.data.text.shards import ShardedText
from modern_llm.data.text.tokenizers import ByteTokenizer

real = shard_stream.tokenise

def slow(shard, *arguments):
    if shard != stream.shards[int(stream.order[0])]:
        time.sleep(1000)
    return real(shard, *arguments)

shard_stream.tokenise = slow
text = ShardedText("made/edu", "sample/0*.parquet", workers=2)
cache = Path({str(mirror.parent / "cache")!r})
stream = shard_stream.ShardStream(text, ByteTokenizer().prepare(text, cache, None), cache, {str(mirror)!r}, 32, 4, 0)
print(next(stream)["input_ids"].shape)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=with_path(), timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([4, 32])\n"


def test_what_is_no_text_of_shards_is_refused(mirror: Path) -> None:
    with pytest.raises(ValueError, match=r"task\.data\.files='none\*': matches 0 files"):
        ShardedText("made/edu", "none*").shards("train", str(mirror))
    with pytest.raises(ValueError, match=r"text_column='body': sample/000\.parquet has the columns text, id"):
        list(ShardedText("made/edu", "sample/0*", text_column="body").documents("train", str(mirror)))
    with pytest.raises(ValueError, match=r"has only \d+ sequences"):
        next(ShardStream(TEXT, tokenizer(), mirror.parent / "cache", str(mirror), 32, 500, 0))
    with pytest.raises(FileNotFoundError, match=r"made/nothing: not found"):
        ShardedText("made/nothing").shards("train", str(mirror))
