"""What this machine has, what runs on it now, and what does not and why; nothing is downloaded and nobody is asked."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, ClassVar, Literal

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from modern_llm.checks import require
from modern_llm.config.instantiate import ConfigError, build, find_target
from modern_llm.data.rows import HubRows
from modern_llm.data.text.sources import HubText
from modern_llm.data.text.tokenizers import HubTokenizer
from modern_llm.defaults import Defaults
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.hub import MIRROR_VARIABLE, found_offline
from modern_llm.models.config import ModernLLMConfig
from modern_llm.pretrained.settings import PretrainedModel
from modern_llm.tasks.blimp import Blimp
from modern_llm.training.settings import Hardware

Verdict = Literal["ok", "warning", "problem"]
_KINDS = {HubText: "datasets", HubRows: "datasets", Blimp: "datasets"} | {
    PretrainedModel: "models",
    HubTokenizer: "models",
}
_MARKS = {"ok": "✓", "warning": "!", "problem": "✗"}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's letter.

    Attributes:
        what: was looked at.
        verdict: whether it is as it should be.
        detail: what was found, and where it is wrong, what to do.
    """

    what: str
    verdict: Verdict
    detail: str


_DEFAULTS = Defaults("task/doctor")


@dataclass(frozen=True)
class Doctor:
    """Look at versions, device, precision, memory, disk, mirror and caches, then at every choice of `task` and `model`.

    Args:
        hardware, paths: of the same names in the configuration.
        minimum_free_gb: disk space (10^9 bytes) below which outputs and cache are warned of.
    """

    hardware: Hardware
    paths: Paths = field(default_factory=Paths)
    minimum_free_gb: float = _DEFAULTS("minimum_free_gb")
    objective_metric: ClassVar[str] = "problems"
    # It tells what `auto` comes to.
    measures_precision: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.minimum_free_gb >= 0, "task.minimum_free_gb", self.minimum_free_gb, "must not be negative",
                "Use 0 for no warning")  # fmt: skip

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Look, print and write it down. Returns how many tasks can run and how many problems there are.

        Raises:
            SystemExit: status 1, at the end, where the default command cannot run.
        """
        from modern_llm.reporting.pages import blocks

        machine = [*packages(), *self._machine(), *self._places()]
        models, tasks = choices("model", self.paths.mirror), choices("task", self.paths.mirror)
        default = default_run(self.paths)
        findings = {"Machine": machine, "Models": models, "Tasks": tasks, "Default": [default]}
        for title, lines in findings.items():
            print(f"\n{title}")
            width = max(len(line.what) for line in lines)
            for line in lines:
                print(f"  {_MARKS[line.verdict]} {line.what:<{width}}  {line.detail}")
        metrics: dict[str, float] = {
            "problems": sum(line.verdict == "problem" for line in [*machine, default]),
            "tasks_ready": sum(line.verdict == "ok" for line in tasks),
            "tasks_not_ready": sum(line.verdict != "ok" for line in tasks),
            "default_runs": int(default.verdict != "problem"),
        }
        sections = [
            blocks.section(title, blocks.table(["what", "verdict", "detail"], [vars(line) for line in lines]))
            for title, lines in findings.items()
        ]
        page = blocks.page("Doctor", platform.platform(), [blocks.cards(metrics), *sections])
        plain = {title: [vars(line) for line in lines] for title, lines in findings.items()}
        folder.write_result(self.objective_metric, metrics, findings=plain)
        print(f"\n{'report:':<12}{blocks.write_page(folder.path / 'report.html', page)}")
        if default.verdict == "problem":
            print(f"python launch.py cannot run: {default.detail}", file=sys.stderr)
            raise SystemExit(1)
        return metrics

    def _machine(self) -> Iterator[Finding]:
        import psutil
        import torch

        from modern_llm.training.runtime import Runtime

        try:
            runtime = Runtime(self.hardware)
        except ValueError as refused:
            yield Finding("device", "problem", str(refused))
            return
        on_gpu = runtime.device.type == "cuda"
        what = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
        yield Finding("device", "ok", f"{runtime.device}: {what}, {os.cpu_count()} CPU cores")
        speeds = runtime.precision_speeds()
        told = ", ".join(f"{name} {speed / 1e9:,.0f}" for name, speed in speeds.items())
        yield Finding("precision", "ok", f"{runtime.precision} is used; GFLOP/s of a square product: {told}")
        memory = psutil.virtual_memory()
        few: Verdict = "warning" if memory.available < 2e9 else "ok"
        yield Finding("memory", few, f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB are free")
        yield self._processes(torch.cuda.device_count() if on_gpu else (os.cpu_count() or 1), on_gpu)
        if on_gpu:
            free, total = torch.cuda.mem_get_info()
            yield Finding("device memory", "ok", f"{free / 1e9:.1f} of {total / 1e9:.1f} GB are free")

    def _processes(self, most: int, on_gpu: bool) -> Finding:
        """What torchrun can start here."""
        import torch.distributed as dist

        line = "NCCL" if on_gpu else "gloo"
        there = dist.is_available() and (dist.is_nccl_available() if on_gpu else dist.is_gloo_available())
        if not there:
            return Finding("processes", "warning", f"one: this torch has no {line}")
        return Finding("processes", "ok", f"up to {most} by torchrun --nproc-per-node, through {line}")

    def _places(self) -> Iterator[Finding]:
        """Disk, mirror and caches."""
        yield writable("outputs", Path(self.paths.outputs).expanduser(), self.minimum_free_gb)
        yield writable("cache", self.paths.cache_folder, self.minimum_free_gb)
        for what, pattern in (("tokenised texts", "tokens/*/*"), ("trained tokenizers", "tokenizers/*/*")):
            files = list(self.paths.cache_folder.glob(pattern))
            kept = len({file.parent for file in files})
            size = sum(file.stat().st_size for file in files)
            yield Finding(what, "ok", f"{kept} in the cache, {size / 1e6:.1f} MB")
        root = self.paths.mirror or os.environ.get(MIRROR_VARIABLE)
        if not root:
            yield Finding("mirror", "ok", f"none is set (paths.mirror or {MIRROR_VARIABLE})")
            return
        for kind in ("models", "datasets"):
            held = sorted(f"{p.parent.name}/{p.name}" for p in Path(root).expanduser().glob(f"{kind}/*/*"))
            yield Finding(f"mirror, {kind}", "ok", ", ".join(held) or f"none in {root}")


def packages() -> Iterator[Finding]:
    """Python and every package that the project asks for, optional ones included, by its own metadata."""
    from packaging.requirements import Requirement

    yield Finding("python", "ok" if (3, 11) <= sys.version_info < (3, 14) else "problem", platform.python_version())
    try:
        wanted = [Requirement(line) for line in requires("modern-llm") or []]
    except PackageNotFoundError:
        yield Finding("modern-llm", "warning", "is not installed, so versions cannot be checked: pip install -e .")
        return
    for needed in wanted:
        optional = "extra" in str(needed.marker)
        if optional and any(word in str(needed.marker) for word in ("test", "bench")):
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            told: Verdict = "ok" if optional else "problem"
            remedy = f"pip install '{needed.name}{needed.specifier}'"
            yield Finding(needed.name, told, f"not installed{', and optional' if optional else ''}: {remedy}")
            continue
        fits = needed.specifier.contains(found, prereleases=True)
        rule = "" if fits else f"; the project was made for {needed.specifier}"
        yield Finding(needed.name, "ok" if fits else "warning", found + rule)


def writable(what: str, folder: Path, minimum_free_gb: float) -> Finding:
    """Whether a folder can be written to, and how much room there is."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as cause:
        return Finding(what, "problem", f"{folder} cannot be written to ({cause}). Choose another: paths.{what}=…")
    free = shutil.disk_usage(there).free / 1e9
    return Finding(what, "ok" if free >= minimum_free_gb else "warning", f"{folder}, {free:.0f} GB are free")


