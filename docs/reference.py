"""Writes docs/reference.md: every group, its choices and their keys, from the comments in `conf/`.

python docs/reference.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "modern_llm" / "conf"
_VALUE = r"""(?P<value>(?:'[^']*'|"[^"]*"|[^#])*?)"""  # a text between quotes may hold a #
_KEY = re.compile(rf"^(?P<indent> *)(?P<key>[\w/@.]+):{_VALUE}(?:  *# (?P<comment>.*))?$")
HEAD = """# Reference

Every group, its choices and their keys, from the comments in `conf/` (`python docs/reference.py` writes this page). A
choice is taken with `group=choice`, a key is set with its path: `model.n_layers=6`, `trainer.optimizer.lr=0.01`. Keys
that a choice takes from the file that it builds upon stand there.
"""


def keys(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Dotted key, default and comment of each commented line of a file, its defaults list left out."""
    above: list[tuple[int, str]] = []
    for line in lines:
        found = _KEY.match(line)
        if found is None:
            continue
        indent = len(found["indent"])
        above = [(i, key) for i, key in above if i < indent]
        above.append((indent, found["key"]))
        path = [key for _, key in above]
        if found["comment"] and path[0] not in ("defaults", "hydra"):
            yield ".".join(path), found["value"].strip(), found["comment"]


def described(path: Path) -> tuple[str, list[tuple[str, str, str]]]:
    """What the comments at the top of a file say, and its keys."""
    lines = path.read_text().splitlines()
    top = []
    for line in lines:
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        top.append(line.lstrip("# ").strip())
    return " ".join(top), list(keys(lines))


def cell(text: str) -> str:
    """Text in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def page() -> str:
    """The page."""
    parts = [HEAD]
    folders = sorted({path.parent for path in CONF.rglob("*.yaml")}, key=lambda p: p.relative_to(CONF).as_posix())
    for folder in folders:
        group = folder.relative_to(CONF).as_posix()
        parts.append(f"## {'Top of the configuration' if group == '.' else f'`{group}`'}\n")
        for path in sorted(folder.glob("*.yaml")):
            text, found = described(path)
            base = text.startswith("Base:")
            text = text.removeprefix("Base:").strip()
            name = f"`{path.stem}` (others build upon it)" if base else f"`{path.stem}`"
            parts.append(f"**{name}**: {cell(text)}\n" if text else f"**{name}**\n")
            if found:
                rows = [f"| `{key}` | {f'`{value}`' if value else ''} | {cell(what)} |" for key, value, what in found]
                parts.append("\n".join(["| key | default | what |", "| --- | --- | --- |", *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "reference.md").write_text(page())
