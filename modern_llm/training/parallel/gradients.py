"""Gradients summed over the processes while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Few enough messages to fill the line, enough of them to begin early (Li et al. 2020): of a small model smaller ones.
_LARGEST_BUCKET, _SMALLEST_BUCKET, _BUCKETS = 25 * 10**6, 10**6, 8


class _Bucket:
    """Parameters whose gradients are sent as one."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.missing = len(parameters)
        self.sent: Tensor | None = None
        self.work: Any = None

    def send(self) -> None:
        """Begin the sum; what has no gradient here counts as 0."""
        import torch.distributed as dist

        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.sent = torch.cat([gradient.reshape(-1) for gradient in flat])
        self.work = dist.all_reduce(self.sent, async_op=True)

    def receive(self, is_used: Sequence[bool]) -> None:
        """Wait for the sum and put it into the gradients of the parameters that have one anywhere."""
        assert self.sent is not None
        self.work.wait()
        pieces = self.sent.split([p.numel() for p in self.parameters])
        for p, piece, used in zip(self.parameters, pieces, is_used, strict=True):
            if used and p.grad is None:
                p.grad = torch.empty_like(p)
            if p.grad is not None:
                p.grad.copy_(piece.view_as(p))
        self.missing, self.sent, self.work = len(self.parameters), None, None


class GradientSums:
    """Sums the gradients of a step over the processes, in buckets, each as soon as the last backward pass of the step
    has filled it (Li et al. 2020, arXiv 2006.15704, section 3.2).

    Args:
        parameters: the trained ones, in the order of the model: the same in every process.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._buckets = _buckets(self.parameters)
        self._of = {p: bucket for bucket in self._buckets for p in bucket.parameters}
        self._is_last = False
        self._next = 0  # all processes send the buckets in one order
        for p in self.parameters:
            p.register_post_accumulate_grad_hook(self._ready)

    def begin(self) -> None:
        """The next backward pass is the last of the step."""
        self._is_last = True

    def finish(self) -> None:
        """Send what is left, and wait for all."""
        import torch.distributed as dist

        used = torch.tensor([p.grad is not None for p in self.parameters], dtype=torch.uint8)
        used = used.to(self.parameters[0].device)
        work = dist.all_reduce(used, dist.ReduceOp.MAX, async_op=True)
        self._send_filled(all_of_them=True)
        work.wait()
        is_used = dict(zip(self.parameters, used.tolist(), strict=True))
        for bucket in self._buckets:
            bucket.receive([bool(is_used[p]) for p in bucket.parameters])
        self._is_last, self._next = False, 0

    def _ready(self, p: Tensor) -> None:
        if self._is_last:
            self._of[p].missing -= 1  # type: ignore[index]  # the hook is given the parameter
            self._send_filled()

    def _send_filled(self, all_of_them: bool = False) -> None:
        while self._next < len(self._buckets) and (all_of_them or self._buckets[self._next].missing <= 0):
            self._buckets[self._next].send()
            self._next += 1


def _buckets(parameters: list[nn.Parameter]) -> list[_Bucket]:
    """Of one dtype and device each, the last parameters first: their gradients are there first."""
    groups: list[list[nn.Parameter]] = []
    size, total = 0, sum(p.numel() * p.element_size() for p in parameters)
    most = min(max(total // _BUCKETS, _SMALLEST_BUCKET), _LARGEST_BUCKET)
    for p in reversed(parameters):
        alike = groups and (groups[-1][0].dtype, groups[-1][0].device) == (p.dtype, p.device)
        if not alike or size >= most:
            groups.append([])
            size = 0
        groups[-1].append(p)
        size += p.numel() * p.element_size()
    return [_Bucket(group) for group in groups]
