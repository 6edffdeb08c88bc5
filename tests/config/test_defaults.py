"""A default stands once: what a file of `conf/` states is no literal in the class that reads it."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from modern_llm.config.instantiate import find_target
from modern_llm.defaults import CONFIG_FOLDER, Defaults
from modern_llm.files import parsed_yaml
from modern_llm.models.config import ModernLLMConfig
from modern_llm.training.settings import TrainerSettings


def stated() -> dict[str, dict[str, str]]:
    """Target -> key -> a file that states a value for it."""
    found: dict[str, dict[str, str]] = {}

    def walk(file: str, node: Any) -> None:
        if isinstance(node, dict):
            target = node.get("_target_")
            for key, value in node.items():
                walk(file, value)
                if target is not None and not isinstance(value, dict) and "${" not in str(value) and value != "???":
                    found.setdefault(target, {})[str(key)] = file
        return

    for path in sorted(CONFIG_FOLDER.rglob("*.yaml")):
        if "hydra" not in path.parts:
            walk(path.relative_to(CONFIG_FOLDER).as_posix(), parsed_yaml(path.read_text()))
    return found


STATED = stated()


@pytest.mark.parametrize("target", sorted(STATED))
def test_no_literal_repeats_what_conf_states(target: str) -> None:
    cls = find_target(target, "")
    for owner in cls.__mro__:
        if owner.__module__.startswith("modern_llm."):
            (tree,) = ast.parse(inspect.getsource(owner)).body
            for line in tree.body:  # type: ignore[attr-defined]
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
                    literal = isinstance(line.value, ast.Constant | ast.List | ast.Tuple | ast.UnaryOp)
                    if "ClassVar" not in ast.unparse(line.annotation) and line.target.id in STATED[target]:
                        assert not literal, (
                            f"{owner.__name__}.{line.target.id}, in {STATED[target][line.target.id]}, too"
                        )


def test_python_gets_what_the_file_says() -> None:
    """Against a plain reading of the YAML."""
    for made, file in ((ModernLLMConfig(), "model/decoder"), (TrainerSettings(), "trainer/default")):
        content = yaml.safe_load((CONFIG_FOLDER / f"{file}.yaml").read_text())
        shared = [f.name for f in fields(made) if isinstance(content.get(f.name), int | bool)]
        assert len(shared) > 3
        assert {name: getattr(made, name) for name in shared} == {name: content[name] for name in shared}


def test_a_list_is_never_shared(tmp_path: Path) -> None:
    field = Defaults("task/data/problems")("stop")
    assert field.default_factory() == field.default_factory()
    assert field.default_factory() is not field.default_factory()