def choices(group: str, mirror: str | None) -> list[Finding]:
    """For each choice of a group, whether all that it names is here."""
    return [choice(group, name, mirror) for name in _options(group) if name != "doctor"]


def choice(group: str, name: str, mirror: str | None) -> Finding:
    """Whether all that a choice names is here. A task is tried with the default model, then with models of other kinds;
    one that runs other tasks names nothing itself."""
    found = Finding(name, "warning", "")
    for model in [None] if group == "model" else [None, *_other_models(mirror)]:
        try:
            node = _composed(group, name, model)
            build(node, group)
        except (ConfigError, HydraException, OmegaConfBaseException, FileNotFoundError) as refused:
            refusal = Finding(name, "warning", (str(refused).strip().splitlines() or [""])[0])
            if not refusal.detail.startswith(("model:", "model=")):  # no other model would help
                return refusal
            found = found if found.detail else refusal
            continue
        if node["_target_"].startswith("modern_llm.runs."):
            return Finding(name, "warning", "runs other tasks, and is ready where they are")
        missing = [absent(*thing, mirror) for thing in named(node)]
        if not any(missing):
            return Finding(name, "ok", f"with model={model}" if model else "")
        told = "; ".join(dict.fromkeys(filter(None, missing)))
        found = Finding(name, "warning", f"with model={model}: {told}" if model else told)
    return found


