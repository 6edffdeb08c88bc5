"""Every checkpoint under a folder, measured on one text and perhaps on BLiMP: table, CSV file, picture and page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from modern_llm.checks import require
from modern_llm.data.minimal_pairs import BLIMP, MinimalPair, read_pairs
from modern_llm.data.text.sources import PythonDocs, Source, Split
from modern_llm.defaults import Defaults
from modern_llm.experiment.contract import Paths, RunFolder, progress_of, say, tell_paths
from modern_llm.files import json_text
from modern_llm.pretrained.settings import FullFinetuning, ModelFromRun, find_checkpoints
from modern_llm.reporting.record import read_rows
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    from modern_llm.training.runtime import Runtime

_LONGEST_CONTEXT = 1024
_ROWS = "checkpoints.jsonl"
_COLUMNS = ("run", "checkpoint", "status", "step", "tokens", "flops", "loss", "token_perplexity", "word_perplexity",
            "bits_per_byte", "tokens_scored", "context", "stride", "parameters", "blimp_accuracy",
            "blimp_accuracy_low", "blimp_accuracy_high")  # fmt: skip


_DEFAULTS = Defaults("task/evaluate_checkpoints")


@dataclass(frozen=True)
class EvaluateCheckpoints:
    """Perplexity of every checkpoint, by the evaluator of language modelling. What cannot be measured is a row that
    says why.

    Args:
        path: a folder with checkpoints at any depth.
        hardware, paths: of the same names in the configuration.
        data: the text.
        split: of the text.
        context: tokens that a model sees at most; null: what it was made for, at most 1024.
        stride: tokens between windows; null: as context.
        max_tokens: score the beginning of the split alone; null: the whole split.
        blimp_pairs: the first pairs of each paradigm of BLiMP that are judged, too; 0: none.

    Raises:
        ValueError: an impossible value, or a folder without checkpoints.
    """

    path: str
    hardware: Hardware
    paths: Paths = field(default_factory=Paths)
    data: Source = field(default_factory=PythonDocs)
    split: Split = _DEFAULTS("split")
    context: int | None = _DEFAULTS("context")
    stride: int | None = _DEFAULTS("stride")
    max_tokens: int | None = _DEFAULTS("max_tokens")
    blimp_pairs: int = _DEFAULTS("blimp_pairs")
    objective_metric: ClassVar[str] = "best_loss"

    def __post_init__(self) -> None:
        for key in ("context", "stride", "max_tokens"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"task.{key}", value, "must be at least 1", "Raise it, or use null")
        require(self.blimp_pairs >= 0, "task.blimp_pairs", self.blimp_pairs, "must not be negative", "Use 0 for none")
        require(self.context is None or self.stride is None or self.stride <= self.context, "task.stride", self.stride,
                f"must not exceed task.context={self.context}", "A longer one skips tokens; lower it")  # fmt: skip
        require(self.split in self.data.splits(), "task.split", self.split, "is no split of this text",
                f"Choose among {', '.join(self.data.splits())}")  # fmt: skip
        found = find_checkpoints(Path(self.path).expanduser())
        require(bool(found), "task.path", self.path, "holds no checkpoint",
                "Give a run, a sweep or a folder above them")  # fmt: skip

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Measure what is not measured yet, and write the table. Returns the best loss and how many there are.

        Raises:
            ValueError: no checkpoint could be measured.
        """
        from modern_llm.training.runtime import Runtime

        runtime = Runtime(self.hardware)
        start = Path(self.path).expanduser().resolve()
        log = folder.path / _ROWS
        # What could not be measured is tried again; a line that a stop tore was not measured.
        needed = {"loss", "blimp_accuracy"} if self.blimp_pairs else {"loss"}
        known = [row for row in read_rows(log, []) if row.get("status") == "measured" and needed <= row.keys()]
        rows = {str(row.get("folder")): row for row in known}
        found = find_checkpoints(start)
        pairs = read_pairs(BLIMP, self.paths.mirror, limit=self.blimp_pairs) if self.blimp_pairs else []
        for number, checkpoint in enumerate(found, 1):
            if str(checkpoint) in rows:
                continue
            say(f"{number}/{len(found)}: {checkpoint.relative_to(start.parent)}")
            run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
            row = {"folder": str(checkpoint), "checkpoint": checkpoint.name, "status": "measured"}
            row["run"] = run.relative_to(start).as_posix() if run != start and start in run.parents else run.name
            try:
                row |= self._measure(checkpoint, runtime, pairs)
            except Exception as cause:  # one that cannot be read must not keep the others from being measured
                row["status"] = " ".join(f"{type(cause).__name__}: {cause}".split())
                say(f"  {row['status']}")
            rows[str(checkpoint)] = row
            torn = log.is_file() and not log.read_bytes().endswith(b"\n")
            with log.open("a", encoding="utf-8") as file:
                file.write("\n" if torn else "")
                file.write(json_text(row) + "\n")
        if not any(rows[str(checkpoint)]["status"] == "measured" for checkpoint in found):
            why = rows[str(found[0])]["status"]
            raise ValueError(
                f"task.path={self.path}: none of {len(found)} checkpoints could be measured. The first: {why}"
            )
        return self._write(folder, [rows[str(checkpoint)] for checkpoint in found], runtime)

    def _measure(self, checkpoint: Path, runtime: Runtime, pairs: list[MinimalPair]) -> dict[str, Any]:
        from modern_llm.data.text.tokens import tokenise
        from modern_llm.evaluation import blimp
        from modern_llm.evaluation.perplexity import perplexity
        from modern_llm.experiment.loading import load_model
        from modern_llm.training.checkpoint import CheckpointError, steps_and_tokens, torn

        fault = torn(checkpoint)
        if fault is not None:
            raise CheckpointError(f"torn: {fault}")
        step, tokens = steps_and_tokens(checkpoint)
        choice, mirror = ModelFromRun(str(checkpoint), FullFinetuning()), self.paths.mirror
        loaded = load_model(choice, runtime, mirror, [], train=False)
        decoder = loaded.decoder.eval()
        corpus = tokenise(self.data, self.split, loaded.tokenizer, self.paths.cache_folder, mirror, say)
        context = self.context or min(loaded.context or _LONGEST_CONTEXT, _LONGEST_CONTEXT)
        with runtime.autocast():
            measured = perplexity(
                decoder,
                corpus,
                context=context,
                stride=min(self.stride or context, context),
                batch_size=self.hardware.eval_rows,
                device=runtime.device,
                max_tokens=self.max_tokens,
            )
            rows = self.hardware.eval_rows
            scores = blimp.sentence_log_likelihoods(decoder, loaded.tokenizer, pairs, rows, progress_of("BLiMP"))
        grammar = blimp.accuracy(blimp.outcomes(scores), "blimp_accuracy") if pairs else {}
        per_token = loaded.flops_per_token(context)
        facts = {"step": step, "tokens": tokens, "parameters": loaded.parameter_counts()[0]}
        return facts | {"flops": None if tokens is None else tokens * per_token} | vars(measured) | grammar

    def _write(self, folder: RunFolder, rows: list[dict[str, Any]], runtime: Runtime) -> dict[str, float]:
        from modern_llm.reporting.pages import blocks
        from modern_llm.reporting.pages.checkpoints import draw_checkpoints
        from modern_llm.reporting.tables import write_csv

        measured = [row for row in rows if row["status"] == "measured"]
        metrics: dict[str, float] = {"checkpoints": len(rows), "unreadable": len(rows) - len(measured)}
        best = min(measured, key=lambda row: row["loss"], default=None)
        metrics["best_loss"] = best["loss"] if best else float("inf")
        if best is not None:
            metrics["best_token_perplexity"] = best["token_perplexity"]
        columns = [name for name in _COLUMNS if self.blimp_pairs or not name.startswith("blimp")]
        if measured and self.blimp_pairs:
            metrics["best_blimp_accuracy"] = max(row["blimp_accuracy"] for row in measured)
        protocol = {
            "data": str(self.data),
            "split": self.split,
            "context": self.context or f"the model's, at most {_LONGEST_CONTEXT}",
            "stride": self.stride or "as context",
            "max_tokens": self.max_tokens or "all",
            "BLiMP": f"the first {self.blimp_pairs} pairs of each paradigm" if self.blimp_pairs else "not judged",
            "best": best and best["folder"],
        }
        notes = [f"{row['run']}/{row['checkpoint']}: {row['status']}" for row in rows if row not in measured]
        written = {"csv": write_csv(columns, rows, folder.path / "checkpoints.csv")}
        if measured:
            written["picture"] = draw_checkpoints(measured, folder.path / "checkpoints.png")
        shown = [{column: row.get(column) for column in columns} for row in rows]
        sections = [
            blocks.cards(metrics),
            blocks.notices(notes),
            blocks.section("Loss", *(blocks.picture(written[p], "loss over steps, tokens and operations")
                                     for p in written if p == "picture")),
            blocks.section("Checkpoints", blocks.table(columns, shown, identity="runs")),
            blocks.section("How it was measured", blocks.facts(protocol), blocks.facts(runtime.describe())),
        ]  # fmt: skip
        page = blocks.page(f"Checkpoints under {self.path}", f"{len(measured)} of {len(rows)} measured", sections)
        written["report"] = blocks.write_page(folder.path / "report.html", page)
        headline = ("best_loss", "best_token_perplexity", "best_blimp_accuracy", "checkpoints", "unreadable")
        about = {"protocol": protocol, "runtime": runtime.describe(), "notes": notes}
        folder.write_result(self.objective_metric, metrics, headline, **about)
        if best is not None:
            print(f"best: loss {best['loss']:.4f}, {best['folder']}")
        for note in notes:
            print(note)
        tell_paths(written)
        return metrics
