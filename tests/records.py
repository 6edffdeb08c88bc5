"""Records of runs that never ran, written as the project writes them, and pages read back by the standard library."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from modern_llm.runs.resume import settled
from modern_llm.training.logs.metrics import MetricsLog

ROOT = Path(__file__).resolve().parents[1]


def composed(*overrides: str) -> dict[str, Any]:
    """What the command line with these overrides would record."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return settled(compose("config", overrides=["name=some_run", *overrides]))


def training_rows(steps: int, level: float = 4.0, every: int = 10) -> list[dict[str, Any]]:
    """Rows of a training run: a loss that falls to `level`, an evaluation every `every` steps."""
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = level + 4 * math.exp(-step / 20) + 0.1 * math.sin(step)
        rows.append({"step": step, "loss": loss, "lr": 1e-3, "tokens": 64 * step, "seconds": 0.5 * step})
        if step % every == 0:
            rows.append({"step": step, "validation_loss": loss + 0.2})
    return rows


def language_model(loss: float, steps: int = 40, **more: Any) -> dict[str, Any]:
    """The result of a language-modelling run."""
    metrics = {
        "validation_loss": loss,
        "validation_token_perplexity": math.exp(loss),
        "validation_bits_per_byte": loss / 2.7,
        "train_loss": loss - 0.2,
        "steps": steps,
        "parameters": 1_234_567,
    }
    protocol = {"validation": {"context": 32, "stride": 32, "counts": {"bytes": 5000}}, "document_masking": False}
    result = {"status": "finished", "metrics": metrics, "objective_metric": "validation_loss"}
    return result | {"perplexity_protocol": protocol, "runtime": {"device": "cpu"}} | more


def write_run(
    folder: Path,
    config: dict[str, Any] | str,
    rows: list[dict[str, Any]] | None = None,
    result: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
    code: str = "0123456789ab",
    command: str = "launch.py",
) -> Path:
    """A folder as `execute` and a task leave it."""
    folder.mkdir(parents=True)
    text = config if isinstance(config, str) else OmegaConf.to_yaml(OmegaConf.create(config))
    (folder / "config.yaml").write_text(text)
    sitting = {"time": "2026-01-02T03:04:05+0000", "command": command, "overrides": overrides or [], "resumed": False,
               "python": "3.12.1", "packages": {"torch": "2.13.0"}, "code": code}  # fmt: skip
    (folder / "sittings.jsonl").write_text(json.dumps(sitting) + "\n")
    log = MetricsLog(folder / "metrics.jsonl")
    for row in rows or []:
        log.write(row)
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


class Page(HTMLParser):
    """A page as the standard library's parser sees it.

    Attributes:
        tables: of each table, its rows as head -> text; `best` and `near` hold (row's first cell, head) of marks.
        scripts: type and content of every script.
        tags: every element with its attributes.
        text: everything a person can read, headings and all.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[dict[str, str]]] = []
        self.names: dict[str, int] = {}
        self.marks: dict[str, set[tuple[str, str]]] = {}
        self.scripts: list[tuple[str, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._heads: list[str] = []
        self._cells: list[tuple[str, str]] = []
        self._part: str | None = None
        self._inside: list[str] = []
        self.feed(html)
        self.close()

    def table(self, name: str) -> list[dict[str, str]]:
        """Rows of the table with this id."""
        return self.tables[self.names[name]] if name in self.names else []

    def facts(self, key: str = "key") -> dict[str, str]:
        """First two columns of every table whose first head is `key`."""
        return {row[key]: row["value"] for rows in self.tables for row in rows if key in row}

    def data(self) -> dict[str, Any]:
        """The curves' data."""
        (content,) = (content for kind, content in self.scripts if kind == "application/json")
        return json.loads(content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.tags.append((tag, given))
        self._inside.append(tag)
        if tag == "table":
            self.names[given.get("id") or f"table {len(self.tables)}"] = len(self.tables)
            self.tables.append([])
            self._heads = []
        elif tag == "tr":
            self._cells = []
        elif tag in ("td", "th"):
            # What a head shows may be shortened; its title is the whole name.
            self._title = given.get("title") if given.get("scope") == "col" else None
            self._part, self._kind = "", given.get("class") or ""
        elif tag == "script":
            self.scripts.append((given.get("type") or "", ""))
        if tag in ("meta", "link", "input", "br", "wbr", "img"):
            self._inside.pop()

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass
        if tag in ("td", "th") and self._part is not None:
            self._cells.append((self._title or self._part, self._kind))
            self._part = None
        elif tag == "tr" and not self._heads:
            self._heads = [text for text, _ in self._cells]
        elif tag == "tr":
            self.tables[-1].append({h: text for h, (text, _) in zip(self._heads, self._cells, strict=True)})
            for head, (_, kinds) in zip(self._heads, self._cells, strict=True):
                for kind in kinds.split():
                    self.marks.setdefault(kind, set()).add((self._cells[0][0], head))

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            kind, content = self.scripts[-1]
            self.scripts[-1] = (kind, content + data)
        elif "style" not in self._inside:
            self.text += data
            if self._part is not None and not ("small" in self._inside and "th" in self._inside):
                # A note stands below its value; one below a row's name is no part of the name.
                self._part += (" | " if "small" in self._inside else "") + data


def read_page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def markdown_rows(text: str) -> list[list[str]]:
    """Cells of every line of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