def _options(group: str) -> list[str]:
    return GlobalHydra.instance().config_loader().get_group_options(group)


@cache
def _composed(group: str, name: str, model: str | None = None) -> Any:
    """A choice of a group as plain containers."""
    overrides = [f"{group}={name}", *([f"model={model}"] if model else [])]
    return OmegaConf.to_container(compose("config", overrides=overrides)[group], resolve=True)


@cache
def _other_models(mirror: str | None) -> tuple[str, ...]:
    """Choices of `model` with a pretrained model that is here; where none is, one that stands for all. Then one choice
    of every other kind that a person need not complete."""
    nodes = {name: _composed("model", name) for name in _options("model")}
    named_by = {name: list(named(node)) for name, node in nodes.items()}
    here = [name for name, things in named_by.items() if things and not any(absent(*t, mirror) for t in things)]
    default = compose("config").model["_target_"]
    known = {default, *(nodes[name]["_target_"] for name in nodes if named_by[name])}
    others: dict[str, str] = {}
    for name, node in nodes.items():
        if node["_target_"] not in known and "???" not in node.values():
            others.setdefault(node["_target_"], name)
    return (*(here or [name for name, things in named_by.items() if things][:1]), *others.values())


def named(node: Any) -> Iterator[tuple[str, str, str | None]]:
    """What of the hub a configuration names, at any depth: kind, name, configuration."""
    if isinstance(node, dict):
        target = find_target(node["_target_"], "") if "_target_" in node else None
        kind = None if target is None else _KINDS.get(target)
        if kind is not None and node.get("name", "???") != "???":
            # A paradigm of BLiMP is a configuration of its data.
            yield kind, node["name"], ([*node["paradigms"], "*"][0] if target is Blimp else node.get("config"))
        node = list(node.values())
    if isinstance(node, list):
        for below in node:
            yield from named(below)


def absent(kind: str, name: str, config: str | None, mirror: str | None) -> str:
    """Why a model or data set cannot be read without the network; empty: it can."""
    try:
        if found_offline(kind, name, config, mirror) is not None:
            return ""
    except (ValueError, OSError) as cause:
        return f"{name}: {(str(cause).splitlines() or [type(cause).__name__])[0]}"
    return f"{name} is neither in the mirror nor in the Hugging Face cache"


def default_run(paths: Paths) -> Finding:
    """Whether the default command can run: its configuration, its data, and a training step of its model."""
    try:
        task: Any = build(compose("config").task)
        first = next(iter(task.data.documents("train", paths.mirror)), "")
        if not first:
            return Finding("python launch.py", "problem", f"{task.data} has no text")
        loss = _one_step(task.model)
    except Exception as cause:  # whatever it is, it is what the default would meet
        return Finding("python launch.py", "problem", f"{type(cause).__name__}: {cause}")
    return Finding("python launch.py", "ok", f"its text is here, and its model makes a step (loss {loss:.2f})")


def _one_step(config: ModernLLMConfig) -> float:
    """Loss of a fresh model on random ids, after a backward pass."""
    import torch

    from modern_llm.models.transformer import ModernDecoderLM

    torch.manual_seed(0)
    model = ModernDecoderLM(config.with_vocab_size(512))
    ids = torch.randint(512, (2, 33))
    loss = model(ids[:, :-1], labels=ids[:, 1:]).loss
    assert loss is not None
    loss.backward()
    if not torch.isfinite(loss):
        raise ValueError(f"the loss of a fresh model is {loss.item()}")
    return loss.item()
