"""The shape rules, the parameter count, and that checking a configuration costs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.rope import LinearRope, Llama3Rope, NoRope, NTKRope, PlainRope, YarnRope
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.config import GQAConfig, MoEConfig
from modern_llm.models.embedding.learned_positions import LearnedPositions
from modern_llm.models.embedding.smear import Smear
from modern_llm.models.feed_forward.kinds import ClampedSwiGLU, GeGLU, ReLU2
from modern_llm.models.norm_kinds import LayerNormKind
from modern_llm.models.residual.unet import UNetSkips
from modern_llm.models.values.value_embedding import ValueTable


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_seq_len": 0}, "max_seq_len"),
        ({"d_model": 0}, "d_model"),
        ({"n_layers": 0}, "n_layers"),
        ({"n_heads": 0}, "n_heads"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"head_dim": 0}, "head_dim"),
        ({"ffn_hidden_size": 0}, "ffn_hidden_size"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"d_model": 30, "n_heads": 4}, "n_heads"),
        ({"d_model": 12, "n_heads": 4}, "head_dim"),
        ({"d_model": 8, "n_heads": 4}, "head_dim"),
        ({"head_dim": 2}, "head_dim"),
        ({"n_heads": 4, "gqa": GQAConfig(3)}, "gqa.group_size"),
        ({"n_heads": 4, "gqa": GQAConfig(8)}, "gqa.group_size"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"ffn_dropout": 0.1, "moe": MoEConfig(4, 2)}, "ffn_dropout"),
        ({"output_dropout": 1.0}, "output_dropout"),
        ({"attention_scale": 0.0}, "attention_scale"),
        ({"logit_softcap": 0.0}, "logit_softcap"),
        ({"attention_softcap": -1.0}, "attention_softcap"),
        ({"logit_scale": 0.0}, "logit_scale"),
        ({"embedding_scale": 0.0}, "embedding_scale"),
        ({"branch_scale": -1.0}, "branch_scale"),
        ({"norm_place": "around"}, "norm_place"),
        ({"rope": PlainRope(fraction=0.3), "d_model": 32, "n_heads": 4}, "rope.fraction"),
        ({"rope": PlainRope(fraction=0.6), "d_model": 40, "n_heads": 4, "head_dim": 9}, "head_dim"),
        ({"layers": LayerPattern("SSSSL")}, "layers.windows"),
        ({"layers": LayerPattern(rotary="RRRRN")}, "layers.rotary"),
        ({"residual": {"unet": UNetSkips()}, "n_layers": 1}, "residual.unet"),
        ({"embedding": {"smear": Smear(gate_channels=999)}}, "embedding.smear.gate_channels"),
        ({"values": {"value_table": ValueTable(gate_channels=999)}}, "values.value_table.gate_channels"),
        ({"use_attention_sinks": True, "sinks": LearnableSinks(num_sinks=4), "max_seq_len": 4}, "sinks.num_sinks"),
        ({"use_attention_sinks": True, "sinks": StreamingSinks(window=4, num_sinks=4)}, "sinks.num_sinks"),
        ({"use_attention_sinks": True, "sliding_window": 8}, "sliding_window"),
    ],
)
def test_an_impossible_model_is_refused_by_its_key(settings, key):
    with pytest.raises(ValueError, match=rf"^model\.{key}=.+: .+\. .+\.$"):
        ModernLLMConfig(**settings)


@pytest.mark.parametrize(
    ("part", "settings", "key"),
    [
        (GQAConfig, {"group_size": 0}, "gqa.group_size"),
        (MoEConfig, {"n_experts": 1}, "moe.n_experts"),
        (MoEConfig, {"top_k": 0}, "moe.top_k"),
        (MoEConfig, {"n_experts": 4, "top_k": 5}, "moe.top_k"),
        (MoEConfig, {"expert_hidden_size": 0}, "moe.expert_hidden_size"),
        (MoEConfig, {"balance_loss_weight": -1.0}, "moe.balance_loss_weight"),
        (MoEConfig, {"z_loss_weight": -1.0}, "moe.z_loss_weight"),
        (PlainRope, {"theta": 1.0}, "rope.theta"),
        (PlainRope, {"fraction": 0.0}, "rope.fraction"),
        (YarnRope, {"fraction": 0.5}, "rope.fraction"),
        (ClampedSwiGLU, {"slope": 0.0}, "ffn.slope"),
        (ClampedSwiGLU, {"limit": -1.0}, "ffn.limit"),
        (LearnedPositions, {"std": -1.0}, "embedding.learned_positions.std"),
        (LinearRope, {"factor": 0.5}, "rope.factor"),
        (NTKRope, {"theta": 0.5}, "rope.theta"),
        (YarnRope, {"beta_fast": 1.0, "beta_slow": 2.0}, "rope.beta_fast"),
        (YarnRope, {"original_max_seq_len": 0}, "rope.original_max_seq_len"),
        (Llama3Rope, {"low_freq_factor": 4.0}, "rope.high_freq_factor"),
        (LearnableSinks, {"num_sinks": 0}, "sinks.num_sinks"),
        (StreamingSinks, {"num_sinks": 0}, "sinks.num_sinks"),
        (StreamingSinks, {"window": 0}, "sinks.window"),
        (SinkLogits, {"window": 0}, "sinks.window"),
    ],
)
def test_an_impossible_part_is_refused_by_its_key(part, settings, key):
    with pytest.raises(ValueError, match=rf"^model\.{key}=.+: .+\. .+\.$"):
        part(**settings)


def test_what_the_rules_must_let_through():
    ModernLLMConfig(d_model=12, n_heads=4, rope=NoRope())
    ModernLLMConfig(d_model=30, n_heads=4, head_dim=8)
    ModernLLMConfig(sinks=LearnableSinks(num_sinks=600))  # off: its numbers do not matter
    ModernLLMConfig(use_attention_sinks=True, sinks=StreamingSinks(window=5, num_sinks=4))


def test_vocabulary_comes_from_the_tokenizer_once():
    assert ModernLLMConfig().with_vocab_size(300).vocab_size == 300
    assert ModernLLMConfig(vocab_size=320).with_vocab_size(300).vocab_size == 320
    with pytest.raises(ValueError, match=r"model\.vocab_size=200"):
        ModernLLMConfig(vocab_size=200).with_vocab_size(300)
    for needs_it in (ModernDecoderLM, ModernLLMConfig.parameter_count):
        with pytest.raises(ValueError, match=r"model\.vocab_size=None"):
            needs_it(ModernLLMConfig())


def test_window_of_each_kind():
    windows = {
        "none": ModernLLMConfig(),
        "sliding": ModernLLMConfig(sliding_window=9),
        "learnable": ModernLLMConfig(use_attention_sinks=True),
        "streaming": ModernLLMConfig(use_attention_sinks=True, sinks=StreamingSinks()),
        "own": ModernLLMConfig(use_attention_sinks=True, sinks=StreamingSinks(window=9)),
    }
    got = {name: (c.attention_window, c.kept_tokens) for name, c in windows.items()}
    # Streaming sinks are part of the trained length; the others stand before it.
    assert got == {
        "none": (None, 0),
        "sliding": (9, 0),
        "learnable": (512, 0),
        "streaming": (508, 4),
        "own": (9, 4),
    }


PARTS = {
    "plain": {},
    "untied": {"tie_embeddings": False},
    "gqa": {"gqa": GQAConfig(2)},
    "mqa": {"gqa": GQAConfig(4)},
    "head-dim": {"head_dim": 6},
    "qk-norm": {"qk_norm": True},
    "bias": {"qkv_bias": True, "gqa": GQAConfig(2)},
    "ffn": {"ffn_hidden_size": 50},
    "nope": {"rope": NoRope()},
    "learnable": {"use_attention_sinks": True, "gqa": GQAConfig(2)},
    "logits": {"use_attention_sinks": True, "sinks": SinkLogits()},
    "streaming": {"use_attention_sinks": True, "sinks": StreamingSinks()},
    "geglu": {"ffn": GeGLU()},
    "relu2": {"ffn": ReLU2()},
    "relu2 experts": {"ffn": ReLU2(), "moe": MoEConfig(5, 2)},
    "moe": {"moe": MoEConfig(5, 2)},
    "moe-biases": {"moe": MoEConfig(5, 2, 24, router_bias=True), "ffn_bias": True},
    "layer-norms-biases": {"norm": LayerNormKind(), "norm_place": "both", "o_bias": True, "ffn_bias": True},
    "norms-behind-over-all-heads": {"norm_place": "behind", "qk_norm_per_head": False, "gqa": GQAConfig(2)},
    "learned-positions": {"embedding": {"learned_positions": LearnedPositions()}, "rope": NoRope()},
    "moe-own-width": {"moe": MoEConfig(5, 2, 24), "use_attention_sinks": True, "tie_embeddings": False},
}


@pytest.mark.parametrize("settings", PARTS.values(), ids=PARTS)
def test_parameter_count_is_that_of_the_built_model(settings):
    config = ModernLLMConfig(61, 24, 32, 3, 4, **settings)
    model = ModernDecoderLM(config)
    assert config.parameter_count() == sum(p.numel() for p in model.parameters())
    if config.moe is None:
        assert config.parameter_count(active_only=True) == config.parameter_count()
    else:
        idle = sum(
            p[config.moe.top_k :].numel() for n, p in model.named_parameters() if ".ffn." in n and "router" not in n
        )
        assert config.parameter_count(active_only=True) == config.parameter_count() - idle


@pytest.mark.parametrize("settings", [{}, {"tie_embeddings": False}, {"moe": MoEConfig(4, 2)}, {"gqa": GQAConfig(2)}])
def test_flops_count_every_matrix_product(settings):
    """torch's own counter, forward and backward; ours adds the norms' few parameters and, like the paper it follows,
    counts attention over the whole square."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = ModernLLMConfig(500, 64, 64, 2, 4, **settings)
    model, ids = ModernDecoderLM(config), torch.randint(500, (2, 64))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(ids).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    assert counter.get_total_flops() / ids.numel() == pytest.approx(config.flops_per_token(64), rel=0.02)


