"""Import, export and logits against transformers."""

from __future__ import annotations

import json

import pytest
import torch
from foreign_models import LLAMA3, QWEN3_MOE, SHAPE, SLIDING, SOURCES, WRITTEN, foreign_config, rope
from transformers import AutoConfig, AutoModelForCausalLM

from modern_llm.models import from_hugging_face, to_hugging_face
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.rope import LinearRope, Llama3Rope, NoRope, NTKRope, PlainRope, YarnRope
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.config import MoEConfig
from modern_llm.models.embedding.learned_positions import LearnedPositions
from modern_llm.models.feed_forward.kinds import GELU, ClampedSwiGLU, GeGLU, ReLU2
from modern_llm.models.interop.architectures import ARCHITECTURES
from modern_llm.models.interop.importing import import_config
from modern_llm.models.norm_kinds import LayerNormKind


@pytest.fixture(scope="module")
def theirs(request, loud):
    """A transformers model with loud weights, by its name in `SOURCES`."""
    config = foreign_config(*SOURCES[request.param])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return loud(model.float())


every_source = pytest.mark.parametrize("theirs", SOURCES, indirect=True)
every_written = pytest.mark.parametrize("theirs", WRITTEN, indirect=True)
one_each = pytest.mark.parametrize(
    "theirs", {family: name for name, (family, _) in reversed(SOURCES.items())}.values(), indirect=True
)


@every_source
@torch.no_grad()
def test_logits_agree_with_transformers(theirs, token_ids):
    ours, ids = from_hugging_face(theirs), token_ids(2, 20)
    expected = theirs(ids).logits
    assert 0.5 < expected.std() < 20
    torch.testing.assert_close(ours(ids).logits, expected, atol=1e-4, rtol=1e-4)
    cache = ours.new_cache(2, 20)
    pieces = [ours(piece, cache=cache).logits for piece in ids.split([7, 1, 6, *[1] * 6], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-4, rtol=1e-4)


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


@one_each
def test_gradients_agree_with_transformers(theirs, token_ids):
    ours, ids, labels = from_hugging_face(theirs), token_ids(2, 16), token_ids(2, 16, seed=2)
    theirs.zero_grad()
    logits = theirs(ids).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    output = ours(ids, labels=labels)
    (output.loss - sum(output.aux_losses.values())).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        names, layout = ARCHITECTURES[theirs.config.model_type].names.of(name)
        stored = torch.cat([gradients[n] for n in names])
        expected = layout.load(stored, ours.config) - layout.load(torch.zeros_like(stored), ours.config)
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-3, msg=name)


