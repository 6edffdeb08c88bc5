"""What do the output head and the loss cost, forward and backward, in time and peak memory?

    python benchmarks/loss.py [--rounds 5]

`modern_llm`'s fused loss next to plain logits and, where torch has it, `torch.nn.functional.linear_cross_entropy`
with and without chunks. All sides must agree on the loss, or the script stops.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from harness import in_own_process, interleave, peak_memory_mib, print_table
from torch import Tensor
from torch.nn import functional as F

from modern_llm.models.fused_loss import linear_cross_entropy

TOKENS, WIDTH, VOCABULARIES = 2048, 384, (8192, 50304)


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, targets, reduction="sum")


def _torch_default(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, weight, targets, reduction="sum")


def _torch_chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.linear_cross_entropy(
        hidden, weight, targets, reduction="sum", options=torch.nn.LinearCrossEntropyOptions()
    )


RIVALS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"logits + cross_entropy": _plain}
if hasattr(F, "linear_cross_entropy"):
    RIVALS |= {"torch, default": _torch_default, "torch, chunked": _torch_chunked}
RIVALS["modern_llm"] = linear_cross_entropy


def _problem(vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    hidden = torch.randn(TOKENS, WIDTH, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, WIDTH, device=device, dtype=dtype).mul_(0.05).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (TOKENS,), device=device)


def _step(name: str, problem: tuple[Tensor, Tensor, Tensor]) -> float:
    for tensor in problem[:2]:
        tensor.grad = None
    loss = RIVALS[name](*problem)
    loss.backward()
    return loss.item()


def peak(name: str, vocabulary: int) -> float:
    """MiB that one step takes above the inputs; run in a process of its own."""
    hidden, weight, targets = (t.detach()[:16] for t in _problem(64))
    _step(name, (hidden.requires_grad_(), weight.requires_grad_(), targets % 16))  # what libraries allocate once
    problem = _problem(vocabulary)
    before = peak_memory_mib()
    _step(name, problem)
    return peak_memory_mib() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "VOCABULARY"), help="print one peak and stop")
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(arguments.peak[0], int(arguments.peak[1])))
        return
    rows = []
    for vocabulary in VOCABULARIES:
        problem = _problem(vocabulary)
        losses = {name: _step(name, problem) for name in RIVALS}
        if max(losses.values()) > 1.01 * min(losses.values()):
            sys.exit(f"the losses differ: {losses}")
        took = interleave({name: partial(_step, name, problem) for name in RIVALS}, arguments.rounds)
        for name, time in took.items():
            memory = float(in_own_process("--peak", name, str(vocabulary)))
            ratio = took["modern_llm"] / time
            rows.append([name, vocabulary, f"{1000 * time:.0f}", f"{1 / ratio:.2f}x", f"{memory:.0f}"])
    title = f"Output head and loss, forward and backward: {TOKENS} tokens, width {WIDTH}"
    print_table(title, ["side", "vocabulary", "ms", "of modern_llm's time", "peak MiB above inputs"], rows)


if __name__ == "__main__":
    main()
