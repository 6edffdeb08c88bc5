"""Controls of RL: how long they train, what of the overrides they keep, and what is said of the difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modern_llm.runs.pipeline.controls import SameTime, require_rl, solved_gain, without_lengths, without_policy_loss


@pytest.mark.parametrize(
    ("rl", "sft", "steps", "expected"),
    [(60.0, 20.0, 100, 300), (59.99, 20.0, 100, 299), (0.1, 20.0, 100, 1), (12.5, 5.0, 2, 5)],
)
def test_the_steps_of_sft_that_fit_into_the_time_of_rl(
    tmp_path: Path, rl: float, sft: float, steps: int, expected: int
) -> None:
    for stage, metrics in (("rl", {"seconds": rl, "steps": 7}), ("sft", {"seconds": sft, "steps": steps})):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "result.json").write_text(json.dumps({"status": "finished", "metrics": metrics}))
    found = SameTime.of(tmp_path)
    assert found.steps == expected
    assert found.facts() == {"steps": expected, "rl_seconds": rl, "sft_seconds_per_step": sft / steps}
    assert f"for {expected} steps of SFT" in found.told()


def test_the_difference_is_paired_by_problem() -> None:
    rl = [True] * 60 + [False] * 40
    assert solved_gain(rl, rl, 0) == {f"rl_solved_gain{end}": 0.0 for end in ("", "_low", "_high")}
    # Right wherever the control is, and once more: the same difference as below, where every problem may go either way.
    paired, unpaired = [True] * 59 + [False] * 41, [False] * 40 + [True] * 59 + [False]
    assert solved_gain(rl, paired, 0)["rl_solved_gain"] == solved_gain(rl, unpaired, 0)["rl_solved_gain"] == 0.01
    narrow, wide = (solved_gain(rl, control, 0) for control in (paired, unpaired))
    width = narrow["rl_solved_gain_high"] - narrow["rl_solved_gain_low"]
    assert width == pytest.approx(0.03, abs=0.011)  # one problem of a hundred is drawn 0 to 3 times
    assert wide["rl_solved_gain_high"] - wide["rl_solved_gain_low"] > 5 * width
    assert solved_gain(paired, rl, 0)["rl_solved_gain"] == -0.01


def test_a_control_keeps_what_is_not_its_own() -> None:
    rl = ["task/data=gsm8k_problems", "task/policy_loss=grpo", "task.policy_loss.beta=0.04", "trainer.max_steps=5"]
    assert without_policy_loss(rl) == [rl[0], rl[3]]
    sft = ["trainer.max_steps=5", "trainer.max_minutes=1", "trainer.eval_every=2", "trainer.max_tokens=9"]
    assert without_lengths(sft) == ["trainer.eval_every=2"]


def test_controls_of_no_rl_are_refused() -> None:
    require_rl(["rejection", "sft"], ["base", "sft", "rl"])
    require_rl([], ["sft"])
    with pytest.raises(ValueError, match=r"task\.controls=\['sft'\]: are controls of rl, which is not among"):
        require_rl(["sft"], ["sft", "dpo"])
    with pytest.raises(ValueError, match=r"names one twice.*task\.controls=\[sft\]"):
        require_rl(["sft", "sft"], ["rl"])
