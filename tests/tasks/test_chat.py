"""The conversation as a person has it, through a pipe."""

from __future__ import annotations

import json
from pathlib import Path

from bases import trained_from_scratch
from commands import launch
from made_models import byte_tokenizer

GREEDY = ["task.sampling.temperature=0", "task.max_new_tokens=5", "hardware=cpu", "hardware.precision=fp32"]


def test_lines_are_answered_and_commands_obeyed(tmp_path: Path) -> None:
    run = trained_from_scratch(tmp_path / "run", byte_tokenizer())
    lines = ["hello", "", "/what", "/reset", "hello", "y" * 200, "/quit", "never read"]
    words = ["task=chat", "model=from_run", f"model.path={run}", f"paths.outputs={tmp_path / 'outputs'}"]
    done = launch(*words, *GREEDY, stdin="\n".join(lines))
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = tmp_path.glob("outputs/*/*_chat_from_run/conversation.json")
    turns = json.loads(path.read_text())
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    assert answers[0] == answers[1]  # after /reset nothing of before counts
    assert done.stdout == "".join(f"{answer}\n" for answer in answers)
    for message in ("/what: no such command", "begins anew", "context of 160 tokens is full", "task.max_new_tokens"):
        assert message in done.stderr
    metrics = json.loads(path.with_name("result.json").read_text())["metrics"]
    assert metrics["answers"] == 2


def test_control_bytes_that_a_model_writes_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (escape,) = byte_tokenizer().encode("\x1b")
    run = trained_from_scratch(tmp_path / "run", byte_tokenizer(), always=escape)
    chat = ["task=chat", "model=from_run", f"model.path={run}"]
    generate = ["task=generate", f"task.models=[{run}]", "task.prompts=['Hi\x1b[31m']"]
    said = []
    for words, record in ((chat, "conversation"), (generate, "generations")):
        done = launch(*words, *GREEDY, f"paths.outputs={tmp_path / record}", stdin="hello\n")
        assert done.returncode == 0, done.stderr[-2000:]
        assert "\x1b" not in done.stdout + done.stderr
        (path,) = tmp_path.glob(f"{record}/*/*/{record}.json")
        assert "\\u001b" * 5 in path.read_text()
        said.append(done.stdout)
    assert "␛" * 5 in said[0]
