"""What comes out of training does not depend on how many rows are computed at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Ragged, model, rows, trainer
from torch import nn
from torch.nn import functional as F

from modern_llm.data.batches import LengthBatches
from modern_llm.data.preferences.read import EncodedPair, PairBatch, with_mismatched
from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.models import MoEConfig
from modern_llm.objectives.base import Objective
from modern_llm.objectives.classification import Classification
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.objectives.preference import PreferenceOptimisation
from modern_llm.objectives.preference_losses import KTO
from modern_llm.training.dropout import dropout_by_row
from modern_llm.training.optimization.optimizers import AdamW

EVERYWHERE = {f"{place}_dropout": 0.2 for place in ("embedding", "attention", "ffn", "output")}
EXPERTS = MoEConfig(4, 2, balance_loss_weight=0.1, z_loss_weight=0.01)


# Where gradients are near 0, as of an expert with few tokens, AdamW blows rounding up by 1 / eps.
EPS = 1e-6


def trained(
    folder: Path, net: nn.Module, data: Any, objective: Objective, micro: int | None, steps: int, **hardware: Any
) -> list[torch.Tensor]:
    torch.manual_seed(11)
    loop = trainer(folder, {"micro_batch_size": micro, **hardware}, max_steps=steps, batch_size=7, log_every=5,
                   optimizer=AdamW(lr=3e-3, eps=EPS), save_every=100)  # fmt: skip
    loop.fit(net, objective, data, None)
    return [p.detach() for p in net.parameters() if p.requires_grad]


def assert_the_same_however_cut(
    tmp_path: Path,
    make: Callable[[], nn.Module],
    data: Callable[[], Any],
    objective: Objective,
    steps: int = 30,
    bound: float = 1e-5,
) -> None:
    whole = trained(tmp_path / "whole", make(), data(), objective, None, steps)
    logged = rows(tmp_path / "whole")
    for micro in (1, 3):
        cut = trained(tmp_path / str(micro), make(), data(), objective, micro, steps)
        for mine, reference in zip(cut, whole, strict=True):
            torch.testing.assert_close(mine, reference, atol=bound, rtol=0)
        for row, expected in zip(rows(tmp_path / str(micro)), logged, strict=True):
            drop = ("seconds", "tokens_per_second", "peak_memory_gb")
            assert {k: v for k, v in row.items() if k not in drop} == pytest.approx(
                {k: v for k, v in expected.items() if k not in drop}, rel=2e-4
            )


@pytest.mark.parametrize(
    "settings",
    [{}, {"dropout": 0.2}, EVERYWHERE, {"moe": EXPERTS}, {"moe": EXPERTS, "dropout": 0.1}],
    ids=["dense", "dropout", "dropout everywhere", "experts", "experts and dropout"],
)
def test_weights_and_metrics_after_thirty_steps(tmp_path: Path, corpus: TokenCorpus, settings: dict[str, Any]) -> None:
    assert_the_same_however_cut(
        tmp_path, lambda: model(**settings), lambda: Ragged(corpus, 16, 7, seed=0), LanguageModeling()
    )


def test_in_double_precision_only_the_last_digits_depend_on_the_cut(tmp_path: Path, corpus: TokenCorpus) -> None:
    net: Callable[[], nn.Module] = lambda: model(moe=EXPERTS, dropout=0.1).double()  # noqa: E731
    assert_the_same_however_cut(tmp_path, net, lambda: Ragged(corpus, 16, 7, seed=0), LanguageModeling(), bound=1e-10)


def test_recomputed_blocks_draw_the_masks_of_their_first_pass(tmp_path: Path, corpus: TokenCorpus) -> None:
    outcomes = []
    for on in (False, True):
        data = Ragged(corpus, 16, 7, seed=0)
        net = model(dropout=0.3, moe=EXPERTS)
        outcomes.append(trained(tmp_path / str(on), net, data, LanguageModeling(), 3, 4, activation_checkpointing=on))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_ktos_reference_point_and_experts(tmp_path: Path) -> None:
    """Both are of the whole batch."""
    ids = torch.randint(1, 50, (21, 30), generator=torch.Generator().manual_seed(3)).tolist()
    pairs = [EncodedPair(i, row[: 3 + i % 3], row[8 : 10 + i % 5], row[18 : 21 + i % 4], (-21.0, -19.0, -22.0 - i % 3))
             for i, row in enumerate(ids)]  # fmt: skip
    pairs = with_mismatched(pairs, 16, seed=0)
    data = lambda: LengthBatches(pairs, 7, 0, PairBatch(0), "pairs")  # noqa: E731
    objective = PreferenceOptimisation(KTO(0.5, 1.3))
    assert_the_same_however_cut(tmp_path, lambda: model(moe=EXPERTS), data, objective, steps=8)
    assert {row["reference_point"] > 0 for row in rows(tmp_path / "1")} == {True}


def gpt2(lora: bool, attention: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    from modern_llm.pretrained.causal import HuggingFaceCausalLM

    torch.manual_seed(0)
    share = 0.0 if lora else 0.2
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=16, attn_pdrop=share,
                        resid_pdrop=share, embd_pdrop=share, attn_implementation=attention)  # fmt: skip
    theirs = GPT2LMHeadModel(config)
    if lora:
        adapters = LoraConfig(r=4, lora_dropout=0.3, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
        get_peft_model(theirs, adapters)
    return HuggingFaceCausalLM(theirs)


@pytest.mark.parametrize(
    ("lora", "attention"), [(True, "sdpa"), (False, "sdpa"), (False, "eager")], ids=["lora", "fused", "eager"]
)
def test_dropout_of_transformers_and_of_adapters(
    tmp_path: Path, corpus: TokenCorpus, lora: bool, attention: str
) -> None:
    assert_the_same_however_cut(
        tmp_path, lambda: gpt2(lora, attention), lambda: Ragged(corpus, 16, 7, seed=0), LanguageModeling(), steps=8
    )


def test_recomputed_blocks_of_transformers_draw_the_same_masks(tmp_path: Path, corpus: TokenCorpus) -> None:
    outcomes = []
    for on in (False, True):
        data = Ragged(corpus, 16, 7, seed=0)
        outcomes.append(
            trained(
                tmp_path / str(on), gpt2(False, "sdpa"), data, LanguageModeling(), 3, 4, activation_checkpointing=on
            )
        )
    for mine, reference in zip(*outcomes, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-6, rtol=0)


def test_a_t5_and_a_classifier(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    from modern_llm.objectives.seq2seq import Seq2Seq
    from modern_llm.pretrained.classifier import Classifier
    from modern_llm.pretrained.seq2seq import HuggingFaceSeq2Seq

    class Repeated:
        """The same batch again and again."""

        def __init__(self, batch: dict[str, torch.Tensor]) -> None:
            self.batch = batch

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> dict[str, torch.Tensor]:
            return self.batch

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (7, 12), generator=random)
    lengths = torch.tensor([12, 3, 7, 9, 2, 12, 5])
    mask = (torch.arange(12) < lengths[:, None]).long()
    config = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.2,
                      decoder_start_token_id=0)  # fmt: skip

    def t5() -> nn.Module:
        torch.manual_seed(0)
        return HuggingFaceSeq2Seq(T5ForConditionalGeneration(copy.deepcopy(config)).double())

    targets = ids[:, :5].masked_fill(mask[:, :5] == 0, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :5], "labels": targets,
             "lengths": lengths}  # fmt: skip
    assert_the_same_however_cut(tmp_path / "t5", t5, lambda: Repeated(batch), Seq2Seq(), steps=8)

    def classifier() -> nn.Module:
        return Classifier(model(dropout=0.2), ["a", "b"])

    labelled = {"input_ids": ids, "last": lengths - 1, "labels": torch.arange(7) % 2, "lengths": lengths}
    assert_the_same_however_cut(tmp_path / "c", classifier, lambda: Repeated(labelled), Classification(), steps=8)


def test_masks_have_the_asked_share_and_differ_by_row_call_and_seed() -> None:
    x = torch.ones(4, 50_000)
    with dropout_by_row(seed=1, first_row=0, rows=4):
        first, second = F.dropout(x, 0.3), F.dropout(x, 0.3)
    with dropout_by_row(seed=2, first_row=0, rows=4):
        other = F.dropout(x, 0.3)
    with dropout_by_row(seed=1, first_row=2, rows=2):
        part = F.dropout(x[2:], 0.3)
    assert torch.equal(part, first[2:])
    masks = torch.cat([first, second, other])
    torch.testing.assert_close(masks.unique(), torch.tensor([0.0, 1 / 0.7]))
    share = (masks == 0).float().mean(1)
    assert (share - 0.3).abs().max() < 5 * (0.3 * 0.7 / 50_000) ** 0.5
    together = torch.corrcoef((masks == 0).float()) - torch.eye(12)
    assert together.abs().max() < 5 / 50_000**0.5


def test_outside_a_step_torch_is_as_it_was() -> None:
    plain = F.dropout, F.scaled_dot_product_attention
    state = torch.get_rng_state()
    with dropout_by_row(0, 0, 1):
        F.dropout(torch.ones(1, 3))
        assert F.dropout is not plain[0]
    assert (F.dropout, F.scaled_dot_product_attention) == plain
    assert torch.equal(state, torch.get_rng_state())


def test_the_balance_loss_is_that_of_the_whole_batch(tmp_path: Path, corpus: TokenCorpus) -> None:
    """Its gradient too: that of the loss of one forward pass over all rows."""
    net = model(moe=MoEConfig(4, 1, balance_loss_weight=1.0, z_loss_weight=0.0))
    batch = next(Ragged(corpus, 16, 6, seed=0))
    objective = LanguageModeling()
    parts = [{k: t[i : i + 2] for k, t in batch.items()} for i in (0, 2, 4)]
    known = objective.survey(net, parts)
    targets = objective.count(batch)
    sum(objective(net, part | known).loss(targets, 6) for part in parts).backward()  # type: ignore[union-attr]
    cut = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    output = net(batch["input_ids"], labels=batch["labels"])
    output.loss.backward()
    for mine, p in zip(cut, [p for p in net.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(mine, p.grad, atol=1e-6, rtol=1e-4)
    alone = sum(objective(net, part).loss(targets, 6).item() for part in parts)
    assert abs(alone - output.loss.item()) > 1e-3  # the parts by themselves have other shares


def test_nothing_is_surveyed_where_nothing_is_cut_or_balanced(tmp_path: Path, corpus: TokenCorpus) -> None:
    class Watched(LanguageModeling):
        passes = 0

        def _read(self, model: Any, batch: Any) -> Any:
            self.passes += 1
            return super()._read(model, batch)

    balanced, free = MoEConfig(4, 2), MoEConfig(4, 2, balance_loss_weight=0.0)
    for number, (moe, micro, expected) in enumerate(
        [(balanced, None, 2), (None, 3, 6), (free, 3, 6), (balanced, 3, 12)]
    ):
        objective = Watched()
        trained(tmp_path / str(number), model(moe=moe), Ragged(corpus, 16, 7, seed=0), objective, micro, 2)
        assert objective.passes == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    x = (1 + torch.rand(3, 211, 401, generator=torch.Generator().manual_seed(0))).to(dtype).transpose(1, 2)
    x.requires_grad_()
    with dropout_by_row(7, 0, 3):
        out = torch.nn.functional.dropout(x, p)
    out.sum().backward()
    kept = out != 0
    share = kept.double().mean(dim=(1, 2))
    assert (share - (1 - p)).abs().max() < 5 * (p * (1 - p) / x[0].numel()) ** 0.5 + 2**-15
    torch.testing.assert_close(out, torch.where(kept, x / (1 - p), torch.zeros((), dtype=dtype)))
    torch.testing.assert_close(x.grad, kept.to(dtype) / (1 - p))
    assert not torch.equal(kept[0], kept[1])
    neighbours = (kept[..., 1:] & kept[..., :-1]).double().mean()  # four are drawn at a time, each by itself
    assert abs(neighbours - (1 - p) ** 2) < 0.01
