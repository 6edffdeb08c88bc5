"""What a run imports before its first step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRAINS = """
import sys, torch
from pathlib import Path
from loops import model, trainer
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.optimization.optimizers import AdamW, Muon

class Same:
    batch = {"input_ids": torch.arange(64).view(4, 16) % 50, "labels": torch.arange(1, 65).view(4, 16) % 50}
    def __iter__(self): return self
    def __next__(self): return self.batch
    def state_dict(self): return {}
    def load_state_dict(self, state): pass

def train(name):
    for optimizer in (AdamW(), Muon()):
        place = Path(sys.argv[1]) / name / type(optimizer).__name__
        for steps in (2, 4):  # the second goes on
            loop = trainer(place, max_steps=steps, optimizer=optimizer)
            loop.fit(model(dropout=0.1), LanguageModeling(), Same())
            loop.optimizer.zero_grad()
        assert loop.progress.step == 4

train("before")
assert "torch._dynamo" not in sys.modules, "the compiler is imported"
import torch._dynamo
train("behind")
kept = vars(torch.optim.Optimizer.zero_grad.__wrapped__)["__dynamo_disable"]
assert getattr(kept, "_torchdynamo_disable", False), "the compiler does not know what is hidden from it"
"""


def test_training_imports_no_compiler_where_nothing_is_compiled(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRAINS, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
