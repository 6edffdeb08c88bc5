"""Reference log-probabilities on disk, and the scores of a policy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modern_llm.data.preferences.read import EncodedPair, with_mismatched
from modern_llm.evaluation import pairs as preferences
from modern_llm.evaluation.pairs import pair_log_probs, score_pairs, with_reference
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.output_head import OutputHead
from modern_llm.models.transformer import ModernDecoderLM
from modern_llm.objectives.preference_losses import KTO, SigmoidDPO, SimPO

CPU = torch.device("cpu")


def decoder(seed: int = 0) -> ModernDecoderLM:
    torch.manual_seed(seed)
    return ModernDecoderLM(ModernLLMConfig(vocab_size=40, d_model=16, n_layers=1, n_heads=2, max_seq_len=64)).eval()


def pairs(count: int = 6) -> list[EncodedPair]:
    random = torch.Generator().manual_seed(3)

    def ids(n: int) -> list[int]:
        return torch.randint(1, 40, (n,), generator=random).tolist()

    return [EncodedPair(i, ids(3 + i), ids(1 + i), ids(5 - i % 3)) for i in range(count)]


class Counting:
    """A model that counts its forward passes."""

    def __init__(self, model: ModernDecoderLM, fail_at: int = 10**9) -> None:
        self.model, self.calls, self.fail_at = model, 0, fail_at

    @property
    def output_head(self) -> OutputHead:
        return self.model.output_head

    def hidden_states(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return self.model.hidden_states(*given, **named)


def reference(model: Any, cache: Path, of: list[EncodedPair], weights: str = "w", precision: str = "fp32") -> Any:
    return with_reference(of, model, weights, precision, 2, CPU, cache)


class TestCache:
    def test_it_holds_what_a_plain_pass_gives(self, tmp_path: Path) -> None:
        model = Counting(decoder())
        first = reference(model, tmp_path, pairs())
        assert model.calls == 3
        again = reference(model, tmp_path, pairs())
        assert model.calls == 3
        assert again == first
        for pair in first:
            for answer, kept in zip((pair.chosen_ids, pair.rejected_ids), pair.reference or (), strict=True):
                ids = torch.tensor([[*pair.prompt_ids, *answer]])
                chance = model.model(ids[:, :-1]).logits.log_softmax(-1)[0, len(pair.prompt_ids) - 1 :]
                fresh = chance.gather(1, torch.tensor(answer)[:, None]).sum()
                assert kept == pytest.approx(fresh.item(), abs=1e-4)

    def test_another_reference_other_data_and_another_precision_are_computed_anew(self, tmp_path: Path) -> None:
        model = Counting(decoder())
        kept = reference(model, tmp_path, pairs())
        changed = [replace(pairs()[0], rejected_ids=[*pairs()[0].rejected_ids, 1]), *pairs()[1:]]
        for given in ({"weights": "v"}, {"precision": "bf16"}):
            before = model.calls
            reference(model, tmp_path, pairs(), **given)
            assert model.calls == before + 3
        other = reference(Counting(decoder(1)), tmp_path, pairs(), weights="other")
        assert other[0].reference != kept[0].reference
        assert reference(model, tmp_path, changed)[0].reference != kept[0].reference
        # The boundary between prompt and answer is part of the data.
        moved = replace(pairs()[0], prompt_ids=pairs()[0].prompt_ids[:-1])
        assert reference(model, tmp_path, [moved])[0].reference != kept[0].reference

    def test_an_interrupted_pass_is_taken_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(preferences, "_SECONDS_BETWEEN_SAVES", -1.0)
        with pytest.raises(KeyboardInterrupt):
            reference(Counting(decoder(), fail_at=3), tmp_path, pairs())
        model = Counting(decoder())
        found = reference(model, tmp_path, pairs())
        assert model.calls == 1
        assert found == reference(decoder(), tmp_path / "elsewhere", pairs())

    def test_a_torn_file_is_computed_again(self, tmp_path: Path) -> None:
        first = reference(decoder(), tmp_path, pairs())
        (file,) = (tmp_path / "reference_log_probs").iterdir()
        file.write_bytes(file.read_bytes()[:90])
        assert reference(decoder(), tmp_path, pairs()) == first


class TestMismatched:
    def test_their_log_probabilities_are_kept_and_scored(self, tmp_path: Path) -> None:
        """The reference point is the mean over all pairs, however many are computed at a time."""
        items = with_mismatched(pairs(), 40, seed=1)
        known = reference(decoder(), tmp_path, items)
        assert reference(decoder(1), tmp_path, items) == known  # read
        swapped = [replace(p, chosen_ids=p.answers[2], mismatched_ids=None) for p in items]
        log_probs = pair_log_probs(decoder(), items, 2, CPU)
        assert log_probs[:, 2] == pytest.approx(pair_log_probs(decoder(), swapped, 6, CPU)[:, 0], abs=1e-4)
        items = [replace(p, reference=(-9.0, -8.0, -20.0 - i)) for i, p in enumerate(items)]
        metrics, _ = score_pairs(KTO(0.5), items, log_probs, seed=0)
        point = max(0.0, float((log_probs[:, 2] + 20 + np.arange(6)).mean()))
        assert metrics["reference_point"] == pytest.approx(point)
        losses = [1 - 1 / (1 + math.exp(-0.5 * (c + 9 - point))) for c in log_probs[:, 0]]
        losses += [1 - 1 / (1 + math.exp(-0.5 * (point - r - 8))) for r in log_probs[:, 1]]
        assert metrics["loss"] == pytest.approx(np.mean(losses))


class TestScores:
    def test_a_policy_that_is_its_reference(self, tmp_path: Path) -> None:
        known = reference(decoder(), tmp_path, pairs())
        metrics, margins = score_pairs(SigmoidDPO(0.1), known, pair_log_probs(decoder(), known, 6, CPU), seed=0)
        assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert metrics["kl_estimate"] == pytest.approx(0, abs=1e-6)
        assert np.abs(margins).max() < 1e-5

    def test_by_hand(self) -> None:
        items = [replace(pair, reference=(-3.0, -3.0)) for pair in pairs(4)]
        log_probs = np.array([[-1.0, -5.0], [-2.0, -2.0], [-9.0, -1.0], [-1.0, -2.0]])
        metrics, margins = score_pairs(SigmoidDPO(0.5), items, log_probs, seed=0)
        assert margins.tolist() == [2.0, 0.0, -4.0, 0.5]
        assert metrics["preference_accuracy"] == metrics["log_prob_accuracy"] == 2.5 / 4
        assert metrics["preference_accuracy_low"] <= 2.5 / 4 <= metrics["preference_accuracy_high"]
        assert metrics["loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 4)
        squares = ((log_probs + 3) ** 2).sum(1)
        assert metrics["kl_estimate"] == pytest.approx((squares / 4).mean())
        lengths = np.array([[len(p.chosen_ids), len(p.rejected_ids)] for p in items])
        _, per_token = score_pairs(SimPO(2.0, gamma=0.0), items, log_probs, seed=0)
        assert per_token == pytest.approx(2 * (log_probs / lengths)[:, 0] - 2 * (log_probs / lengths)[:, 1])
