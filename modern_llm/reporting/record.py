"""What runs leave on disk, found and read back. Nothing here trusts that a file is whole, or there at all."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from modern_llm.files import DamagedError, parsed_json, parsed_yaml, read_text
from modern_llm.locks import holder, left_open
from modern_llm.reporting.tables import INVISIBLE

_RECORDS = ("config.yaml", "metrics.jsonl", "result.json", "sittings.jsonl", "failure.txt")
_NOT_MEASURED = ("modern_llm.tasks.report.Report", "modern_llm.tasks.doctor.Doctor", "modern_llm.tasks.chat.Chat",
                 "modern_llm.runs.plan.Plan", "modern_llm.orchestration.plan.Plan")  # fmt: skip
# What went wrong behind the figures, which are kept: a page or a picture is missing.
PAGE_FAILURE = "page_failure.txt"
# Why a search stopped a run that was behind the others.
PRUNED = "pruned.txt"
# What a search is and what it found, in the folder of its sweep.
STUDY = "study.json"


# What is read of `result.json`; a task writes those that it has.
_SHAPES = {
    **dict.fromkeys(("metrics", "protocol", "perplexity_protocol", "runtime", "data_fingerprints", "pictures"), dict),
    **dict.fromkeys(("headline", "samples", "errors", "notes"), list),
}


@dataclass(frozen=True)
class RunRecord:
    """One run, as far as its files can be read.

    Attributes:
        folder: of the run.
        config: its configuration, as `config.yaml` says it.
        settings: the same as a nested dict.
        rows: of `metrics.jsonl`.
        result: of `result.json`; empty while the run is not finished.
        sittings: of `sittings.jsonl`: when, by which command, with which code and packages.
        failure: `failure.txt`: the reason in its first line; empty where the run did not fail.
        pruned: `pruned.txt`: why a search stopped it; empty where none did.
        running: a process is writing to it, as far as this machine can tell.
        cut_off: its last process ended before it was done, as one that is killed does.
        job: overrides of the job that it is in a sweep; None outside one.
        notes: what could not be read, in words.
    """

    folder: Path
    config: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    result: dict[str, Any]
    sittings: list[dict[str, Any]]
    failure: str = ""
    pruned: str = ""
    running: bool = False
    cut_off: bool = False
    job: list[str] | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The record in a folder. What is not there is empty; what is damaged is left out and told in `notes`."""
        notes: list[str] = []

        def text(name: str) -> str:
            return _text(folder / name, notes)

        result = _json_object(text("result.json"), "result.json", notes)
        for key, shape in _SHAPES.items():
            if not isinstance(result.get(key) or shape(), shape):
                notes.append(f"result.json: {key} is no {'table' if shape is dict else 'list'} and was left out")
                del result[key]
        config = text("config.yaml")
        page = text(PAGE_FAILURE)
        if page:
            notes.append(f"its page or pictures could not be made: {page.splitlines()[0]}")
        return cls(
            folder,
            config,
            _yaml_table(config, "config.yaml", notes),
            _json_lines(text("metrics.jsonl"), "metrics.jsonl", notes),
            result,
            _json_lines(text("sittings.jsonl"), "sittings.jsonl", notes),
            text("failure.txt") or ("no reason is recorded" if (folder / "failure.txt").is_file() else ""),
            text(PRUNED),
            holder(folder) is not None,
            left_open(folder),
            _job_of_a_sweep(folder),
            notes,
        )

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Final metrics: the finite numbers of `result.json`."""
        return {name: value for name, value in (self.result.get("metrics") or {}).items() if is_number(value)}

    @property
    def tags(self) -> list[str]:
        """What the run was tagged with."""
        tags = self.settings.get("tags")
        return [str(tag) for tag in tags] if isinstance(tags, list) else []

    @property
    def status(self) -> str:
        """`running`, `finished`, `failed`, `pruned`, `interrupted` (killed, or stopped by a signal) or `not run`."""
        if self.running:
            return "running"
        if self.failure:
            return "failed"
        if self.pruned:
            return "pruned"
        if self.result and not self.cut_off:
            return "finished"
        return "interrupted" if self.config else "not run"

    @property
    def why(self) -> str:
        """The first line of what made it fail, or of why it was pruned."""
        return next(iter((self.failure or self.pruned).splitlines()), "")

    @property
    def diverged(self) -> bool:
        """Whether it failed by what it computes, and would again."""
        return self.status == "failed" and "TrainingDivergedError" in self.failure

    @cached_property
    def last_step(self) -> int | None:
        """The last optimiser step that `metrics.jsonl` tells of."""
        return max((row["step"] for row in self.rows if is_number(row.get("step"))), default=None)

    @property
    def last_written(self) -> float | None:
        """When the run last wrote to its record, in seconds since 1970."""
        files = [self.folder / name for name in _RECORDS]
        return max((file.stat().st_mtime for file in files if file.is_file()), default=None)

    @property
    def overrides(self) -> list[str]:
        """What was typed: every sitting's overrides, a later one's value in place of an earlier one's."""
        typed = [overrides_of(sitting) for sitting in self.sittings] or [self.job or []]
        merged = {override.split("=", 1)[0]: override for overrides in typed for override in overrides}
        return [override for key, override in merged.items() if key != "resume"]

    @property
    def command(self) -> str:
        """The command that makes this run again, quoted for a shell; empty where none is recorded."""
        if not self.sittings and self.job is None:
            return ""
        first = self.sittings[0].get("command", "") if self.sittings else "launch.py hydra.mode=RUN"
        try:
            words = shlex.split(str(first))
        except ValueError:  # a quote without its end
            words = []
        flags = config_flags(words[1:])
        # Where it was kept and how many there were is another run's own; a job of a recipe that sweeps keeps its mode,
        # because without it the whole sweep would start again.
        hydra = [word for word in words if word.lstrip("+~").startswith(("hydra.", "hydra/"))]
        once = ("hydra.run", "hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher", "hydra.mode=MULTIRUN")
        own = [word for word in hydra if not word.lstrip("+~").startswith(once)]
        return " ".join([_program(words), *map(shell_quoted, [*flags, *self.overrides, *own])])

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric over the run."""
        points = [
            (row["step"], row[name]) for row in self.rows if is_number(row.get("step")) and is_number(row.get(name))
        ]
        return [step for step, _ in points], [value for _, value in points]


def overrides_of(sitting: dict[str, Any]) -> list[str]:
    """The overrides that a sitting was started with."""
    typed = sitting.get("overrides")
    return [str(override) for override in typed] if isinstance(typed, list) else []


def read_rows(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; what is torn or damaged is left out and told in `notes`."""
    return _json_lines(_text(path, notes), path.name, notes)


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number; an integer may be too large to be one."""
    return (type(value) is int and abs(value) < 1e300) or (type(value) is float and math.isfinite(value))


def job_status(folder: Path) -> str:
    """`running`, `finished`, `failed: <why>`, `pruned: <why>`, `interrupted` or `not run`."""
    if holder(folder) is not None:
        return "running"
    if (folder / "failure.txt").is_file():
        return "failed: " + next(iter(_text(folder / "failure.txt").splitlines()), "")
    if (folder / PRUNED).is_file():
        return "pruned: " + next(iter(_text(folder / PRUNED).splitlines()), "")
    if (folder / "result.json").is_file() and not left_open(folder):
        return "finished"
    return "interrupted" if (folder / "config.yaml").is_file() else "not run"


def is_complete(folder: Path) -> bool:
    """Whether a run is finished, its page included."""
    return job_status(folder) == "finished" and not (folder / PAGE_FAILURE).is_file()


def find_runs(patterns: Sequence[str], only_measured: bool = False) -> tuple[list[Path], list[str]]:
    """Folders of runs: `config.yaml` beside one more record; or a job of a sweep that failed before it began.

    Args:
        patterns: folders, searched at any depth (checkpoints and hidden folders aside), or globs of such folders.
        only_measured: leave out what measures nothing by itself (reports, plans, doctors, chats), and what a plan or a
            pipeline set aside.

    Returns:
        The folders, each once, in the order of the patterns and then of their names (2 before 10); and the patterns
        that led to no run.
    """
    found: dict[Path, Path] = {}  # what it really is -> as it was reached
    searched: dict[Path, list[Path]] = {}
    empty = []
    for pattern in patterns:
        runs: list[Path] = []
        for start in _starts(pattern):
            real = start.resolve()
            if real not in searched:
                searched[real] = [folder for folder in _search(start) if not (only_measured and _is_aside(folder))]
            runs += searched[real]
        if not runs:
            empty.append(pattern)
        for run in sorted(runs, key=natural_order):
            found.setdefault(run.resolve(), run)
    return list(found.values()), empty


def natural_order(path: Path | str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def shell_quoted(word: str) -> str:
    """A word for a POSIX shell; with characters that cannot be seen, in bash's `$'…'`, so that it can be pasted."""
    if not INVISIBLE.search(word) and not {"\n", "\t"} & {*word}:
        return shlex.quote(word)

    def code(found: re.Match[str]) -> str:
        return f"\\x{ord(found[0]):02x}" if ord(found[0]) < 0x80 else f"\\u{ord(found[0]):04x}"

    safe = word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return f"$'{INVISIBLE.sub(code, safe)}'"