@every_written
@torch.no_grad()
def test_export_restores_every_weight_and_reimport_every_logit(theirs, token_ids):
    ours, ids = from_hugging_face(theirs), token_ids(2, 20)
    exported = to_hugging_face(ours, theirs.config.model_type)
    before, after = theirs.state_dict(), exported.state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name
    again = from_hugging_face(exported)
    assert again.config == ours.config
    assert torch.equal(again(ids).logits, ours(ids).logits)
    torch.testing.assert_close(exported(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("theirs", ["llama-tied", "qwen3", "mixtral", "gpt2-tied"], indirect=True)
def test_import_copies_the_weights(theirs):
    ours = from_hugging_face(theirs)
    shared = {p.data_ptr() for p in theirs.parameters()} & {p.data_ptr() for p in ours.parameters()}
    assert not shared
    assert (ours.head.weight is ours.embedding.weight) == theirs.config.tie_word_embeddings
    assert all(p.requires_grad and p.is_contiguous() for p in ours.parameters())


@pytest.mark.parametrize("theirs", ["llama-tied", "qwen2-some-windows", "qwen3-moe", "gpt-oss"], indirect=True)
@torch.no_grad()
def test_folder_roundtrip(theirs, token_ids, tmp_path):
    ours, ids = from_hugging_face(theirs), token_ids(2, 20)
    to_hugging_face(ours).save_pretrained(tmp_path)
    again = from_hugging_face(str(tmp_path))
    assert again.config == ours.config
    assert torch.equal(again(ids).logits, ours(ids).logits)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


GPT_OSS = {
    "use_attention_sinks": True,
    "sinks": SinkLogits(),
    "ffn": ClampedSwiGLU(),
    "ffn_bias": True,
    "moe": MoEConfig(4, 2, router_bias=True),
}


GPT2 = {
    "embedding": {"learned_positions": LearnedPositions()},
    "rope": NoRope(),
    "norm": LayerNormKind(),
    "ffn": GELU(),
    **dict.fromkeys(("qkv_bias", "o_bias", "ffn_bias"), True),
}


@pytest.mark.parametrize(
    ("settings", "family"),
    [
        ({}, "llama"),
        ({"group_size": 2, "rope": LinearRope(factor=3.0)}, "llama"),
        ({"rope": NTKRope(factor=3.0)}, "llama"),
        ({"rope": YarnRope(factor=3.0, original_max_seq_len=8)}, "llama"),
        ({"rope": Llama3Rope(factor=3.0, original_max_seq_len=8), "tie_embeddings": False}, "llama"),
        ({"qkv_bias": True, "o_bias": True, "ffn_bias": True}, "llama"),
        ({"sliding_window": 5}, "mistral"),
        ({"qkv_bias": True}, "qwen2"),
        ({"qkv_bias": True, "sliding_window": 5}, "qwen2"),
        ({"qkv_bias": True, "layers": LayerPattern("SL", 4)}, "qwen2"),
        ({"qk_norm": True, "head_dim": 16, "sliding_window": 5}, "qwen3"),
        ({"qk_norm": True, "qkv_bias": True, "o_bias": True, "layers": LayerPattern("LS", 4)}, "qwen3"),
        ({"moe": MoEConfig(4, 2, expert_hidden_size=24), "sliding_window": 5}, "mixtral"),
        ({"moe": MoEConfig(4, 2, expert_hidden_size=24), "qk_norm": True}, "qwen3_moe"),
        ({"moe": MoEConfig(4, 1), "qk_norm": True}, "qwen3_moe"),
        (GPT_OSS, "gpt_oss"),
        ({"layers": LayerPattern("SL", 4, "RN"), "ffn_bias": True}, "smollm3"),
        ({"qk_norm": True, "qk_norm_per_head": False, "norm_place": "behind"}, "olmo2"),
        (GPT2, "gpt2"),
        ({"rope": PlainRope(fraction=0.75), "group_size": 2}, "phi3"),
        ({"rope": NTKRope(factor=3.0, fraction=0.75), "sliding_window": 5}, "phi3"),
        (GPT_OSS | {"qkv_bias": True, "o_bias": True, "layers": LayerPattern("SL", 4)}, "gpt_oss"),
    ],
)
@torch.no_grad()
def test_export_of_our_own_model_agrees(tiny, token_ids, settings, family):
    model, ids = tiny(**settings), token_ids(2, 20)
    exported = to_hugging_face(model)
    assert exported.config.model_type == family
    torch.testing.assert_close(exported(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_dtypes_are_kept(tiny, loud):
    exported = to_hugging_face(tiny().bfloat16())
    assert {p.dtype for p in exported.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in from_hugging_face(exported).parameters()} == {torch.bfloat16}
    gemma = loud(AutoModelForCausalLM.from_config(foreign_config(*SOURCES["gemma2"]))).bfloat16()
    assert {name for name, p in from_hugging_face(gemma).named_parameters() if p.dtype == torch.float32} == {
        name for name, _ in from_hugging_face(gemma).named_parameters() if "norm" in name
    }  # 1 + weight, which 16 bit would round


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_attention_sinks": True, "sinks": LearnableSinks()}, "model.sinks=LearnableSinks"),
        ({"use_attention_sinks": True, "sinks": SinkLogits()}, "model.sinks=SinkLogits"),
        ({"use_attention_sinks": True, "sinks": StreamingSinks()}, "use_attention_sinks=false"),
        ({"rope": NoRope()}, "model.rope=NoRope"),
        ({"rope": LinearRope(factor=2.0, fraction=0.5)}, "model.rope=LinearRope.*fraction=0.5"),
        ({"rope": Llama3Rope(fraction=0.75)}, "model.rope=Llama3Rope"),
        ({"ffn": ReLU2()}, "model.ffn=ReLU2"),
        ({"layers": LayerPattern(rotary="RB", other_theta=9.0)}, "model.layers=LayerPattern.*rotary='RB'"),
        ({"layers": LayerPattern("SL", 4), "sliding_window": 9}, "model.layers=LayerPattern.*windows='SL'"),
        ({"qk_norm": True, "qkv_bias": True}, "model.(qk_norm|qkv_bias)=True"),
        ({"moe": MoEConfig(2, 1)}, "top_k=1"),
        ({"moe": MoEConfig(4, 2, normalize_weights=False)}, "normalize_weights=False"),
        ({"norm_place": "both"}, "model.norm_place='both'"),
        ({"branch_scale": 0.5}, "model.branch_scale=0.5"),
    ],
)
def test_export_names_what_no_family_can_express(tiny, settings, named):
    with pytest.raises(ValueError, match=f"cannot express.*{named}.*used from its run, with model=from_run"):
        to_hugging_face(tiny(**settings))


@pytest.mark.parametrize(
    ("settings", "family", "named"),
    [
        ({"sliding_window": 5}, "llama", "llama cannot express model.sliding_window=5"),
        ({"qkv_bias": True}, "llama", "llama cannot express model.o_bias=False"),
        ({}, "qwen2", "qwen2 cannot express model.qkv_bias=False"),
        ({}, "mixtral", "mixtral cannot express model.moe=None"),
        ({}, "gpt_oss", "gpt_oss cannot express .*model.use_attention_sinks=False"),
        ({"moe": MoEConfig(2, 1)}, "mixtral", "mixtral cannot express .*num_experts_per_tok=1"),
        ({}, "gpt2", "gpt2 cannot express .*model.norm=RMSNormKind"),
        ({}, "gemma2", "family='gemma2': unknown. Choose among llama"),
    ],
)
def test_export_names_what_the_asked_family_cannot_express(tiny, settings, family, named):
    with pytest.raises(ValueError, match=named):
        to_hugging_face(tiny(**settings), family)


LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("family", "overrides", "named"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama", rope("dynamic", factor=2.0), "rope_type='dynamic'"),
        ("llama", rope("default", partial_rotary_factor=0.5), "partial_rotary_factor"),
        ("llama", rope("yarn", factor=2.0, mscale=1.0, mscale_all_dim=1.0), "mscale"),
        ("llama", {"a_new_idea": 3}, "a_new_idea=3 .unknown here"),
        ("llama", {"a_new_idea": False, "hidden_act": "relu"}, "hidden_act='relu', a_new_idea=False"),
        ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok=1"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1"),
        ("qwen3_moe", {**QWEN3_MOE, "norm_topk_prob": True, "num_experts_per_tok": 1}, "num_experts_per_tok=1"),
        ("qwen3_moe", {**QWEN3_MOE, "mlp_only_layers": [1]}, r"mlp_only_layers=\[1\]"),
        ("qwen3_moe", {**QWEN3_MOE, "decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 1}, "num_experts_per_tok=1"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **LONGROPE}}, "rope_type='longrope'"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"activation_function": "gelu"}, "activation_function='gelu'"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("opt", {}, "model_type='opt'.*smollm3"),
    ],
)
def test_import_names_what_it_cannot_express(family, overrides, named):
    config = AutoConfig.for_model("opt") if family == "opt" else foreign_config(family, overrides)
    with pytest.raises(ValueError, match=named):
        import_config(config)


def test_weights_that_are_missing_left_over_or_quantised_are_named(loud):
    source = loud(AutoModelForCausalLM.from_config(foreign_config("llama", {})))
    source.model.norm.register_buffer("strange", torch.zeros(1))
    with pytest.raises(ValueError, match=r"model\.norm\.strange"):
        from_hugging_face(source)
    del source.model.norm.strange
    layer = source.model.layers[1].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj\.weight is torch\.int8"):
        from_hugging_face(source)
    del layer.weight
    with pytest.raises(ValueError, match=r"no weight 'model\.layers\.1\.mlp\.down_proj\.weight'"):
        from_hugging_face(source)


def test_import_reads_every_number():
    config = import_config(foreign_config("llama", LLAMA3 | {"rms_norm_eps": 3e-4, "attention_dropout": 0.25}))
    assert config.rope == Llama3Rope(5000.0, 4.0, 16, 1.0, 4.0)
    assert (config.norm_eps, config.max_seq_len, config.n_kv_heads, config.attention_dropout) == (3e-4, 64, 2, 0.25)
    assert import_config(foreign_config("llama", {})).rope == PlainRope(10000.0)
    gpt2 = import_config(foreign_config("gpt2", {"resid_pdrop": 0.1, "embd_pdrop": 0.2, "attn_pdrop": 0.3}))
    assert (gpt2.dropout, gpt2.embedding_dropout, gpt2.attention_dropout) == (0.1, 0.2, 0.3)
    qwen2 = import_config(foreign_config("qwen2", SLIDING | {"num_hidden_layers": 4, "max_window_layers": 3}))
    assert qwen2.layers == LayerPattern("LLLS", 5)


OLD_KEYS = {"rope_theta": 12345.0, "rope_scaling": None, "torch_dtype": "bfloat16", "use_cache": True, "dropped": None}
OLD_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "truncate": False}
FILES = {
    "llama": ({"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {}, "unk_token_id": 0},
              {}),
    "qwen2": (
        {"max_window_layers": 28, "sliding_window": 32768, "use_sliding_window": False, "use_mrope": False},
        {"sliding_window": None, "qkv_bias": True},
    ),
    "qwen3_moe": (
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True},
        {"moe": MoEConfig(4, 2, None, 0.001), "ffn_hidden_size": 24},
    ),
    "smollm3": (
        {"num_hidden_layers": 4, "max_window_layers": 28, "no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4},
        {"layers": LayerPattern(rotary="RRRN")},
    ),
    "gpt_oss": (
        {"experts_per_token": 2, "num_experts_per_tok": 2, "num_local_experts": 4, "initial_context_length": 16,
         "rope_scaling": OLD_YARN, "quantization_config": {"quant_method": "mxfp4"}},
        {"rope": YarnRope(12345.0, 4.0, 16, truncate=False), "layers": LayerPattern("SL", 128)},
    ),
    "phi3": (
        {"auto_map": {"AutoConfig": "x"}, "attention_bias": False, "embd_pdrop": 0.1, "sliding_window": 7},
        {"sliding_window": 7, "embedding_dropout": 0.0},
    ),
    "gemma2": (
        {"hidden_act": "silu", "cache_implementation": "hybrid", "query_pre_attn_scalar": 16, "head_dim": 4},
        {"attention_scale": 0.5, "layers": LayerPattern("SL", 4096), "ffn": GeGLU()},
    ),
    "gemma3_text": (
        {"num_hidden_layers": 6, "sliding_window_pattern": 3, "rope_local_base_freq": 99, "sliding_window": 5},
        {"layers": LayerPattern("SSL", 5, "BBR", 99.0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FILES)
def test_a_file_with_older_and_second_names_is_read(family, tmp_path):
    written, expected = FILES[family]
    content = SHAPE | OLD_KEYS | written | {"model_type": family, "architectures": ["X"]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = import_config(AutoConfig.from_pretrained(tmp_path))
    assert {key: getattr(config, key) for key in expected} == expected
    if family != "gpt_oss":
        assert config.rope == PlainRope(12345.0)


def test_every_architecture_is_compared():
    assert {family for family, _ in SOURCES.values()} == set(ARCHITECTURES)
    assert {family for family, _ in WRITTEN.values()} == {n for n, a in ARCHITECTURES.items() if a.written}
