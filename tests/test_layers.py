"""The dependency direction: imports point down only, and heavy packages are imported where they are used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "modern_llm"
# Lower layers first; a module may import from its own layer and from those below.
LAYERS = [
    {"checks", "defaults", "files", "hub", "locks", "manifest", "processes", "tensor_files"},
    {"models"},
    {"objectives", "data"},
    {"pretrained"},
    {"training", "evaluation", "reporting"},
    {"config"},
    {"experiment", "reinforcement"},
    {"auto"},
    {"tasks"},
    {"runs"},
    {"command"},
    {"__main__"},
]
HYDRA_IS_KNOWN_TO = {"config", "experiment", "tasks", "runs", "command"}
LAZY = {
    "transformers",
    "datasets",
    "peft",
    "evaluate",
    "matplotlib",
    "rich",
    "tokenizers",
    "wandb",
    "mlflow",
    "huggingface_hub",
    "optuna",
    "lm_eval",
}
# Their classes derive from those of a heavy package, so they load that one; they, and what is built upon them, count as
# heavy themselves.
LOADED_WHEN_USED: dict[str, set[str]] = {
    "modern_llm.evaluation.metrics.library": {"evaluate", "datasets"},
    "modern_llm.evaluation.metrics.scoring": set(),
    "modern_llm.evaluation.metrics.verification": {"evaluate", "datasets"},
    "modern_llm.evaluation.verifier": set(),
    "modern_llm.evaluation.harness": {"lm_eval"},
    "modern_llm.pretrained.adapted": {"peft", "transformers"},
    "modern_llm.pretrained.kv_cache": {"transformers"},
    "modern_llm.auto.configuration": {"transformers"},
    "modern_llm.auto.modeling": {"transformers"},
    "modern_llm.auto.tokenization": {"transformers"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(part: str) -> int:
    return next(i for i, parts in enumerate(LAYERS) if part in parts)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules that a file imports, and whether it does so when it is loaded."""
    found = []
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    at_top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(name.name, id(node) in at_top) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", id(node) in at_top))
            found += [(f"{node.module}.{name.name}", id(node) in at_top) for name in node.names if node.module]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return
    for module, at_load in imports(path):
        top = module.split(".")[0]
        if top == "modern_llm" and module != "modern_llm":
            used = module.split(".")[1]
            assert layer_of(used) <= layer_of(part), f"{path} imports {module}"
        if top in ("hydra", "omegaconf"):
            assert part in HYDRA_IS_KNOWN_TO, f"{path} imports {module}"
        heavy = module in LOADED_WHEN_USED and name_of(path) not in LOADED_WHEN_USED
        if heavy or (top in LAZY and top not in LOADED_WHEN_USED.get(name_of(path), ())):
            assert not at_load, f"{path} imports {module} when it is loaded"
        if part == "models" and at_load:
            assert top in {"torch", "modern_llm", *STANDARD}, f"{path} imports {module}"


STANDARD = {
    "__future__",
    "abc",
    "collections",
    "contextlib",
    "dataclasses",
    "functools",
    "hashlib",
    "importlib",
    "inspect",
    "itertools",
    "math",
    "pathlib",
    "platform",
    "sys",
    "typing",
    "weakref",
}


def test_the_measures_of_the_house() -> None:
    def lines(name: str) -> int:
        return len((PACKAGE.parent / name).read_text().splitlines())

    assert lines("launch.py") < 60
    assert lines("modern_llm/models/transformer.py") <= 200
    assert lines("modern_llm/training/trainer.py") <= 400