def _starts(pattern: str) -> list[Path]:
    """Folders that a pattern names. `folder/**` is `folder`, because a folder is searched at any depth anyway."""
    path = Path(pattern).expanduser()
    while path.name == "**":
        path = path.parent
    if path.exists():
        found = [path]
    else:
        try:
            found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))), key=natural_order)
        except ValueError:  # ** inside a name is no pattern
            found = []
    found = [place.parent if place.name in _RECORDS and place.is_file() else place for place in found]
    return [place for place in found if place.is_dir()]


def _search(start: Path) -> list[Path]:
    runs = []
    for root, folders, files in os.walk(start):
        refused_job = "failure.txt" in files and (Path(root).parent / "sweep.json").is_file()
        if refused_job or ("config.yaml" in files and len({*files} & {*_RECORDS}) > 1):
            runs.append(Path(root))
        folders[:] = [name for name in folders if name != "checkpoints" and not name.startswith(".")]
    return runs


def _is_aside(folder: Path) -> bool:
    """Whether a run measures nothing by itself, or was set aside for another one."""
    set_aside = re.search(r"\.before_\d+$", folder.name) is not None
    found = re.search(r"^task:\n(?:  .*\n)*?  _target_: (\S+)$", _text(folder / "config.yaml"), flags=re.M)
    return set_aside or (found is not None and found[1] in _NOT_MEASURED)


