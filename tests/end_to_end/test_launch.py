"""The commands that a person types first."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from commands import Workplace, launch, launch_afresh, result


def test_a_run_leaves_its_record_and_a_page(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    printed = place.run("task.samples.prompts=[a,b,c]").stdout
    folder = place.only_run()
    names = ("config.yaml", "metrics.jsonl", "metrics.csv", "result.json", "loss.png", "report.html", "sittings.jsonl")
    for name in names:
        assert (folder / name).stat().st_size > 0
    for name in ("result.json", "loss.png", "report.html", "checkpoints"):
        assert str(folder / name) in printed
    assert printed.count("--- sample") == 3
    record = result(folder)
    assert {"validation_token_perplexity", "validation_word_perplexity", "validation_byte_perplexity"} <= set(
        record["metrics"]
    )
    assert record["perplexity_protocol"]["validation"]["stride"] == 32

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            for name, value in attributes:
                if name in ("src", "href"):
                    assert (value or "").startswith("data:"), "the page must hold everything itself"

    Links().feed((folder / "report.html").read_text())


def test_the_rest_of_hydra_works() -> None:
    shown = launch("--cfg", "job", "model=modern")
    assert shown.returncode == 0
    assert "use_attention_sinks: true" in shown.stdout
    assert launch("--info", "defaults").returncode == 0
    help_text = launch_afresh("--help").stdout
    assert help_text.count("python launch.py ") >= 7
    assert "model/sinks: learnable, logits, streaming" in help_text
    # Bases, which leave something open, are no choices; they can be named all the same.
    assert "decoder" not in help_text
    assert "pretraining" not in help_text
    assert " labelled," not in help_text
    assert "decoder" not in launch("model=tinny").stderr
    assert launch("--cfg", "job", "model=decoder").returncode == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_stepz=5", "Did you mean 'trainer.max_steps'?"),
        ("max_steps=5", "Did you mean 'trainer.max_steps'?"),
        ("task/rows@task.data.rows=hub", "Write +task/rows@task.data.rows=… to add it."),
        ("trainer.max_steps=abc", "must be a whole number"),
        ("trainer.lr=1e-3", "trainer.lr: there is no such key. It is trainer.optimizer.lr."),
        ("trainer.gradient_accumulation_steps=4", "It is hardware.micro_batch_size: trainer.batch_size is split"),
        ("task/dataset=sst2", "task/dataset: is task/data now. Write task/data=…"),
        ("task.dataset.name=x", "is task.data.name now"),
        ("trainer=debug", "trainer=debug: is debug=default now"),
        ("zzyzx=3", "variables of your own go below vars"),
        ("task.seed=3", "Write seed=…"),
        ("model.n_heads=[", "is not written as Hydra reads it"),
        (
            "hydra/sweeper=bayes",
            "hydra/sweeper=bayes: Could not find 'hydra/sweeper/bayes'. Did you mean 'basic'? Choices: ablation",
        ),
        ("name=../../x", "name='../../x': is no name for a folder"),
        ("paths.outputs=/proc/foo", "paths.outputs=/proc/foo: the run's folder cannot be made there"),
        ("--experimental-rerun=x", "File x does not exist"),
        ("hydra.run.dir=/dev/null/x", "/dev/null"),
        ("model=tinny", "Could not find 'model/tinny'"),
        ("resume=/nope", "is not the folder of a run"),
        ("task=text", "names no file"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(override: str, message: str, tmp_path: Path) -> None:
    refused = launch(f"paths.outputs={tmp_path}", override)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "Error: " in refused.stderr
    assert refused.stderr.count("\n") == 1 or override.startswith("--")
    assert not list(tmp_path.iterdir())


def test_wikitext2_from_the_mirror(mirror: Path, tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    text = [o for o in place.words() if not o.startswith(("task.data.train", "task=text"))]
    sizes = ["trainer.max_steps=2", "model.max_seq_len=256", "hardware.eval_batch_size=16"]
    done = launch(*text, "task=wikitext2", f"paths.mirror={mirror}", *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((place.only_run() / "result.json").read_text())
    assert record["perplexity_protocol"]["validation"]["counts"]["words"] > 100_000
    assert "no test figures" in done.stderr
