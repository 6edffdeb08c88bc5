"""Prompts in, texts out: the same as generation alone gives, shown honestly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bases import trained_from_scratch
from made_models import NAMES, byte_tokenizer, make_mirror
from records import read_page

from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.models.config import ModernLLMConfig
from modern_llm.pretrained.loading import load_hugging_face
from modern_llm.pretrained.settings import PretrainedModel
from modern_llm.tasks.generate import Generate, read_prompts
from modern_llm.training.settings import Hardware

NASTY = "a <script>alert(1)</script> \x1b[31m \u202e& b"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_mirror(tmp_path_factory.mktemp("mirror")))


def generate(mirror: str, folder: Path, **settings: object) -> list[dict[str, object]]:
    task = Generate(ModernLLMConfig(), Hardware(device="cpu", precision="fp32"), Paths(mirror=mirror), **settings)  # type: ignore
    task.run(RunFolder(folder, {}))
    return json.loads((folder / "generations.json").read_text())


@torch.no_grad()
def test_greedy_texts_are_those_of_taking_the_likeliest_token_each_time(mirror: str, tmp_path: Path) -> None:
    """Against a loop over full forward passes of the transformers model, without any cache."""
    texts = generate(mirror, tmp_path, models=[NAMES["gpt2"]], prompts=["one", "another one"], max_new_tokens=6)
    loaded = load_hugging_face(PretrainedModel(NAMES["gpt2"]), mirror)
    for text in texts:
        ids = loaded.tokenizer.encode(str(text["prompt"]))
        start = len(ids)
        for _ in range(6):
            ids.append(int(loaded.base(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == loaded.tokenizer.eos_id:
                break
        assert text["text"] == loaded.tokenizer.decode(ids[start:])


def test_several_models_stand_beside_each_other_and_no_prompt_acts(mirror: str, tmp_path: Path) -> None:
    run = trained_from_scratch(tmp_path / "run", byte_tokenizer())
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": NASTY}) + '\n"plain"\n')
    models = [str(run), str(run / "checkpoints" / "step_00000001"), NAMES["llama"]]
    texts = generate(mirror, tmp_path, models=models, prompts=["first"], prompts_file=str(file), max_new_tokens=4)
    assert [(t["prompt"], t["model"]) for t in texts] == [(p, m) for p in ("first", NASTY, "plain") for m in models]
    assert texts[0]["text"] == texts[1]["text"]  # the run's checkpoint is the run's model
    page = read_page(tmp_path / "report.html")
    assert "<script>alert(1)</script> ␛[31m ⟦U+202E⟧& b" in page.text
    assert not any("alert" in content for _, content in page.scripts)


def test_sampled_texts_depend_on_the_seed_and_not_on_their_neighbours(mirror: str, tmp_path: Path) -> None:
    from modern_llm.models.decoding.sampling import Sampling

    def sampled(prompts: list[str], seed: int) -> list[object]:
        rows = generate(mirror, tmp_path, models=[NAMES["gpt2"]], prompts=prompts, seed=seed, sampling=Sampling(),
                        max_new_tokens=12)  # fmt: skip
        return [row["text"] for row in rows]

    both = sampled(["abc", "longer than that"], 0)
    assert both[0] == sampled(["abc"], 0)[0]
    assert both[1] == sampled(["longer than that"], 1)[0]
    assert both[0] != sampled(["abc"], 5)[0]


def test_a_conversation_goes_through_the_model_s_own_template(mirror: str, tmp_path: Path) -> None:
    plain = generate(mirror, tmp_path, models=[NAMES["llama"]], prompts=["<|user|>hi<|endoftext|><|assistant|>"])
    asked = generate(mirror, tmp_path, models=[NAMES["llama"]], prompts=["hi"], chat=True)
    assert asked[0]["text"] == plain[0]["text"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.md", b"x", r"must end in \.txt or \.jsonl"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.jsonl", b'"fine"\n{"text": "x"}\n', "line 2: holds no prompt"),
        ("a.jsonl", b"{torn", "line 1: is no JSON"),
    ],
)
def test_files_of_prompts_are_refused_by_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_prompts_are_lines_and_nothing_else_splits_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\x0bstill one\u2028yes\r\n\n  two\n", newline="")
    assert read_prompts(tmp_path / "a.txt") == ["one\x0bstill one\u2028yes", "  two"]


def test_a_prompt_longer_than_the_context_is_refused(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 300 tokens, and .* was made for 256"):
        generate(mirror, tmp_path, models=[NAMES["gpt2"]], prompts=["x" * 300])


def test_a_model_that_is_not_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a trained model"):
        Generate(ModernLLMConfig(), Hardware())
