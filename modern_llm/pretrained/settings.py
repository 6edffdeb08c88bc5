"""Which pretrained model is used, and which of its weights are trained. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from modern_llm.checks import require
from modern_llm.defaults import Defaults

_FULL_FINETUNING = Defaults("model/lora/off")


@dataclass(frozen=True)
class FullFinetuning:
    """Every weight is trained.

    Args:
        suggested_lr: what `trainer.optimizer.lr` is unless set.
        suggested_preference_lr: the same where preferences are learned.
        suggested_reward_lr: the same where rewards are.
    """

    suggested_lr: float = _FULL_FINETUNING("suggested_lr")
    suggested_preference_lr: float = _FULL_FINETUNING("suggested_preference_lr")
    suggested_reward_lr: float = _FULL_FINETUNING("suggested_reward_lr")


_LO_RA = Defaults("model/lora/on")


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv 2106.09685): W x + (alpha / rank) B A x.

    Args:
        rank: of the update.
        alpha: its scale; the update is multiplied by alpha / rank.
        dropout: on what the adapters read.
        targets: names of the linear maps that get an adapter, such as [q_proj, v_proj]; null: all those of attention
            and feed-forward layers, found in the model.
        base_bits: of the frozen maps of these layers: 4, NF4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314); null: the
            precision that is computed in.
        suggested_lr: what `trainer.optimizer.lr` is unless set.
        suggested_preference_lr: the same where preferences are learned.
        suggested_reward_lr: the same where rewards are.
    """

    rank: int = _LO_RA("rank")
    alpha: float = _LO_RA("alpha")
    dropout: float = _LO_RA("dropout")
    targets: list[str] | None = _LO_RA("targets")
    base_bits: Literal[4] | None = _LO_RA("base_bits")
    suggested_lr: float = _LO_RA("suggested_lr")
    suggested_preference_lr: float = _LO_RA("suggested_preference_lr")
    suggested_reward_lr: float = _LO_RA("suggested_reward_lr")

    def __post_init__(self) -> None:
        require(self.rank >= 1, "model.lora.rank", self.rank, "must be at least 1", "Use 16")
        require(self.alpha > 0, "model.lora.alpha", self.alpha, "must be above 0", "Use twice the rank")
        require(0 <= self.dropout < 1, "model.lora.dropout", self.dropout, "must lie in [0, 1)", "Use 0 for none")
        require(self.targets is None or len(self.targets) > 0, "model.lora.targets", self.targets, "names nothing",
                "Name linear maps of the model, or use null for all of them")  # fmt: skip
        require(self.base_bits in (4, None), "model.lora.base_bits", self.base_bits, "must be 4 or null",
                "Use null for the precision that is computed in")  # fmt: skip


_PRETRAINED_MODEL = Defaults("model/pretrained")


@dataclass(frozen=True)
class PretrainedModel:
    """A Hugging Face model.

    Args:
        name: hub name such as `openai-community/gpt2`, looked for in the mirror, the local cache and the hub; or a
            folder, which may hold one GGUF file instead of `config.json` and weights.
        lora: which weights are trained.
        max_seq_len: tokens of context; null: what the model was made for.
    """

    name: str
    lora: LoRA | FullFinetuning = field(default_factory=LoRA)
    max_seq_len: int | None = _PRETRAINED_MODEL("max_seq_len")

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "model.name", self.name, "is empty", "Give a hub name or a folder")
        require(self.max_seq_len is None or self.max_seq_len >= 1, "model.max_seq_len", self.max_seq_len,
                "must be at least 1", "Use null for the model's own")  # fmt: skip


_MODEL_FROM_RUN = Defaults("model/from_run")


@dataclass(frozen=True)
class ModelFromRun:
    """A model that an earlier run trained: a decoder from scratch or a finetuned Hugging Face model.

    Args:
        path: folder of the run (its best checkpoint is taken) or of one checkpoint.
        lora: which weights are trained further; adapters that the run trained are merged first.
        max_seq_len: tokens of context; null: what the model was made for.
    """

    path: str
    lora: LoRA | FullFinetuning = field(default_factory=LoRA)
    max_seq_len: int | None = _MODEL_FROM_RUN("max_seq_len")

    def __post_init__(self) -> None:
        require(Path(self.path).expanduser().is_dir(), "model.path", self.path, "is no folder",
                "Give the folder of a run below outputs/, or of one of its checkpoints")  # fmt: skip
        require(self.max_seq_len is None or self.max_seq_len >= 1, "model.max_seq_len", self.max_seq_len,
                "must be at least 1", "Use null for the model's own")  # fmt: skip
        self.checkpoint()

    def checkpoint(self) -> Path:
        """The folder of the checkpoint.

        Raises:
            ValueError: there is none.
        """
        from modern_llm.files import DamagedError, read_json

        folder = Path(self.path).expanduser().resolve()
        if (folder / "manifest.json").is_file() and (folder / "config.yaml").is_file():
            return folder
        checkpoints = folder / "checkpoints"
        try:
            best = read_json(checkpoints / "best.json")
        except (DamagedError, FileNotFoundError):  # the newest one counts
            best = None
        name = best.get("checkpoint") if isinstance(best, dict) else None
        named = checkpoints / name if isinstance(name, str) and Path(name).name == name else None
        newest = sorted(p for p in checkpoints.glob("step_*") if p.is_dir() and not p.suffix)
        chosen = named if named is not None and named.is_dir() else newest[-1] if newest else None
        require(chosen is not None, "model.path", self.path, "holds no checkpoint",
                "Give the folder of a run that has trained, or of one of its checkpoints")  # fmt: skip
        assert chosen is not None
        return chosen


PretrainedChoice = PretrainedModel | ModelFromRun


def named_model(name: str) -> PretrainedChoice:
    """What a name means: a run or checkpoint where it is the folder of one, else a Hugging Face model.

    Raises:
        ValueError: an empty name.
    """
    folder = Path(name).expanduser()
    ours = (folder / "checkpoints").is_dir() or (folder / "manifest.json").is_file()
    return ModelFromRun(name, FullFinetuning()) if ours else PretrainedModel(name, FullFinetuning())


def named_models(names: list[str]) -> dict[str, PretrainedChoice]:
    """What several names mean, by what the models are called: the ends of their paths, as long as these differ.

    Raises:
        ValueError: an empty name.
    """
    ends = [Path(name).name for name in names]
    called = ends if len({*ends}) == len(ends) else names
    return {name: named_model(given) for name, given in zip(called, names, strict=True)}


def find_checkpoints(folder: Path) -> list[Path]:
    """Every checkpoint below a folder, torn and half-written ones included, by run and then by step."""
    if (folder / "manifest.json").is_file():
        return [folder]
    return sorted(path for path in folder.rglob("step_*") if path.is_dir())
