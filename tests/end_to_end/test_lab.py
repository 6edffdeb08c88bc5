"""The lab of `examples/`: classes from outside of the package, in one command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import launch, with_path
from torch import nn

from modern_llm.evaluation.attention_maps import attention_maps
from modern_llm.models import ModernDecoderLM, ModernLLMConfig

LAB = Path(__file__).resolve().parents[2] / "examples" / "lab"
sys.path.append(str(LAB))
from my_lab.attention import LinearAttention  # noqa: E402
from my_lab.brackets import Brackets  # noqa: E402
from my_lab.optimizer import Lion  # noqa: E402
from my_lab.state_space import StateSpace  # noqa: E402


def test_one_command_outside_of_the_checkout_sweeps_what_is_its_own(tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    shutil.copytree(LAB, lab, ignore=shutil.ignore_patterns("outputs", "__pycache__"))
    command = [sys.executable, "-m", "modern_llm", "--config-dir", "conf", "experiment=lab", "trainer.max_steps=2",
               "hardware=cpu", "hardware.precision=fp32", "paths.cache=cache"]  # fmt: skip
    done = subprocess.run(command, cwd=lab, capture_output=True, text=True, env=with_path(), timeout=300)
    assert done.returncode == 0, done.stderr
    (table,) = lab.glob("outputs/multirun/*/*/sweep.md")
    jobs = [json.loads(p.read_text())["metrics"] for p in table.parent.glob("*/result.json")]
    assert len(jobs) == 4
    assert all(0 <= job["validation_bracket_accuracy"] <= 1 for job in jobs)
    assert "| linear" in table.read_text()
    assert "bracket_accuracy" in table.read_text()
    # What is its own is checked like what is ours, and so are values.
    told = launch("--config-dir", "conf", "task=brackets", "plugins=[my_lab]", "task.data.texts=2", cwd=lab)
    assert told.stderr.strip().splitlines()[-1].startswith("Error: task.data.texts=2: must be at least 10")
    told = launch("--config-dir", "conf", "task=brackets", "plugins=[my_lab]", "task.data.texts=many", cwd=lab)
    assert "task.data.texts='many': must be a whole number" in told.stderr


def test_linear_attention_is_the_recurrence_of_its_paper() -> None:
    torch.manual_seed(0)
    config = ModernLLMConfig(vocab_size=17, d_model=16, n_layers=1, n_heads=2, attention=LinearAttention())
    attention = ModernDecoderLM(config).double().blocks[0].attention
    own = attention.own
    nn.init.normal_(own.write)
    x = torch.randn(1, 9, 16, dtype=torch.float64)

    class Whole:
        real = visible = None

    found = attention(x, Whole(), {})
    outer, keys, expected = torch.zeros(2, 8, 8).double(), torch.zeros(2, 8).double(), []
    for token in x[0]:
        q, k, v = (own.read @ token).view(3, 2, 8)
        q, k = nn.functional.elu(q) + 1, nn.functional.elu(k) + 1
        outer, keys = outer + k[:, :, None] * v[:, None], keys + k  # eq. 18, 19
        heads = torch.einsum("hd,hde->he", q, outer) / ((q * keys).sum(-1) + 1e-6)[:, None]  # eq. 20
        expected.append(own.write @ heads.flatten())
    torch.testing.assert_close(found[0], torch.stack(expected))


def test_a_state_space_is_the_recurrence_of_its_paper() -> None:
    torch.manual_seed(0)
    config = ModernLLMConfig(vocab_size=17, d_model=6, n_layers=1, n_heads=2, head_dim=4,
                             block=StateSpace(state_size=3, width=3))  # fmt: skip
    model = ModernDecoderLM(config).double()
    own, N = model.blocks[0].mixing.own, 3  # type: ignore[union-attr, index]
    for weight in own.parameters():
        nn.init.normal_(weight)
    ids, found = torch.randint(17, (1, 9)), []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: found.extend([inputs[0][0], output[0][0]]))
    model(ids)
    x, behind = found

    def norm(t: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return t / (t.square().mean() + 1e-5).sqrt() * gain

    state, last, expected = torch.zeros(2, N, 6).double(), [torch.zeros(12 + 2 * N).double()] * 2, []
    for token in x:
        z, mixed, dt = (own.read @ norm(token, own.gain)).split([12, 12 + 2 * N, 2])
        last.append(mixed)
        mixed = mixed + sum(own.kernel[k] * last[-1 - k] for k in range(3))
        u, b, c = nn.functional.silu(mixed).split([12, N, N])
        u, dt = u.view(2, 6), nn.functional.softplus(dt + own.step)
        a = (-dt * own.decay.exp()).exp()
        state = a[:, None, None] * state + dt[:, None, None] * b[:, None] * u[:, None]
        y = torch.einsum("n,hnp->hp", c, state) + own.skip[:, None] * u
        expected.append(token + own.write @ norm(y.flatten() * nn.functional.silu(z), own.inner_gain))
    torch.testing.assert_close(behind, torch.stack(expected))


def test_nothing_is_kept_of_a_text_but_the_state() -> None:
    config = ModernLLMConfig(vocab_size=17, d_model=16, n_layers=2, n_heads=2, attention=LinearAttention())
    model = ModernDecoderLM(config).eval()
    cache = model.new_cache(1, 10_000)
    model.hidden_states(torch.ones(1, 40, dtype=torch.long), cache=cache)
    assert sum(t.numel() for part in cache.parts for t in part._keys) == 2 * 16  # one slot a layer
    assert {tuple(t.shape) for t in cache.last.values()} == {(1, 2, 8, 8), (1, 2, 8)}
    config = ModernLLMConfig(vocab_size=17, d_model=16, n_layers=2, n_heads=2, block=StateSpace(state_size=3))
    model = ModernDecoderLM(config).eval()
    cache = model.new_cache(1, 10_000)
    model.hidden_states(torch.ones(1, 40, dtype=torch.long), cache=cache)
    assert sum(t.numel() for part in cache.parts for t in part._keys) == 2 * 16
    # The state of each head, and three tokens in front of the convolution.
    assert {tuple(t.shape) for t in cache.last.values()} == {(1, 2, 3, 16), (1, 3, 32 + 2 * 3)}
    with pytest.raises(ValueError, match=r"model\.block: blocks without softmax attention have no maps"):
        attention_maps(model, [1, 2, 3])
    config = ModernLLMConfig(vocab_size=17, d_model=16, n_layers=2, n_heads=2, attention=LinearAttention())
    model = ModernDecoderLM(config).eval()
    with pytest.raises(ValueError, match=r"model\.attention: blocks without softmax attention have no maps"):
        attention_maps(model, [1, 2, 3])


def test_lion_makes_the_steps_of_its_paper() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    weight, momentum = model.weight.detach().clone(), torch.zeros(2, 3)
    settings = Lion(lr=0.1, weight_decay=0.5)
    optimizer = settings.build(model)
    for _ in range(4):
        gradient = torch.randn(2, 3)
        model.weight.grad = gradient.clone()
        optimizer.step()
        step = torch.sign(0.9 * momentum + 0.1 * gradient)
        weight = weight - 0.1 * (step + 0.5 * weight)
        momentum = 0.99 * momentum + 0.01 * gradient
    torch.testing.assert_close(model.weight.detach(), weight)


def test_brackets_are_nested() -> None:
    data = Brackets(texts=30, pairs=12)
    texts = [*data.documents("train", None), *data.documents("validation", None)]
    assert len(texts) == 33
    for text in texts:
        while any(pair in text for pair in ("()", "[]", "{}", "<>")):
            for pair in ("()", "[]", "{}", "<>"):
                text = text.replace(pair, "")
        assert text == ""


OBJECTIVE = """
from dataclasses import dataclass

