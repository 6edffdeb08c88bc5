"""Hugging Face models behind our protocols say what they say by themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from foreign_models import SOURCES, foreign_config
from made_models import byte_tokenizer
from parts import EVERY as PARTS

from modern_llm.evaluation.answering import rank_answers, write_answers
from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.models.decoding.generation import continue_ids, generate
from modern_llm.pretrained.causal import HuggingFaceCausalLM
from modern_llm.pretrained.loaded import LoadedModel, OwnDecoder
from modern_llm.pretrained.seq2seq import HuggingFaceSeq2Seq
from modern_llm.pretrained.settings import LoRA
from modern_llm.training.optimization.optimizers import AdamW

Load = Callable[..., LoadedModel]
DECODERS = ["gpt2", "llama", "own"]
EVERY = [*DECODERS, "t5", "flan"]


def logits_of(loaded: LoadedModel, *args: torch.Tensor, **kwargs: object) -> torch.Tensor:
    return loaded.model.hidden_states(*args, **kwargs).hidden @ loaded.model.output_head.weight.t()  # type: ignore[operator]


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 257, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_logits_are_those_of_transformers(load: Load, kind: str, side: str) -> None:
    loaded = load(kind)
    ids, mask = random_ids(3, 12), torch.ones(3, 12, dtype=torch.long)
    if side == "left":
        mask[1, :5] = 0
    elif side == "right":
        mask[1, 7:] = 0
    ours = logits_of(loaded, ids, None if side == "none" else mask)
    alone = [ids[row][mask[row] == 1] for row in range(3)]
    for row, text in enumerate(alone):
        theirs = loaded.base(text[None]).logits[0]
        torch.testing.assert_close(ours[row][mask[row] == 1], theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["granite", "gemma2"])
@torch.no_grad()
def test_logits_with_a_factor_or_a_cap_are_those_of_transformers(name: str) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(foreign_config(*SOURCES[name])).eval()
    for parameter in theirs.parameters():
        parameter.mul_(3)
    model, ids = HuggingFaceCausalLM(theirs), random_ids(2, 9) % 61
    logits = model.output_head.logits(model.hidden_states(ids).hidden)
    torch.testing.assert_close(logits, theirs(ids).logits)


@pytest.mark.parametrize("name", ["layer norms on both sides, biases", "clamped", "scales", "all",
                                  "parallel blocks", "state spaces, every second block ours"])  # fmt: skip
@torch.no_grad()
def test_adapters_on_a_decoder_with_parts_merge_into_it(name: str) -> None:
    torch.manual_seed(0)
    config = ModernLLMConfig(vocab_size=257, max_seq_len=24, d_model=32, n_layers=3, n_heads=4, **PARTS[name])
    loaded = OwnDecoder.of(ModernDecoderLM(config).eval(), byte_tokenizer(), "own").with_lora(LoRA())
    loaded.model.eval()
    before = logits_of(loaded, random_ids(2, 12))
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.2)
    adapted = logits_of(loaded, random_ids(2, 12))
    assert (adapted - before).abs().max() > 0.01
    torch.testing.assert_close(logits_of(loaded.merged(), random_ids(2, 12)), adapted, atol=1e-4, rtol=1e-4)


def test_a_model_without_a_linear_map_in_its_blocks_has_no_place_for_adapters() -> None:
    config = ModernLLMConfig(vocab_size=257, d_model=32, n_layers=3, n_heads=4, **PARTS["state spaces"])
    loaded = OwnDecoder.of(ModernDecoderLM(config), byte_tokenizer(), "own")
    with pytest.raises(ValueError, match=r"no linear map \(model\.block\)"):
        loaded.with_lora(LoRA())


@pytest.mark.parametrize("kind", ["t5", "flan"])
def test_seq2seq_logits_are_those_of_transformers(load: Load, kind: str) -> None:
    loaded = load(kind)
    model = loaded.model
    assert isinstance(model, HuggingFaceSeq2Seq)
    source, target = random_ids(2, 9), random_ids(2, 5, seed=1)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    theirs = loaded.base(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
    ours = model.decoder_states(model.encode(source, mask), target) @ model.output_head.weight.t()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", DECODERS)
def test_packed_documents_stand_alone(load: Load, kind: str) -> None:
    loaded = load(kind)
    ids = random_ids(1, 15)
    documents = torch.tensor([[0] * 6 + [1] * 9])
    packed = logits_of(loaded, ids, document_ids=documents)
    torch.testing.assert_close(packed[:, :6], logits_of(loaded, ids[:, :6]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(packed[:, 6:], logits_of(loaded, ids[:, 6:]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", DECODERS)
def test_cache_and_shared_prefix_give_the_whole_forward_pass(load: Load, kind: str) -> None:
    loaded = load(kind)
    prefix, rest = random_ids(1, 8), random_ids(3, 6, seed=1)
    whole = logits_of(loaded, torch.cat([prefix.expand(3, -1), rest], 1))
    held = loaded.model.new_cache(1, 8)  # type: ignore[operator]
    logits_of(loaded, prefix, cache=held)
    cache = held.repeated(3, 14)
    first = logits_of(loaded, rest[:, :4], cache=cache)
    second = logits_of(loaded, rest[:, 4:5], cache=cache)
    third = logits_of(loaded, rest[:, 5:], cache=cache)
    torch.testing.assert_close(torch.cat([first, second, third], 1), whole[:, 8:], atol=1e-4, rtol=1e-4)
    assert held.length == 8, "the prefix is used again and must not grow"


def test_a_full_cache_says_so(load: Load) -> None:
    loaded = load("gpt2")
    cache = loaded.model.new_cache(1, 4)  # type: ignore[operator]
    with pytest.raises(ValueError, match="holds 4 tokens and was given 5"):
        logits_of(loaded, random_ids(1, 5), cache=cache)
    with pytest.raises(ValueError, match="Give a number of tokens"):
        loaded.model.new_cache(1, None)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_left_padded_batches_generate_what_transformers_generates_one_by_one(load: Load, kind: str) -> None:
    loaded = load(kind)
    prompts = [random_ids(n, seed=n).tolist() for n in (3, 11, 6)]
    length = max(map(len, prompts))
    padded = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    together = generate(loaded.model, padded, mask, max_new_tokens=12)  # type: ignore[arg-type]
    for prompt, ours in zip(prompts, together, strict=True):
        theirs = loaded.base.generate(  # type: ignore[operator]
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=999, pad_token_id=0
        )
        assert ours == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", EVERY)
def test_answers_do_not_depend_on_their_batch(load: Load, kind: str) -> None:
    """Left-padded and behind a shared prefix, or alone: token for token the same."""
    loaded = load(kind)
    start = random_ids(7, seed=5).tolist()
    prompts = [[*start, *random_ids(n, seed=n).tolist()] for n in (3, 11, 6, 1, 9)]
    written = write_answers(
        loaded.model,
        loaded.tokenizer,
        prompts,
        max_new_tokens=10,
        batch_size=3,  # type: ignore[arg-type]
    )
    alone = [
        write_answers(loaded.model, loaded.tokenizer, [p], max_new_tokens=10, batch_size=1)[0]  # type: ignore[arg-type]
        for p in prompts
    ]
    assert written == alone
    assert len({w.text for w in written}) > 1, "the model says the same to everything, which shows nothing"


@pytest.mark.parametrize("kind", ["t5", "flan"])
def test_t5_generates_what_transformers_generates(load: Load, kind: str) -> None:
    loaded = load(kind)
    prompts = [random_ids(n, seed=n).tolist() for n in (4, 9)]
    ours = write_answers(
        loaded.model,
        loaded.tokenizer,
        prompts,
        max_new_tokens=8,
        batch_size=2,  # type: ignore[arg-type]
    )
    for prompt, answer in zip(prompts, ours, strict=True):
        theirs = loaded.base.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)  # type: ignore[operator]
        assert answer.text == loaded.tokenizer.decode(theirs[0, 1:].tolist())


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("lengths", [(1, 1), (2, 3)])
def test_likelihoods_are_those_of_transformers(load: Load, kind: str, lengths: tuple[int, int]) -> None:
    """Answers of one token and of several, behind a shared prefix, against one whole forward pass each."""
    loaded = load(kind)
    start = random_ids(6, seed=5).tolist()
    prompts = [[*start, *random_ids(n, seed=n).tolist()] for n in (2, 7, 4)]
    answers = [[random_ids(n, seed=10 + n + c).tolist() for c, n in enumerate(lengths)]] * len(prompts)
    answers[1] = answers[1][:1]  # prompts may have answers of their own
    ours = rank_answers(loaded.model, prompts, answers, batch_size=2)  # type: ignore[arg-type]
    assert ours[1, 1] == -np.inf
    for row, prompt in enumerate(prompts):
        for column, answer in enumerate(answers[row]):
            if loaded.is_seq2seq:
                inputs = torch.tensor([[0, *answer[:-1]]])
                logits = loaded.base(input_ids=torch.tensor([prompt]), decoder_input_ids=inputs).logits[0]
            else:
                logits = loaded.base(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            theirs = logits.log_softmax(-1)[range(len(answer)), answer].sum().item()
            assert ours[row, column] == pytest.approx(theirs, rel=1e-4, abs=2e-4)


def test_an_answer_may_begin_on_a_new_line() -> None:
    from modern_llm.models.decoding.endings import stop_place

    assert stop_place("\n\nTea.\nMore", ["\n"]) == 6
    assert stop_place("\n\n", ["\n"]) is None
    assert stop_place(" Tea.", ["\n", "a"]) == 3


@pytest.mark.parametrize("kind", DECODERS)
def test_stop_strings_and_the_end_of_text_are_told_from_the_limit(load: Load, kind: str) -> None:
    loaded = load(kind)
    prompt = random_ids(5, seed=9).tolist()
    whole = generate(loaded.model, torch.tensor([prompt]), max_new_tokens=12)[0]  # type: ignore[arg-type]
    text = loaded.tokenizer.decode(whole)
    stop = text[4] if len(text) > 4 else text[-1]
    (cut,) = continue_ids(loaded.model, loaded.tokenizer, [prompt], max_new_tokens=12, stop=[stop])  # type: ignore[arg-type]
    assert cut.text == text[: text.find(stop)]
    assert cut.ended
    (free,) = continue_ids(loaded.model, loaded.tokenizer, [prompt], max_new_tokens=3)  # type: ignore[arg-type]
    assert not free.ended


@pytest.mark.parametrize("kind", ["gpt2", "own"])
def test_all_that_is_trained_beside_16_bit_weights_is_fp32(load: Load, kind: str) -> None:
    """Adapters and classification head, their gradients and their moments; what is frozen stays 16-bit."""
    loaded = load(kind, labels=["no", "yes"])
    loaded.model.to(torch.bfloat16)
    loaded = loaded.with_lora(LoRA(rank=2, dropout=0.0))
    trained = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert any("score" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    frozen = {p.dtype for n, p in loaded.model.named_parameters() if n not in trained and "score" not in n}
    assert frozen == {torch.bfloat16}
    optimizer = AdamW(lr=1e-6).build(loaded.model)
    before = {name: p.detach().clone() for name, p in trained.items()}
    with torch.autocast("cpu", torch.bfloat16):
        logits = loaded.model.logits(random_ids(4, 12), torch.full((4,), 11))  # type: ignore[operator]
        torch.nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 1, 0])).backward()
    optimizer.step()
    for name, p in trained.items():
        assert p.grad is not None, name
        assert {t.dtype for t in optimizer.state[p].values()} == {torch.float32}, name
        if "score" in name:  # a 16-bit head would swallow a step of a millionth
            assert (p != before[name]).float().mean() > 0.9
