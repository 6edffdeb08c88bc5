"""Log-probabilities of preferred and rejected answers: of a reference, computed once and kept; of a policy, scored."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from modern_llm.data.batches import by_length
from modern_llm.data.preferences.read import EncodedPair, PairBatch
from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval
from modern_llm.objectives.base import on_device
from modern_llm.objectives.preference import BranchingLM, answer_log_probs, measures
from modern_llm.objectives.preference_losses import PairLogProbs, PreferenceLoss

Progress = Callable[[int, int], None]  # called with how many are done, of how many
_SECONDS_BETWEEN_SAVES = 30.0


@torch.no_grad()
def pair_log_probs(
    model: BranchingLM,
    pairs: Sequence[EncodedPair],
    batch_size: int,
    device: torch.device,
    progress: Progress = lambda done, of: None,
    known: np.ndarray | None = None,
    keep: Callable[[np.ndarray], None] = lambda found: None,
) -> np.ndarray:
    """Log-probabilities of the A answers of every pair, in nats, summed over their tokens.

    Args:
        model: in evaluation mode.
        pairs: N of them.
        batch_size: pairs per forward pass, like lengths together.
        device: of the model.
        known: (N, A) what was computed before, NaN where nothing was.
        keep: called now and then with what is known so far.

    Returns:
        (N, A) float64: chosen, rejected, and mismatched where the pairs have such answers.
    """
    found = np.full((len(pairs), _answers(pairs)), np.nan) if known is None else known
    collate, saved = PairBatch(0), time.monotonic()
    for places in by_length(pairs, batch_size):
        if np.isnan(found[places]).any():
            batch = on_device(collate([pairs[i] for i in places]), device)
            found[places] = answer_log_probs(model, batch)[0].cpu().double().numpy()
            progress(int((~np.isnan(found[:, 0])).sum()), len(pairs))
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            keep(found)
            saved = time.monotonic()
    return found


def _answers(pairs: Sequence[EncodedPair]) -> int:
    """Answers to each prompt."""
    return len(pairs[0].answers) if pairs else 2


def pairs_fingerprint(pairs: Sequence[EncodedPair]) -> str:
    """Changes when a token of a prompt or an answer does."""
    digest = hashlib.sha256()
    for pair in pairs:
        for ids in (pair.prompt_ids, *pair.answers):
            digest.update(np.array([len(ids), *ids], dtype="<i8").tobytes())
    return digest.hexdigest()


def with_reference(
    pairs: Sequence[EncodedPair],
    model: BranchingLM,
    weights: str,
    precision: str,
    batch_size: int,
    device: torch.device,
    cache: Path,
    progress: Progress = lambda done, of: None,
) -> list[EncodedPair]:
    """The pairs with the log-probabilities of their answers under the reference: computed once and kept on disk by
    content, so that no second model is in memory, now or on a resume.

    Args:
        pairs: N of them.
        model: the reference, in evaluation mode.
        weights: hash of all its weights.
        precision: that it computes in.
        batch_size, device: as in `pair_log_probs`.
        cache: folder; another reference, other pairs or another precision have a file of their own in it. A pass that
            was interrupted is taken up where it stood.
    """
    key = hashlib.sha256(f"{weights} {pairs_fingerprint(pairs)} {precision}".encode()).hexdigest()[:32]
    path = cache / "reference_log_probs" / f"{key}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)

    def keep(found: np.ndarray) -> None:
        content = found.astype("<f8").tobytes()
        aside = path.with_name(f"{path.name}.{os.getpid()}.part")
        aside.write_bytes(hashlib.sha256(content).digest() + content)
        aside.replace(path)

    known = _read(path, (len(pairs), _answers(pairs)))
    if known is None or np.isnan(known).any():
        known = pair_log_probs(model, pairs, batch_size, device, progress, known, keep)
        keep(known)
    return [replace(pair, reference=tuple(row.tolist())) for pair, row in zip(pairs, known, strict=True)]


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """What an earlier pass left, or None where that is nothing that can be read."""
    try:
        held = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    digest, content = held[:size], held[size:]
    if digest != hashlib.sha256(content).digest() or len(content) != math.prod(shape) * 8:
        print(f"the cache {path} is damaged; it is made anew", file=sys.stderr, flush=True)
        return None
    return np.frombuffer(content, "<f8").reshape(shape).copy()


def score_pairs(
    loss: PreferenceLoss, pairs: Sequence[EncodedPair], log_probs: np.ndarray, seed: int
) -> tuple[dict[str, float], np.ndarray]:
    """What a policy makes of held-out pairs.

    Args:
        loss: its rewards and its value.
        pairs: N, with the reference's log-probabilities and mismatched answers where the loss needs them.
        log_probs: (N, A) of the policy.
        seed: of the intervals.

    Returns:
        Means over the pairs: `loss` and what `PreferenceOptimisation` logs, `preference_accuracy` and `reward_margin`
        with the bounds of their 95 % bootstrap intervals; `log_prob_accuracy`, how often the chosen answer is the more
        likely one, whatever a reference says. And (N,) the margins.
    """
    tokens = torch.tensor([[len(answer) for answer in p.answers] for p in pairs])
    reference = torch.tensor([p.reference or (0.0,) * len(p.answers) for p in pairs], dtype=torch.float64)
    policy = torch.from_numpy(log_probs)
    given = PairLogProbs.of(policy, tokens, reference)
    values = {"loss": loss(given), **measures(loss, given)}
    values["log_prob_accuracy"] = ((policy[:, 0] - policy[:, 1]).sign() + 1) / 2
    return with_intervals(values, seed), values["reward_margin"].numpy()


def with_intervals(values: Mapping[str, torch.Tensor], seed: int) -> dict[str, float]:
    """Means of what each of N pairs has, (N,) each; accuracy and margin with the bounds of their 95 % intervals."""
    metrics: dict[str, float] = {}
    for name, each in values.items():
        metrics[name] = float(each.mean())
        if name in ("preference_accuracy", "reward_margin"):
            metrics[f"{name}_low"], metrics[f"{name}_high"] = bootstrap_interval(each.numpy(), seed=seed)
    return metrics