def test_default_hidden_width_matches_a_two_matrix_layer():
    for width in (64, 256, 768, 1000):
        hidden = ModernLLMConfig(d_model=width).ffn_size
        assert hidden % 64 == 0
        assert 0 <= 3 * width * hidden - 8 * width * width < 3 * width * 64


def test_checking_a_configuration_imports_no_torch():
    code = (
        "import sys; from modern_llm.models.config import ModernLLMConfig, MoEConfig; ModernLLMConfig(moe=MoEConfig());"
        "import modern_llm.models.decoding.sampling; assert 'torch' not in sys.modules, 'torch was imported';"
        "import modern_llm.models; modern_llm.models.ModernDecoderLM; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_lists_what_it_gives():
    import modern_llm.models as package

    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = package.nothing_here


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"windows": "SX"}, "windows"),
        ({"rotary": ""}, "rotary"),
        ({"short_window": 0}, "short_window"),
        ({"rotary": "RB"}, "other_theta"),
        ({"rotary": "RN", "other_theta": 100.0}, "other_theta"),
        ({"rotary": "RB", "other_theta": 0.5}, "other_theta"),
    ],
)
def test_an_impossible_pattern_is_refused_by_its_key(settings, key):
    with pytest.raises(ValueError, match=rf"^model\.layers\.{key}=.*: .+\. .+\.$"):
        LayerPattern(**settings)


def test_layers_see_what_their_letters_say():
    config = ModernLLMConfig(50, max_seq_len=64, n_layers=5, layers=LayerPattern("SSL", rotary="RN"))
    assert [(view.window, view.rotary) for view in config.views] == [
        (16, True), (16, False), (None, True), (16, False), (16, True)]  # fmt: skip
    assert config.attention_window is None
    uniform = ModernLLMConfig(50, max_seq_len=64, n_layers=5)
    fewer = 12 * config.d_model * 4 * (64 - 16)
    assert uniform.flops_per_token(64) - config.flops_per_token(64) == fewer
