"""lm-evaluation-harness on our models against its own `hf` model, on tasks and data made on the spot."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_models import CHAT, NAMES, make_pairs, write_split
from records import read_page

from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.pretrained.loaded import LoadedModel
from modern_llm.pretrained.settings import PretrainedModel
from modern_llm.training.settings import Hardware

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install -e '.[lm_eval]'")

from modern_llm.tasks.lm_eval import LMEval

CPU = Hardware(device="cpu", precision="fp32", eval_batch_size=3)
CHOICE = """
task: made_choice
dataset_path: made/quiz
output_type: multiple_choice
training_split: train
test_split: test
num_fewshot: 2
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
LETTERS = CHOICE.replace("made_choice", "made_letters").replace("{{choices}}", "{{['A', 'B', 'C']}}")
WRITTEN = """
task: made_written
dataset_path: made/quiz
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs:
  until: ["e", "\\n"]
  max_gen_toks: 9
metric_list:
  - metric: exact_match
"""
TEXT = """
task: made_text
dataset_path: made/quiz
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""


@pytest.fixture(scope="module")
def place(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror with the made models, two paradigms of BLiMP and a quiz; beside it, tasks on the quiz."""
    root = tmp_path_factory.mktemp("harness")
    (root / "models").symlink_to(hub / "models")
    make_pairs(root)
    words = ["tea", "a cup", "nothing at all", "cold water"]
    rows = [
        {"question": f"What is number {i * 7 % 11}?", "choices": [words[(i + k) % 4] for k in range(3)], "label": i % 3,
         "text": f"Text {i} " + "and so on, " * (i * 8)}
        for i in range(12)
    ]  # fmt: skip
    write_split(root / "datasets" / "made" / "quiz", "train", rows[:6])
    write_split(root / "datasets" / "made" / "quiz", "test", rows[6:])
    (root / "tasks").mkdir()
    for number, text in enumerate((CHOICE, LETTERS, WRITTEN, TEXT)):
        (root / "tasks" / f"{number}.yaml").write_text(text)
    return root


def asked(place: Path, model: Any, *names: str, **settings: Any) -> dict[str, Any]:
    """The harness's own answer."""
    from lm_eval import simple_evaluate

    from modern_llm.evaluation.harness import task_manager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = task_manager(str(place / "tasks"), str(place))
    found: dict[str, Any] = simple_evaluate(
        model=model, tasks=list(names), task_manager=manager, bootstrap_iters=0, **settings
    )
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_answer_is_that_of_the_harness_s_own_model(
    place: Path, load: Callable[..., LoadedModel], kind: str
) -> None:
    from lm_eval.models.huggingface import HFLM

    from modern_llm.evaluation.harness import HarnessLM

    names = ("blimp_adjunct_island", "made_choice", "made_letters", "made_written", "made_text")
    ours = asked(place, HarnessLM(load(kind), batch_size=4), *names)
    peer = HFLM(pretrained=str(place / "models" / NAMES[kind]), dtype="float32", device="cpu", batch_size=4)
    theirs = asked(place, peer, *names)
    for name in names:
        pairs = zip(ours["samples"][name], theirs["samples"][name], strict=True)
        for mine, other in pairs:
            assert mine["arguments"] == other["arguments"]
            if name == "made_written":
                assert mine["filtered_resps"] == other["filtered_resps"]
                continue
            for one, two in zip(mine["filtered_resps"], other["filtered_resps"], strict=True):
                assert one == pytest.approx(two, abs=1e-3)
        for key, value in theirs["results"][name].items():
            expected = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert ours["results"][name][key] == expected
    assert any(s["filtered_resps"][0] for s in ours["samples"]["made_written"]), "nothing was written"
    # Answers of three choices behind two examples: more than one token each, and an order that matters.
    assert len({json.dumps(s["arguments"]) for s in ours["samples"]["made_choice"]}) == 6


def test_a_model_of_our_own_and_its_record(place: Path, load: Callable[..., LoadedModel]) -> None:
    """By hand: the separator of texts stands in front of a context and of a bare text."""
    from modern_llm.evaluation.harness import HarnessLM

    loaded = load("own")
    lm = HarnessLM(loaded, batch_size=4)
    encoded = lm._encoded([("ab ", "c"), ("", "d"), ("ab", " c")])
    a, b, c, blank, d = (loaded.tokenizer.encode(x)[0] for x in "abc d")
    assert encoded == [([0, a, b], [blank, c]), ([0], [d]), ([0, a, b], [blank, c])]
    long = list(range(1, 257)) * 2
    assert lm._cut(long, [1, 2]) == (long[-255:], [1, 2])  # 256 positions read 257 tokens but the last
    with pytest.raises(ValueError, match="an answer has 300 tokens, and own was made for 256"):
        lm._cut([0], [1] * 300)
    with pytest.raises(ValueError, match="the answer '' behind 'ab' has no token of its own"):
        lm._encoded([("ab", "")])