from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.objectives.settings import TextObjective
from modern_llm.training.callbacks import Callback
from modern_llm.training.logs.loggers import Watcher


@dataclass(frozen=True)
class Twice(TextObjective):
    def build(self):
        class TwiceTheLoss(LanguageModeling):
            def __call__(self, model, batch):
                output = super().__call__(model, batch)
                output.loss_sum = 2 * output.loss_sum
                return output

        return TwiceTheLoss()


@dataclass(frozen=True)
class Told(Watcher):
    word: str = "step"

    def callbacks(self, folder, record):
        word = self.word

        class Write(Callback):
            def on_step(self, step, loss):
                with (folder / "told.txt").open("a") as file:
                    file.write(f"{word} {step}\\n")

        return [Write()]
"""


def test_a_model_an_objective_and_a_callback_of_ones_own(tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    shutil.copytree(LAB, lab, ignore=shutil.ignore_patterns("outputs", "__pycache__"))
    (lab / "further.py").write_text(OBJECTIVE)
    words = ["--config-dir", "conf", "task=brackets", "model=gru", "plugins=[my_lab,further]", "hardware=cpu",
             "hardware.precision=fp32", "paths.cache=cache", "trainer.max_steps=3", "trainer.log_every=1",
             "task.samples.max_new_tokens=4"]  # fmt: skip
    losses = []
    for more in ([], ["task.objective._target_=further.Twice", "+trainer.callbacks.told._target_=further.Told"]):
        done = launch(*words, *more, cwd=lab)
        assert done.returncode == 0, done.stderr
        run = max(lab.glob("outputs/*/*/metrics.jsonl"), key=lambda p: p.stat().st_mtime)
        losses.append(json.loads(run.read_text().splitlines()[0])["loss"])
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-5)
    assert (run.parent / "told.txt").read_text() == "step 1\nstep 2\nstep 3\n"
    # What was trained is loaded again, and writes.
    words = ["plugins=[my_lab]", "task=generate", "model=from_run", f"model.path={run.parent}", "task.prompts=['(']"]
    done = launch(*words, "hardware=cpu", cwd=lab)
    assert done.returncode == 0, done.stderr
