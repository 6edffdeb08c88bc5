"""The pages: what they tell a person to write works, and every command in them is one."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from commands import Command, launch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from made_models import make_mirror
from omegaconf import OmegaConf, open_dict

from modern_llm.runs.checked import settled_and_typed
from modern_llm.runs.folder import register_resolvers

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
EXTEND = sorted((ROOT / "docs" / "extend").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = ["hardware=cpu", "hardware.precision=fp32", "paths.cache=cache"]
TRAINED = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.max_seq_len=32"]
SHORT = ["trainer.max_steps=3", "trainer.batch_size=4", "task/tokenizer=bytes", "task.samples.max_new_tokens=3",
         "task.evaluation.tokens_in_training=512", "task.data.train=[text.txt]", "task=text"]  # fmt: skip
PROMPTED = ["paths.mirror=mirror", "task.max_evaluation_examples=2", "task.num_shots=1"]
# Pages whose command is no training on text, and what makes it small.
OTHERS = {
    "metric": [
        "paths.mirror=mirror",
        "task.max_evaluation_examples=2",
        "task.num_shots=1",
        "task.data.max_new_tokens=3",
    ],
    "form": ["paths.mirror=mirror", "task.max_evaluation_examples=2", "task.num_shots=1"],
    "reward": [
        "paths.mirror=mirror",
        "trainer.max_steps=1",
        "trainer.batch_size=2",
        "task.drawing.samples=4",
        "+task/reward@task.reward.rewards.more=format",  # something that random letters have now and then
        "task.reward.rewards.more.pattern='[a-m]'",
        "task.asking.max_new_tokens=4",
        "task.evaluation.samples=1",
        "task.evaluation.problems=2",
        "task.evaluation.selection=2",
    ],
    "task": [],
    "data": [w for w in SHORT if not w.startswith(("task=", "task.data"))],
    "model": SHORT,
}


def commands_of(text: str) -> list[list[str]]:
    """Words behind the program of each command in console blocks, comments left out."""
    found = []
    for language, _, block in BLOCK.findall(text):
        if language not in ("console", "bash"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            line = line.split(" && ")[-1]
            program = re.match(r"(?:\w+=\S+ )*(?:python launch\.py|modern-llm|torchrun .* launch\.py)( |$)", line)
            if program:
                found.append(shlex.split(line[program.end() :], comments=True))
    return found


@pytest.fixture
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A page's files, and what its command reads."""
    text = request.param.read_text()
    for _, title, block in BLOCK.findall(text):
        if title:
            (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / title).write_text(block)
    (tmp_path / "text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(300)))
    (tmp_path / "reviews.csv").write_text("text,label\n" + "good and fine,yes\nbad and dull,no\n" * 120)
    rows = [{"question": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(240)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if request.param.stem in ("metric", "form", "reward"):
        make_mirror(tmp_path / "mirror")
    return tmp_path


@pytest.mark.parametrize(
    ("page", "written"),
    [(p.stem, p) for p in EXTEND if p.stem not in ("index", "inside")],
    indirect=["written"],
    ids=[p.stem for p in EXTEND if p.stem not in ("index", "inside")],
)
def test_a_page_of_ones_own_classes_works(page: str, written: Path) -> None:
    (words,) = commands_of((ROOT / "docs" / "extend" / f"{page}.md").read_text())
    more = OTHERS.get(page, [*TRAINED, *SHORT])
    chosen = {word.split("=")[0] for word in words}
    more = [word for word in more if word.split("=")[0] not in chosen]
    machine = [] if page == "task" else SMALL
    done: Command = launch(*words, *machine, *more, cwd=written)
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = written.glob("outputs/*/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    if page == "metric":
        assert 0 <= metrics["word_overlap"] <= 1
    if page == "callback":
        assert (result.parent / "alarms.txt").read_text().startswith("1 ")


COMMANDS = [(page, words) for page in PAGES for words in commands_of(page.read_text())]
# They end before anything is composed, or name a file of the reader's own.
NOT_COMPOSED = ("--help", "--cfg", "--config-dir", "plugins=")


@pytest.mark.parametrize(
    ("page", "words"),
    [(p, w) for p, w in COMMANDS if not any(word.startswith(NOT_COMPOSED) for word in w)],
    ids=lambda v: v.stem if isinstance(v, Path) else " ".join(v)[:60],
)
def test_every_command_is_one(page: Path, words: list[str]) -> None:
    """Composed, and its keys and types checked, for the first of the values that it sweeps."""
    register_resolvers()
    swept = "-m" in words
    overrides = [w for w in words if not w.startswith(("-", "hydra")) and w != "…"]
    if swept:
        overrides = [re.sub(r"=(?![\[{'\"])([^,(]+),.*$", r"=\1", w) for w in overrides]
        overrides = [re.sub(r"=(tag\(log,)?(int\()?(interval|range|choice)\(([^,)]+).*$", r"=\4", w) for w in overrides]
    overrides = [w for w in overrides if not w.startswith("resume=")]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=[*overrides, "name=x"], return_hydra_config=True)
    with open_dict(config):
        del config["hydra"]
    assert OmegaConf.is_dict(config)
    settled_and_typed(config, overrides)


def test_the_reference_is_that_of_the_configuration() -> None:
    sys.path.append(str(ROOT / "docs"))
    from reference import page

    assert (ROOT / "docs" / "reference.md").read_text() == page(), "run: python docs/reference.py"


def test_links_between_pages_lead_somewhere() -> None:
    missing = []
    for page in PAGES:
        text = BLOCK.sub("", page.read_text())
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
            if not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert not missing
