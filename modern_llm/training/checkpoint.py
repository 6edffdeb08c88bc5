"""Checkpoints: folders written beside and renamed into place, with a manifest of sizes and hashes.

Weights and optimiser state are safetensors, the rest is JSON; nothing is unpickled. Where they are too large for one
process, folders stand for them, into which every process writes what it has (parallel/shares.py). A torn checkpoint is
found out by its manifest, and the one before is used.
"""

from __future__ import annotations

import copy
import errno
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modern_llm import manifest, tensor_files
from modern_llm.files import write_json
from modern_llm.processes import agreed, world
from modern_llm.training.behind import Behind
from modern_llm.training.parallel import shard_files
from modern_llm.training.parallel.shards import cut, piece_of, whole

MODEL_FILE = "model.safetensors"
MODEL_FOLDER = "model"  # instead of it, where it is too large for one process
STATE_TENSORS = "trainer.safetensors"
STATE_JSON = "trainer.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""


def split_tensors(tree: Any, path: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A nested dict as JSON, and the tensors in it by path; `join_tensors` undoes it."""
    if isinstance(tree, Tensor):
        return {"__tensor__": path}, {path: tree.detach()}
    if isinstance(tree, dict):
        items = [[key, *split_tensors(value, f"{path}.{key}" if path else str(key))] for key, value in tree.items()]
        # Pairs, because JSON would turn integer keys into strings.
        return {"__dict__": [[k, j] for k, j, _ in items]}, {p: t for _, _, ts in items for p, t in ts.items()}
    return tree, {}


def join_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """What `split_tensors` took apart."""
    if isinstance(tree, dict):
        if "__tensor__" in tree:
            return tensors[tree["__tensor__"]]
        return {key: join_tensors(value, tensors) for key, value in tree["__dict__"]}
    return tree


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, shared ones once; where some weights are frozen, those that are
    trained alone: the others are as they were loaded. Of weights that lie in pieces, what this process has."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if any(not p.requires_grad for p in model.parameters()):
        return trained
    persistent = model.state_dict(keep_vars=True)
    return trained | {name: b.detach() for name, b in model.named_buffers() if name in persistent}


def whole_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The same, whole, in the first process. Every process calls it."""
    found: dict[str, Tensor] = {}
    for name, tensor in model_tensors(model).items():
        full = whole(tensor)
        if world().is_first:
            found[name] = (full.cpu() if full is not tensor else tensor).contiguous()
    return found


def load_model_tensors(model: nn.Module, folder: Path) -> None:
    """Copy the weights of a checkpoint into a model.

    Raises:
        CheckpointError: names or shapes differ.
    """
    there, in_shares = model_tensors(model), (folder / MODEL_FOLDER).is_dir()
    saved = shard_files.listed(folder / MODEL_FOLDER) if in_shares else load_file(folder / MODEL_FILE)
    different = sorted(saved.keys() ^ there.keys())
    different += sorted(n for n in saved.keys() & there.keys() if saved[n].shape != there[n].shape)
    if different:
        raise CheckpointError(
            f"{folder}: the weights are of another model; {len(different)} tensors differ, the first is "
            f"{different[0]!r}. Resume with the configuration of the run."
        )
    if in_shares:
        shard_files.read_into(folder / MODEL_FOLDER, there)
        return
    with torch.no_grad():
        for name, tensor in there.items():
            piece_of(tensor).copy_(cut(saved[name], tensor))


def torn(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is as the manifest says."""
    return manifest.fault(folder)


def steps_and_tokens(folder: Path) -> tuple[int, int | None]:
    """Optimiser steps behind a checkpoint, and tokens that were read; None where it does not say."""
    step = int(manifest.read(folder)["step"])
    state = join_tensors(json.loads((folder / STATE_JSON).read_text()), _Anything())
    return step, state.get("progress", {}).get("tokens")


class _Anything(dict[str, Tensor]):
    """Stands for tensors that nobody looks at."""

    def __missing__(self, name: str) -> Tensor:
        return torch.empty(0)


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _evaluation_file(folder: Path) -> Path:
    return folder.with_name(f"evaluation_of_{folder.name}.json")


def _begin(aside: Path, *folders: str) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name in folders:
        (aside / name).mkdir()


class Checkpoints:
    """The checkpoints of one run, which the first of its processes writes.

    Args:
        folder: holds `step_<n>/` for each, `evaluation_of_step_<n>.json` where it was evaluated, and `best.json`.
        keep: newest ones that stay; the best one stays besides.
        behind: does the writing, in order; None: at once. Where it overlaps with what comes next, tensors are copied
            first, and what goes wrong is told at the next checkpoint or by `settle`.
    """

    def __init__(self, folder: Path, keep: int, behind: Behind | None = None) -> None:
        self.folder, self.keep = folder, keep
        self.behind = behind or Behind(overlaps=False)
        if not world().is_first:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("step_*.part"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    def all(self) -> list[Path]:
        """Oldest first."""
        return sorted(p for p in self.folder.glob("step_*") if p.is_dir() and not p.suffix)

    def last_good(self) -> Path | None:
        """The newest checkpoint that is whole, or None where there never was one. Every torn one that is passed over is
        set aside with a warning: for the beginning of a run.

        Raises:
            CheckpointError: all of them are torn.
        """
        faults: dict[Path, str] = {}
        for folder in reversed(self.all()):
            fault = torn(folder)
            if fault is None:
                for passed, why in faults.items():
                    self._set_aside(passed, f"({why}). It is set aside as {{aside}}; {folder.name} is used")
                return folder
            faults[folder] = fault
        if faults:
            reasons = "; ".join(f"{folder.name}: {why}" for folder, why in faults.items())
            raise CheckpointError(
                f"every checkpoint in {self.folder} is torn ({reasons}), so there is nothing to resume from. Put a "
                "whole one back, or start a new run."
            )
        return None

    def _set_aside(self, folder: Path, why: str) -> None:
        aside = folder.with_suffix(".torn")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        _evaluation_file(folder).unlink(missing_ok=True)
        warnings.warn(f"checkpoint {folder} is torn {why.format(aside=aside.name)}", stacklevel=3)

    def note_evaluation(self, folder: Path, found: dict[str, Any]) -> None:
        """Keep what an evaluation of a checkpoint found, beside its folder: the checkpoint is written already."""
        if world().is_first:
            as_now = copy.deepcopy(found)
            self.behind.do(lambda: write_json(_evaluation_file(folder), as_now))

    def evaluation(self, folder: Path) -> dict[str, Any] | None:
        """What `note_evaluation` kept, or None where no evaluation was finished."""
        try:
            return json.loads(_evaluation_file(folder).read_text())
        except (FileNotFoundError, ValueError):
            return None

    @property
    def best(self) -> Path | None:
        """The best checkpoint that is still there, or None."""
        try:
            folder = self.folder / json.loads((self.folder / "best.json").read_text())["checkpoint"]
        except (OSError, ValueError, KeyError, TypeError):  # it is not there, or torn: the newest one counts
            return None
        return folder if folder.is_dir() else None

    def mark_best(self, folder: Path | None, value: float | None) -> None:
        """Say which checkpoint is the best so far, or that none is."""
        path = self.folder / "best.json"

        def mark() -> None:
            if folder is None:
                path.unlink(missing_ok=True)
                return
            write_json(path, {"checkpoint": folder.name, "value": value})
            self._forget_old()

        if world().is_first:
            self.behind.do(mark)

    def settle(self) -> None:
        """Wait until all is written.

        Raises:
            CheckpointError: a checkpoint could not be.
        """
        self.behind.settle()

    def save(
        self, step: int, weights: dict[str, Tensor], state: dict[str, Any], extras: Callable[[Path], None]
    ) -> Path:
        """Write a checkpoint, then let go of the oldest.

        Args:
            step: optimiser steps done.
            weights: of the model, by name.
            state: everything else of the loop, tensors at any depth.
            extras: writes further files into the folder (configuration, tokenizer).

        Returns:
            Where it is, or will be.

        Raises:
            CheckpointError: it, or the one before it, could not be written (a full disk, say); the last good one is
                untouched and named.
        """
        self.settle()
        plain, tensors = split_tensors(state)
        text = json.dumps(plain)
        if self.behind.overlaps:
            weights, tensors = _copied(weights), _copied(tensors)

        def write() -> None:
            with self._written(step) as aside:
                _begin(aside)
                hashes = {MODEL_FILE: tensor_files.write(aside / MODEL_FILE, weights)}
                self._finish(step, aside, text, tensors, extras, hashes)
            self._forget_old()

        self.behind.do(write)
        return self.folder / _name(step)

    def save_shares(
        self, step: int, shares: dict[str, dict[str, Tensor]], state: dict[str, Any], extras: Callable[[Path], None]
    ) -> Path:
        """The same of tensors that no process has all of. Every process calls it, with what it has for each folder of
        the checkpoint (parallel/shard_files.py)."""
        agreed(self.settle)
        with self._written(step) as aside:
            agreed(lambda: _begin(aside, *shares))
            for name, tensors in shares.items():
                shard_files.write(aside / name, tensors)
            plain, small = split_tensors(state)
            agreed(lambda: self._finish(step, aside, json.dumps(plain), small, extras, {}))
        if world().is_first:
            self._forget_old()
        return self.folder / _name(step)

    @contextmanager
    def _written(self, step: int) -> Iterator[Path]:
        """The folder that a checkpoint is written into; what goes wrong leaves nothing of it."""
        aside = self.folder / f"{_name(step)}.part"
        try:
            yield aside
        except Exception as cause:
            if not world().is_first:
                raise
            shutil.rmtree(aside, ignore_errors=True)
            last = self.all()
            if not self.folder.is_dir():
                remedy = "The folder is gone: it was moved or deleted while the run was training."
            elif isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                remedy = f"The last good one is {last[-1] if last else 'none'}. Free disk space and resume the run."
            else:
                remedy = f"The last good one is {last[-1] if last else 'none'}."
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder} ({cause}). {remedy}"
            ) from cause

    def _finish(
        self,
        step: int,
        aside: Path,
        plain: str,
        tensors: dict[str, Tensor],
        extras: Callable[[Path], None],
        hashes: dict[str, str],
    ) -> None:
        """The rest of a checkpoint, which is one from here on."""
        hashes[STATE_TENSORS] = tensor_files.write(aside / STATE_TENSORS, tensors)
        (aside / STATE_JSON).write_text(plain)
        extras(aside)
        manifest.write(aside, known=hashes, step=step)
        target = aside.with_suffix("")
        if target.exists():  # a torn one of the same step
            shutil.rmtree(target)
        _evaluation_file(target).unlink(missing_ok=True)
        aside.rename(target)
        manifest.sync(self.folder)

    def _forget_old(self) -> None:
        best = self.best
        for folder in self.all()[: -self.keep]:
            if folder != best:
                shutil.rmtree(folder)
                _evaluation_file(folder).unlink(missing_ok=True)

    def load_state(self, folder: Path) -> dict[str, Any]:
        """The state that was saved with a checkpoint."""
        return join_tensors(json.loads((folder / STATE_JSON).read_text()), load_file(folder / STATE_TENSORS))
