"""Log-likelihoods of continuations behind their contexts: what many texts begin with is computed once, and short texts
share a row. BLiMP, label words, multiple choice and lm-evaluation-harness's requests all come here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from modern_llm.models.decoding.generation import CausalLM, prefilled
from modern_llm.models.fused_loss import chunk_rows
from modern_llm.models.output_head import OutputHead

Progress = Callable[[int, int], None]  # called with how many are done, of how many
Ids = Sequence[int]

_ROW = 128  # tokens of a row that short texts share: longer ones cost more attention, shorter ones more padding


def silent(done: int, of: int) -> None:
    """Tell nobody."""


class BranchingCausalLM(CausalLM, Protocol):
    """A decoder that reads several continuations of one text in one pass."""

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Any | None = None,
        branch_ids: Tensor | None = None,
    ) -> Any:
        """An output whose `hidden` is (B, T, d), where no branch sees another."""


class Likelihoods(NamedTuple):
    """Of N continuations.

    Attributes:
        sums: (N,) float64, nats, summed over the tokens.
        greedy: (N,) whether each token was the most likely one.
    """

    sums: np.ndarray
    greedy: np.ndarray


class _Group(NamedTuple):
    """Texts behind their common beginning, the trunk; each one's rest is a branch.

    Attributes:
        texts: first and last of the sorted texts, the last one excluded.
        trunk: tokens of the trunk.
        size: tokens that are computed.
    """

    texts: tuple[int, int]
    trunk: int
    size: int


def shared_length(prompts: Sequence[Ids]) -> int:
    """Ids that all prompts begin with; at least one of each prompt stays out."""
    if len(prompts) < 2:
        return 0
    first, last = (
        min(map(tuple, prompts)),
        max(map(tuple, prompts)),
    )  # whatever these two share lies in all that are ordered between them
    return min(_common(first, last), min(map(len, prompts)) - 1)


def _common(a: Ids, b: Ids) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@torch.no_grad()
def log_likelihoods(
    model: BranchingCausalLM,
    requests: Sequence[tuple[Ids, Ids]],
    batch_size: int,
    progress: Progress = silent,
) -> Likelihoods:
    """Log-likelihood of each continuation behind its context.

    Equal texts are read once, such as those of answers of one token, which differ in the last one alone. Where all
    contexts begin alike, as behind shots that do not change, that beginning is kept in a cache if that is cheaper.
    Otherwise texts that begin alike, such as the answers to one question, are branches behind one trunk.

    Args:
        model: in evaluation mode.
        requests: ids of N contexts, not empty, and of their continuations.
        batch_size: rows per forward pass.
        progress: is told of texts, not of requests.
    """
    found = Likelihoods(np.zeros(len(requests)), np.ones(len(requests), dtype=bool))
    asked = [n for n, (_, continuation) in enumerate(requests) if len(continuation)]
    if not asked:
        return found
    read = [(*requests[n][0], *requests[n][1][:-1]) for n in asked]
    texts = sorted(set(read))
    place = {text: i for i, text in enumerate(texts)}
    of_text: list[list[int]] = [[] for _ in texts]
    for n, text in zip(asked, read, strict=True):
        of_text[place[text]].append(n)
    width = model.output_head.weight.shape[1]
    groups, cost = _grouped(texts, width)
    shared = shared_length([requests[n][0] for n in asked])
    prefix = None
    if shared and len(texts) > 1 and shared + sum(len(text) - shared for text in texts) < cost:
        prefix = prefilled(model, texts[0][:shared])
        groups = [_Group((i, i + 1), shared, len(text) - shared) for i, text in enumerate(texts)]
    device, done = model.output_head.weight.device, 0
    sizes = [group.size for group in groups]
    for rows, length in _batches(sizes, batch_size, shared=prefix is None):
        ids = np.zeros((len(rows), length), dtype=np.int64)
        documents, branches = np.full_like(ids, -1), np.zeros_like(ids)  # padding is a document of its own
        wanted: list[tuple[int, int, int]] = []  # token of the batch, id behind it, request
        for row, members in enumerate(rows):
            at = 0
            for document, member in enumerate(members):
                group = groups[member]
                first, trunk_at = group.texts[0], at
                if prefix is None:
                    ids[row, at : at + group.trunk] = texts[first][: group.trunk]
                    at += group.trunk
                for branch, i in enumerate(range(*group.texts), 1):
                    rest = texts[i][group.trunk :]
                    ids[row, at : at + len(rest)] = rest
                    branches[row, at : at + len(rest)] = branch
                    for n in of_text[i]:
                        context, continuation = requests[n]
                        for place_in_text, target in enumerate(continuation, len(context) - 1):
                            behind = place_in_text - group.trunk
                            where = trunk_at + place_in_text if behind < 0 else at + behind
                            wanted.append((row * length + where, target, n))
                    at += len(rest)
                documents[row, trunk_at:at] = document
                done += group.texts[1] - first
        batch = torch.from_numpy(ids).to(device)
        if prefix is not None:
            cache = prefix.repeated(len(rows), length)
            hidden = model.hidden_states(batch, cache=cache).hidden  # padding on the right is never seen
        elif all(len(members) == 1 and _is_alone(groups[members[0]]) for members in rows):
            hidden = model.hidden_states(batch).hidden
        else:
            marks = {"document_ids": documents, "branch_ids": branches}
            hidden = model.hidden_states(batch, **{k: torch.from_numpy(v).to(device) for k, v in marks.items()}).hidden
        tokens, targets, owners = np.array(wanted).T
        nats, best = _picked(hidden.flatten(0, 1), model.output_head, tokens, targets)
        np.add.at(found.sums, owners, nats)
        np.logical_and.at(found.greedy, owners, best)
        progress(done, len(texts))
    return found


def _is_alone(group: _Group) -> bool:
    return group.texts[1] - group.texts[0] == 1


def _grouped(texts: Sequence[Ids], width: int) -> tuple[list[_Group], float]:
    """The groups of neighbours among sorted texts that cost least, and how many tokens they cost.

    Attention over a row of T tokens costs about T / (6 d) of what else is done with each of them: the 4 T d operations
    of scores and sums, against the 24 d^2 of a block's weights.
    """
    common = [_common(a, b) for a, b in pairwise(texts)]
    limit = max(_ROW, 2 * max(map(len, texts)))
    best = [0.0] + [float("inf")] * len(texts)
    chosen: list[_Group | None] = [None] * (len(texts) + 1)
    for stop in range(1, len(texts) + 1):
        trunk, total = len(texts[stop - 1]), 0
        for start in range(stop - 1, -1, -1):
            if start < stop - 1:
                trunk = min(trunk, common[start])
            total += len(texts[start])
            size = total - (stop - start - 1) * trunk
            if start < stop - 1 and (size > limit or trunk == 0):
                break
            cost = best[start] + size * (1 + max(size, _ROW) / (6 * width))
            if cost < best[stop]:
                best[stop], chosen[stop] = cost, _Group((start, stop), trunk, size)
    groups, stop = [], len(texts)
    while stop:
        group = chosen[stop]
        assert group is not None
        groups.append(group)
        stop = group.texts[0]
    return groups, best[-1]


def _batches(sizes: Sequence[int], batch_size: int, shared: bool) -> Iterator[tuple[list[list[int]], int]]:
    """Rows of groups, the largest first, and their length: that of the largest, or where groups may share a row several
    of it. What is left of such a row is filled with the largest that fits."""
    left = sorted((size, i) for i, size in enumerate(sizes))
    while left:
        length = left[-1][0] * (max(1, _ROW // left[-1][0]) if shared else 1)
        rows: list[list[int]] = []
        while left and len(rows) < batch_size:
            size, i = left.pop()
            rows.append([i])
            room = length - size
            while shared and (place := bisect_right(left, (room, len(sizes)))):
                size, i = left.pop(place - 1)
                rows[-1].append(i)
                room -= size
        yield rows, length


def _picked(hidden: Tensor, head: OutputHead, tokens: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each target behind its token, in nats, and whether it is the most likely one; the head is
    computed once for each token, and nowhere else.

    Args:
        hidden: (N, d). tokens, targets: (K,).
    """
    places, inverse = np.unique(tokens, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    nats, best = np.zeros(len(tokens)), np.zeros(len(tokens), dtype=bool)
    rows = chunk_rows(head.weight, len(places))
    edges = np.searchsorted(inverse[order], np.arange(0, len(places) + rows, rows))
    for number, (start, stop) in enumerate(pairwise(edges)):
        chunk = torch.from_numpy(places[number * rows : (number + 1) * rows]).to(hidden.device)
        mine = order[start:stop]
        logits = head.logits(hidden[chunk])  # (n, V)
        within = torch.from_numpy(inverse[mine] - number * rows).to(hidden.device)
        ids = torch.from_numpy(targets[mine]).to(hidden.device)
        likelihood = logits[within, ids] - logits.logsumexp(-1)[within]
        nats[mine] = likelihood.double().cpu().numpy()
        best[mine] = (logits.argmax(-1)[within] == ids).cpu().numpy()
    return nats, best