def _text(path: Path, notes: list[str] | None = None) -> str:
    """A file's text, whatever its bytes; empty where it is not there or cannot be read, which is told in `notes`."""
    try:
        return read_text(path)
    except FileNotFoundError:
        return ""
    except DamagedError as fault:
        if notes is not None:
            notes.append(f"{path.name} was left out: {fault}")
        return ""


def _json_object(text: str, name: str, notes: list[str]) -> dict[str, Any]:
    return _table(parsed_json, text, name, notes)


def _yaml_table(text: str, name: str, notes: list[str]) -> dict[str, Any]:
    return _table(parsed_yaml, text, name, notes)


def _table(parse: Callable[[str], Any], text: str, name: str, notes: list[str]) -> dict[str, Any]:
    if not text:
        return {}
    try:
        content = parse(text)
    except DamagedError as fault:
        notes.append(f"{name} is damaged and was left out ({fault})")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{name} is no table and was left out")
        return {}
    return content


def _json_lines(text: str, name: str, notes: list[str]) -> list[dict[str, Any]]:
    rows, damaged = [], []
    lines = text.split("\n")  # not splitlines, which also splits inside a text
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parsed_json(line)
        except DamagedError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number == len(lines):
            notes.append(f"{name}: its last line is torn ({len(line)} characters, no line end) and was left out")
        else:
            damaged.append(number)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        notes.append(f"{name}: {len(damaged)} damaged lines were left out (line {shown})")
    return rows


def _job_of_a_sweep(folder: Path) -> list[str] | None:
    """The overrides that the sweep around a folder gives it."""
    jobs = _json_object(_text(folder.parent / "sweep.json"), "sweep.json", []).get("jobs")
    number = int(folder.name) if folder.name.isdecimal() else -1
    job = jobs[number] if isinstance(jobs, list) and 0 <= number < len(jobs) else None
    return [str(override) for override in job] if isinstance(job, list) else None


def _program(words: list[str]) -> str:
    """How the program of a command is called by hand."""
    name = Path(words[0]).name if words else ""
    return {"modern-llm": "modern-llm", "__main__.py": "python -m modern_llm"}.get(name, "python launch.py")


def config_flags(words: list[str]) -> list[str]:
    """Flags of a command that decide which configuration is composed."""
    flags = []
    for place, word in enumerate(words):
        if word.split("=", 1)[0] in ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"):
            flags += [word] if "=" in word else words[place : place + 2]
    return flags
