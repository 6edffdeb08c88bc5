"""Decoders of our own through transformers' Auto classes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Workplace, with_path
from parts import EVERY
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from modern_llm.auto.configuration import ModernLLMAutoConfig
from modern_llm.config import plugins
from modern_llm.config.instantiate import as_node
from modern_llm.experiment.auto_config import checkpoint_in, written
from modern_llm.experiment.loading import load_model
from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.config import GQAConfig, MoEConfig
from modern_llm.models.decoding.generation import generate
from modern_llm.pretrained.settings import ModelFromRun
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware

MODELS: dict[str, dict[str, Any]] = {
    **EVERY,
    "experts": {"moe": MoEConfig(4, 2), "gqa": GQAConfig(2)},
    "learnable sinks": {"use_attention_sinks": True, "sinks": LearnableSinks(window=7, num_sinks=3)},
    "sink logits": {"use_attention_sinks": True, "sinks": SinkLogits(window=7)},
    "streaming sinks": {"use_attention_sinks": True, "sinks": StreamingSinks(window=5, num_sinks=2)},
    "untied": {"tie_embeddings": False},
}


@pytest.fixture(autouse=True)
def lab_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_named", {})
    plugins.use_plugins(["my_lab", "page_block"])  # some of the parts are theirs


every_model = pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)


def theirs(**settings: Any) -> Any:
    """The model of transformers around a decoder with loud weights."""
    sizes = {"vocab_size": 19, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64}
    config = ModernLLMConfig(**{**sizes, **settings})
    torch.manual_seed(0)
    known = ModernLLMAutoConfig(settings=written(config), tie_word_embeddings=config.tie_embeddings)
    model = AutoModelForCausalLM.from_config(known).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def prompts() -> tuple[Tensor, Tensor]:
    """Two of them, the first one padded on its left."""
    ids, mask = torch.randint(1, 19, (2, 6), generator=torch.Generator().manual_seed(1)), torch.ones(2, 6)
    mask[0, :2] = 0
    return ids, mask.long()


@every_model
@torch.no_grad()
def test_it_is_saved_and_loaded_exactly_and_generates_what_we_generate(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model, (ids, mask) = theirs(**settings), prompts()
    if isinstance(settings.get("sinks"), StreamingSinks):  # which take no padding
        mask = torch.ones_like(mask)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(again(ids[1:]).logits, model.decoder(ids[1:]).logits)
    found = again.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert found[:, 6:].tolist() == generate(model.decoder, ids, mask, max_new_tokens=12)


@torch.no_grad()
def test_beams_take_their_cache_with_them() -> None:
    model, (ids, mask) = theirs(**EVERY["all"]), prompts()
    options = {"attention_mask": mask, "max_new_tokens": 8, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


def test_the_loss_is_that_of_the_next_token() -> None:
    model, (ids, _) = theirs(), prompts()
    labels = ids.clone()
    labels[0, :3] = -100
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)
    assert model(ids, logits_to_keep=2).logits.shape == (2, 2, 19)
    with pytest.raises(ValueError, match="output_attentions=True"):
        model(ids, output_attentions=True)
    with pytest.raises(ValueError, match="has a cache of its own"):
        model.generate(ids, cache_implementation="static", max_new_tokens=1)


def test_a_run_is_loaded_with_its_tokenizer_in_a_program_that_imports_both(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    place.run("trainer.max_steps=2")
    run = place.only_run()
    script = """
import sys
import modern_llm
assert "transformers" not in sys.modules
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("times", return_tensors="pt")
    print(ids["input_ids"][0].tolist(), model(**ids).logits[0, -1, :4].tolist())
"""
    folders = [str(run), str(checkpoint_in(run))]
    done = subprocess.run(
        [sys.executable, "-c", script, *folders], capture_output=True, text=True, env=with_path(), timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.strip().splitlines()
    assert first == second
    runtime = Runtime(Hardware(device="cpu", precision="fp32"))
    ours = load_model(ModelFromRun(path=str(run)), runtime, None, [], train=False)
    ids = ours.tokenizer.encode("times")
    decoder = ours.decoder
    assert isinstance(decoder, ModernDecoderLM)
    logits = decoder(torch.tensor([ids])).logits
    assert logits is not None
    assert first == f"{ids} {logits[0, -1, :4].tolist()}"


def test_a_configuration_names_no_class_that_nobody_allowed(tmp_path: Path) -> None:
    settings = as_node(ModernLLMConfig(vocab_size=19)) | {"ffn": {"_target_": "subprocess.Popen"}}
    content = {"model_type": "modern_llm", "settings": json.dumps(settings)}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only parts of modern_llm may be instantiated"):
        AutoModelForCausalLM.from_config(config)
    for text, why in (
        ('{"_target_": "modern_llm.models.config.GQAConfig"}', "describe no decoder"),
        ("{", "is no JSON"),
    ):
        with pytest.raises(ValueError, match=why):
            AutoModelForCausalLM.from_config(ModernLLMAutoConfig(settings=text))
