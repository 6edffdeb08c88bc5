"""The convolution in documents, branches and padded texts, against one that walks from token to token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modern_llm.models.embedding.predecessors import Predecessors
from modern_llm.models.short_convolution import short_convolution

REAL = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1, 1], [1] * 9])
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1, 1]])
# In the second document of the second row, both branches go on from its trunk of two tokens.
BRANCHES = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 2, 2, 2]])


def walked(x: Tensor, kernel: Tensor, marks: dict[str, Tensor]) -> Tensor:
    """Token by token."""

    def mark(name: str, b: int, t: int, otherwise: int) -> int:
        return int(marks[name][b, t]) if name in marks else otherwise

    def before(b: int, t: int) -> int | None:
        for s in range(t - 1, -1, -1):
            same = mark("document_ids", b, s, 0) == mark("document_ids", b, t, 0)
            above = mark("branch_ids", b, s, 0) in (0, mark("branch_ids", b, t, 0))
            if same and above and mark("attention_mask", b, s, 1):
                return s
        return None

    rows = []
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            total, place = x[b, t], t
            for weight in kernel:
                total = total + weight * x[b, place]
                found = before(b, place)
                if found is None:
                    break
                place = found
            rows.append(total)
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize(
    "marks",
    [
        {},
        {"attention_mask": REAL},
        {"document_ids": DOCUMENTS},
        {"document_ids": DOCUMENTS, "branch_ids": BRANCHES},
        {"attention_mask": REAL, "document_ids": DOCUMENTS, "branch_ids": BRANCHES},
    ],
)
def test_outputs_and_gradients(width: int, marks: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 5, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(width, 5, dtype=torch.float64, requires_grad=True)
    real = marks.get("attention_mask", torch.ones(2, 9))[..., None].double()  # what padding comes to is not read
    slope = torch.randn(2, 9, 5, dtype=torch.float64) * real
    expected = walked(x, kernel, marks)
    wanted = torch.autograd.grad((expected * slope).sum(), (x, kernel))
    found = short_convolution(x, kernel, Predecessors(**marks), "one")
    torch.testing.assert_close(found * real, expected * real)
    torch.testing.assert_close(torch.autograd.grad((found * slope).sum(), (x, kernel)), wanted)
    with torch.no_grad():
        torch.testing.assert_close(short_convolution(x, kernel, Predecessors(**marks), "one") * real, expected * real)