def test_the_task_its_record_and_its_page(place: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    task = LMEval(
        PretrainedModel(NAMES["llama"]), CPU, ["blimp_adjunct_island", "made_*"], Paths(mirror=str(place)), limit=5,
        include_path=str(place / "tasks"), bootstrap_iters=20,
    )  # fmt: skip
    metrics = task.run(RunFolder(tmp_path, {}))
    result = json.loads((tmp_path / "result.json").read_text())
    rows = {(row["task"], row["metric"]): row for row in result["tables"]["By task"]}
    assert {
        "made_choice_acc",
        "made_letters_acc_norm",
        "made_written_exact_match",
        "made_text_word_perplexity",
    } <= metrics.keys()
    assert rows["made_choice", "acc"]["examples"] == 5
    assert rows["made_choice", "acc"]["shots"] == 2
    assert rows["blimp_adjunct_island", "acc"]["version"] == 1.0
    stderr = rows["made_choice", "acc"]["stderr"]
    assert metrics["made_choice_acc_high"] - metrics["made_choice_acc"] == pytest.approx(1.96 * stderr, rel=1e-3)
    assert metrics["score"] == metrics["blimp_adjunct_island_acc"]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert sum(row["task"] == "made_choice" for row in samples) == 5
    assert result["evaluated_on"][""]["examples"] == 25
    assert "made_choice" in read_page(tmp_path / "report.html").text


def test_conversations(place: Path, load: Callable[..., LoadedModel]) -> None:
    from modern_llm.evaluation.harness import HarnessLM

    lm = HarnessLM(load("llama"), batch_size=4)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    assert lm.apply_chat_template(turns[:1]) == "<|user|>Hi<|endoftext|><|assistant|>"
    assert lm.apply_chat_template(turns, add_generation_prompt=False) == "<|user|>Hi<|endoftext|><|assistant|>Yes"
    assert lm.chat_template(True) == CHAT
    found = asked(place, lm, "made_choice", apply_chat_template=True, limit=1)
    context, _ = found["samples"]["made_choice"][0]["arguments"][0]
    assert context.count("<|assistant|>") == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": []}, r"task\.tasks=\[\]: names none"),
        ({"limit": 0}, r"task\.limit=0: must be at least 1"),
        ({"num_fewshot": -1}, r"task\.num_fewshot=-1"),
        ({"include_path": "/no/such/folder"}, r"task\.include_path='/no/such/folder': is no folder"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LMEval(PretrainedModel("made/llama"), CPU, **{"tasks": ["blimp"], **settings})


def test_what_cannot_be_asked_is_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    def run(model: str, *names: str, **settings: Any) -> None:
        paths = Paths(mirror=str(place))
        LMEval(PretrainedModel(model), CPU, list(names), paths, include_path=str(place / "tasks"), **settings).run(
            RunFolder(tmp_path, {})
        )

    with pytest.raises(ValueError, match=r"'made_choyce': is no task.*The nearest are made_choice"):
        run(NAMES["llama"], "made_choyce")
    with pytest.raises(ValueError, match=r"task\.tasks='arc_easy': cannot be loaded .*put its data set at <mirror>"):
        run(NAMES["llama"], "arc_easy")
    with pytest.raises(ValueError, match="is an encoder-decoder, and continues no text"):
        run(NAMES["t5"], "made_choice")
    with pytest.raises(ValueError, match=r"task\.apply_chat_template=True: needs a chat template"):
        run(NAMES["gpt2"], "made_choice", apply_chat_template=True)
    with pytest.raises(ValueError, match=r"task\.objective_metric='made_acc': is not measured\. Choose among score"):
        run(NAMES["gpt2"], "made_letters", objective_metric="made_acc")


def test_how_answers_are_written() -> None:
    from modern_llm.evaluation.harness import _decoding

    sampling, stop, limit = _decoding({"until": "\n\n", "do_sample": False, "temperature": 0.7, "max_gen_toks": 5})
    assert (sampling.temperature, stop, limit) == (0.0, ["\n\n"], 5)
    sampling, stop, limit = _decoding({"until": ["a", ""], "do_sample": True, "temperature": 0.7, "top_p": 0.9})
    assert (sampling.temperature, sampling.top_p, stop, limit) == (0.7, 0.9, ["a"], 256)
    with pytest.raises(ValueError, match=r"asks for num_beams, which the decoder here does not have"):
        _decoding({"num_beams": 4})
