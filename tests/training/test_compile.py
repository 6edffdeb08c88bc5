"""`hardware.compile`: the same numbers, one graph per kind of block, and none for decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import model, trainer
from made_models import byte_tokenizer
from parts import PARTS
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as of_torch

from modern_llm.data.text.packing import PackedStream
from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.evaluation.answering import write_answers
from modern_llm.evaluation.metrics.registry import directions
from modern_llm.models import ModernDecoderLM
from modern_llm.models.decoding.generation import generate
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.objectives.seq2seq import Seq2Seq
from modern_llm.pretrained.causal import HuggingFaceCausalLM
from modern_llm.training import runtime
from modern_llm.training.callbacks import Callback
from modern_llm.training.dropout import switch_off_dropout
from modern_llm.training.runtime import Runtime, attend_flexibly
from modern_llm.training.settings import Hardware

HARDWARE = Hardware(device="cpu", precision="fp32", num_threads=1, compile=True)


def opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(3)
    sizes = {"vocab_size": 257, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return HuggingFaceCausalLM(OPTForCausalLM(OPTConfig(**sizes, max_position_embeddings=64, word_embed_proj_dim=32)))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is compiled, run by torch's eager operators: what is tested is the tracing, not the code generator."""
    found: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        found.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(runtime, "has_cpp_compiler", lambda: True)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    monkeypatch.setattr(
        ModernDecoderLM, "compile_states", partialmethod(ModernDecoderLM.compile_states, backend=backend)
    )
    return found


