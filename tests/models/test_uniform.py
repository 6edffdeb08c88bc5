"""Random numbers of texts that enter and leave: those that a generator of the text gives one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modern_llm.models import generate
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.models.decoding.uniform import UniformNumbers

HERE = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_text_gets_those_of_its_generator(dtype: torch.dtype) -> None:
    expected = {
        seed: torch.cat([torch.rand(1, generator=g, dtype=dtype) for _ in range(400)]).tolist()
        for seed in (3, 1, 4, 8)
        for g in [torch.Generator().manual_seed(seed)]
    }
    found: dict[int, list[float]] = {seed: [] for seed in expected}

    def take(seeds: list[int], numbers: UniformNumbers, count: int) -> None:
        for _ in range(count):
            for seed, number in zip(seeds, numbers.next(dtype)[:, 0].tolist(), strict=True):
                found[seed].append(number)

    numbers = UniformNumbers([3, 1], HERE)
    take([3, 1], numbers, 50)
    more = UniformNumbers([4], HERE)
    take([4], more, 1)
    numbers = numbers.at([1]).with_more(more)
    take([1, 4], numbers, 90)
    more = UniformNumbers([8], HERE)
    take([8], more, 70)
    numbers = numbers.at([1, 0]).with_more(more)
    take([4, 1, 8], numbers, 200)
    take([4, 1], numbers.at([0, 1]), 59)
    assert [len(found[seed]) for seed in (3, 1, 4, 8)] == [50, 399, 350, 270]
    for seed, given in found.items():
        assert given == expected[seed][: len(given)]


class Calls(TorchDispatchMode):
    """Operations, each of them a launch on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_drawn_token_of_many_texts_is_as_many_launches_as_one_of_few(tiny, token_ids) -> None:
    model, calls = tiny(max_seq_len=64), {}
    for texts in (2, 40):
        for tokens in (10, 30):
            with Calls() as counted:
                generate(model, token_ids(texts, 5), max_new_tokens=tokens, sampling=Sampling(temperature=1.0))
            calls[texts, tokens] = counted.count
    assert calls[40, 30] - calls[40, 10] == calls[2, 30] - calls[2, 10]
