"""Import, export and logits against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from modern_llm.models import from_hugging_face, to_hugging_face
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.rope import LinearRope, Llama3Rope, NoRope, NTKRope, PlainRope, YarnRope
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.config import MoEConfig
from modern_llm.models.feed_forward.kinds import ReLU2
from modern_llm.models.interop import import_config

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _rope(kind: str, **settings: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 5000.0, **settings}}


LLAMA3 = _rope("llama3", factor=4.0, original_max_position_embeddings=16, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}
SOURCES = {
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-gqa": ("llama", {}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-head-dim": ("llama", {"head_dim": 16}),
    "llama-linear": ("llama", _rope("linear", factor=4.0)),
    "llama-llama3": ("llama", LLAMA3),
    "llama-yarn": ("llama", _rope("yarn", **YARN)),
    "llama-yarn-own-scale": ("llama", _rope("yarn", attention_factor=0.8, beta_fast=8.0, beta_slow=2.0, **YARN)),
    "llama-yarn-smooth": ("llama", _rope("yarn", truncate=False, **YARN)),
    "llama-geglu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama-gelu-new": ("llama", {"hidden_act": "gelu_new"}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", SLIDING),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-window": ("qwen3", {"head_dim": 8, **SLIDING}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "mixtral-window": ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 3, "sliding_window": 5}),
}


def _settings(family, overrides):
    return AutoConfig.for_model(family, **(SHAPE | {"tie_word_embeddings": False} | overrides))


@pytest.fixture(scope="module")
def theirs(request, loud):
    """A transformers model with loud weights, by its name in `SOURCES`."""
    family, overrides = SOURCES[request.param]
    model = AutoModelForCausalLM.from_config(_settings(family, overrides), attn_implementation="eager")
    return loud(model.float())


every_source = pytest.mark.parametrize("theirs", SOURCES, indirect=True)


@every_source
@torch.no_grad()
def test_logits_agree_with_transformers(theirs, token_ids):
    ours, ids = from_hugging_face(theirs), token_ids(2, 20)
    expected = theirs(ids).logits
    assert 1 < expected.std() < 10
    torch.testing.assert_close(ours(ids).logits, expected, atol=1e-4, rtol=1e-4)


@every_source
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_logits_agree_with_transformers(theirs, token_ids, side):
    ours, ids = from_hugging_face(theirs), token_ids(3, 20)
    index = torch.arange(20)
    padding = torch.tensor([[0], [7], [16]])
    mask = index >= padding if side == "left" else index < 20 - padding
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask.long(), position_ids=positions).logits
    got = ours(ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(got[mask], expected[mask], atol=1e-4, rtol=1e-4)
    assert got.isfinite().all()


@every_source
@torch.no_grad()
def test_export_restores_every_weight_and_reimport_every_logit(theirs, token_ids):
    ours, ids = from_hugging_face(theirs), token_ids(2, 20)
    exported = to_hugging_face(ours)
    before, after = theirs.state_dict(), exported.state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name
    again = from_hugging_face(exported)
    assert again.config == ours.config
    assert torch.equal(again(ids).logits, ours(ids).logits)
    torch.testing.assert_close(exported(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("theirs", ["llama-tied", "qwen3", "mixtral"], indirect=True)
def test_import_copies_the_weights(theirs):
    ours = from_hugging_face(theirs)
    shared = {p.data_ptr() for p in theirs.parameters()} & {p.data_ptr() for p in ours.parameters()}
    assert not shared
    assert (ours.head.weight is ours.embedding.weight) == theirs.config.tie_word_embeddings
    assert all(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("theirs", ["llama-tied", "llama-llama3", "qwen2-window", "mixtral"], indirect=True)
@torch.no_grad()
def test_folder_roundtrip(theirs, token_ids, tmp_path):
    ours, ids = from_hugging_face(theirs), token_ids(2, 20)
    to_hugging_face(ours).save_pretrained(tmp_path)
    again = from_hugging_face(str(tmp_path))
    assert again.config == ours.config
    assert torch.equal(again(ids).logits, ours(ids).logits)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "family"),
    [
        ({}, "llama"),
        ({"group_size": 2, "rope": LinearRope(factor=3.0)}, "llama"),
        ({"rope": NTKRope(factor=3.0)}, "llama"),
        ({"rope": YarnRope(factor=3.0, original_max_seq_len=8)}, "llama"),
        ({"rope": Llama3Rope(factor=3.0, original_max_seq_len=8), "tie_embeddings": False}, "llama"),
        ({"sliding_window": 5}, "mistral"),
        ({"qkv_bias": True}, "qwen2"),
        ({"qkv_bias": True, "sliding_window": 5}, "qwen2"),
        ({"qk_norm": True, "head_dim": 16, "sliding_window": 5}, "qwen3"),
        ({"moe": MoEConfig(4, 2, expert_hidden_size=24), "sliding_window": 5}, "mixtral"),
    ],
)
@torch.no_grad()
def test_export_of_our_own_model_agrees(tiny, token_ids, settings, family):
    model, ids = tiny(**settings), token_ids(2, 20)
    exported = to_hugging_face(model)
    assert exported.config.model_type == family
    torch.testing.assert_close(exported(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_export_keeps_the_dtype(tiny):
    exported = to_hugging_face(tiny().bfloat16())
    assert {p.dtype for p in exported.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in from_hugging_face(exported).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_attention_sinks": True, "sinks": LearnableSinks()}, "LearnableSinks"),
        ({"use_attention_sinks": True, "sinks": SinkLogits()}, "SinkLogits"),
        ({"use_attention_sinks": True, "sinks": StreamingSinks()}, "use_attention_sinks=false"),
        ({"rope": NoRope()}, "NoRope"),
        ({"ffn": ReLU2()}, "ReLU2"),
        ({"layers": LayerPattern("SL", 4)}, "layers that see differently"),
        ({"layers": LayerPattern(rotary="RN")}, "layers that see differently"),
        ({"qk_norm": True, "qkv_bias": True}, "qk_norm, qkv_bias"),
        ({"qk_norm": True, "moe": MoEConfig(2, 2)}, "moe, qk_norm"),
        ({"moe": MoEConfig(2, 1)}, "top_k=1"),
    ],
)
def test_export_names_what_no_family_can_express(tiny, settings, named):
    with pytest.raises(ValueError, match=f"{named}.*used from its run, with model=from_run"):
        to_hugging_face(tiny(**settings))


@pytest.mark.parametrize(
    ("settings", "family", "named"),
    [
        ({"sliding_window": 5}, "llama", "llama cannot express: sliding_window"),
        ({}, "mixtral", "mixtral cannot express"),
        ({}, "gpt2", "family='gpt2'"),
    ],
)
def test_export_names_what_the_asked_family_cannot_express(tiny, settings, family, named):
    with pytest.raises(ValueError, match=named):
        to_hugging_face(tiny(**settings), family)


@pytest.mark.parametrize(
    ("family", "overrides", "named"),
    [
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"attention_bias": True}, "attention_bias=True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama", _rope("dynamic", factor=2.0), "rope_type='dynamic'"),
        ("qwen2", SLIDING | {"max_window_layers": 1}, "layer_types"),
        ("gpt2", {}, "model_type='gpt2'"),
    ],
)
def test_import_names_what_it_cannot_express(family, overrides, named):
    config = AutoConfig.for_model("gpt2") if family == "gpt2" else _settings(family, overrides)
    with pytest.raises(ValueError, match=named):
        import_config(config)


def test_import_reads_every_number():
    config = import_config(_settings("llama", LLAMA3 | {"rms_norm_eps": 3e-4}))
    assert config.rope == Llama3Rope(5000.0, 4.0, 16, 1.0, 4.0)
    assert (config.norm_eps, config.max_seq_len, config.n_kv_heads) == (3e-4, 64, 2)
    assert import_config(_settings("llama", {})).rope == PlainRope(10000.0)