@pytest.mark.parametrize("name", PARTS)
def test_a_deep_model_compiles_a_few_blocks_and_leaves_none_uncompiled(graphs: list[Any], name: str) -> None:
    """More blocks than torch compiles one function anew; they differ where a part hands something on from one block to
    another alone."""
    deep = model(n_layers=10, **PARTS[name]).train()
    Runtime(HARDWARE).prepare(deep)
    ids = torch.randint(1, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    LanguageModeling()(deep, {"input_ids": ids, "labels": ids.roll(-1, 1)}).loss_sum.backward()
    two_kinds = (
        "value_table",
        "linear attention in every second block",
        "parallel blocks, windows, some without positions",
        "state spaces, every second block ours",
    )
    assert len(graphs) == (10 if name in ("unet", "backout") else 3 if name in two_kinds else 2)


def test_without_a_compiler_a_run_goes_on_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    net = model().train()
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        Runtime(HARDWARE).prepare(net)
    counters.clear()
    ids = torch.arange(32).view(2, 16)
    LanguageModeling()(net, {"input_ids": ids, "labels": ids}).loss_sum.backward()
    assert not counters["frames"]


class Lengths(PackedStream):
    """Batches of many lengths, some of them smaller."""

    same_shape = False  # type: ignore[assignment]

    def __next__(self) -> dict[str, torch.Tensor]:
        batch = super().__next__()
        length, size = 5 + self.position * 7 % 11, 3 if self.position % 5 == 0 else 4
        return {name: (t[:size, :length] if t.dim() == 2 else t[:size]).clone() for name, t in batch.items()}


@pytest.mark.parametrize("what", [True, "whole"])
@pytest.mark.parametrize("data", [Lengths, PackedStream])
def test_a_run_compiles_each_kind_of_block_twice_at_most(
    data: Any, what: bool | str, graphs: list[Any], tmp_path: Path, corpus: TokenCorpus
) -> None:
    """40 steps, evaluations in between, and a text at the end: with gradients, and without; nothing is compiled later
    than by the first evaluation, and nothing breaks. As a whole, there is one kind of block."""
    compiled: list[int] = []

    class Watch(Callback):
        def on_step(self, step: int, loss: float) -> None:
            compiled.append(len(graphs))

    class Loss:
        metrics = directions(["validation_loss"])

        def __call__(self, net: Any) -> dict[str, float]:
            found = []
            with torch.no_grad():
                for size in (4, 3):
                    ids = torch.randint(1, 50, (size, 16), generator=torch.Generator().manual_seed(0))
                    found.append(LanguageModeling()(net, {"input_ids": ids, "labels": ids}).loss_sum.item())
            return {"validation_loss": sum(found)}

    counters.clear()
    loop = trainer(tmp_path, {"compile": what}, max_steps=40, eval_every=10, log_every=40)
    loop.callbacks = [Watch()]
    net = model(n_layers=4)
    loop.fit(net, LanguageModeling(), data(corpus, 16, 4, seed=0), Loss())
    generate(net, torch.tensor([[5, 6, 7]]), max_new_tokens=9)
    kinds = 1 if what == "whole" else 2  # what the first block reads is the embedding, which all are handed besides
    assert compiled[:10] == [kinds] * 10
    assert compiled[10:] == [len(graphs)] * 30
    assert len(graphs) <= (2 if data is Lengths else 3) * kinds
    assert not counters["graph_break"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flexible_attention_of_every_length_is_the_graphs_of_one(
    monkeypatch: pytest.MonkeyPatch, graphs: list[Any]
) -> None:
    """Blocks differ in number, documents in place, batches in size."""
    monkeypatch.setattr(of_torch, "_validate_device", lambda *tensors: None)  # it has no kernel for a CPU's gradients
    plain, net = (model(n_layers=3, d_model=64, sliding_window=50, max_seq_len=400).train() for _ in range(2))
    attend_flexibly(net)
    Runtime(HARDWARE).prepare(net)
    counters.clear()
    for length, rows in ((300, 2), (20, 3), (390, 2)):
        ids = torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(length))
        batch = {"input_ids": ids, "labels": ids.roll(-1, 1), "document_ids": (ids == 7).long().cumsum(1)}
        with torch._dynamo.config.patch(specialize_float=True):
            loss = LanguageModeling()(net, batch).loss_sum
            loss.backward()
        torch.testing.assert_close(loss, LanguageModeling()(plain, batch).loss_sum)
        assert len(graphs) == 2  # the first block, and all others
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", PARTS)
def test_a_whole_model_is_one_graph_and_computes_the_same(graphs: list[Any], name: str) -> None:
    net = model(n_layers=3, **PARTS[name]).train()
    ids = torch.randint(1, 50, (2, 16), generator=torch.Generator().manual_seed(0))

    def gradients() -> list[torch.Tensor]:
        net.zero_grad()
        LanguageModeling()(net, {"input_ids": ids, "labels": ids.roll(-1, 1)}).loss_sum.backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    expected = gradients()
    Runtime(replace(HARDWARE, compile="whole")).prepare(net)
    torch.testing.assert_close(gradients(), expected, rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama", "t5", "own"])
def test_compiled_training_is_the_same_and_decoding_compiles_nothing(
    load: Callable[..., Any], kind: str, graphs: list[Any]
) -> None:
    net: Any = opt() if kind == "opt" else load(kind).model
    net.train()
    switch_off_dropout(net)
    ids = torch.randint(1, 257, (4, 24), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1)}
    objective: Any = LanguageModeling()
    if kind == "t5":
        objective = Seq2Seq()
        batch |= {"attention_mask": torch.ones_like(ids), "decoder_input_ids": ids.roll(1, 1)}
    before = objective(net, batch).loss_sum
    Runtime(HARDWARE).prepare(net)
    after = objective(net, batch).loss_sum
    after.backward()
    torch.testing.assert_close(after, before)
    compiled = len(graphs)
    assert 1 <= compiled <= 6  # an encoder's and a decoder's first block have position biases that the others lack
    write_answers(net.eval(), byte_tokenizer(), [[5, 6, 7]], max_new_tokens=20, batch_size=1)
    # T5's two encoder blocks read the prompt once, without gradients.
    assert len(graphs) == compiled + (2 if kind == "t5" else 0)
