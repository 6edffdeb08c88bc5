"""What models write behind the same prompts: a JSON file, and a page that sets them side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from modern_llm.checks import require
from modern_llm.defaults import ROOT, Defaults
from modern_llm.experiment.contract import Paths, RunFolder, require_pretrained, say, tell_paths
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.decoding.sampling import GREEDY, Sampling
from modern_llm.pretrained.settings import ModelFromRun, PretrainedChoice, PretrainedModel, named_model
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.runtime import Runtime


_DEFAULTS = Defaults("task/generate")


@dataclass(frozen=True)
class Generate:
    """Continue fixed prompts with one model or many.

    Args:
        model, hardware, paths, seed: of the same names in the configuration.
        models: runs, checkpoints, folders of Hugging Face models and hub names; empty: `model`.
        prompts: texts to continue.
        prompts_file: more of them: `*.txt`, one a line; `*.jsonl`, a text or an object with `prompt` a line.
        chat: each prompt is the first turn of a conversation.
        max_new_tokens: length of each text.
        stop: strings that end a text.
        sampling: how a token is chosen.

    Raises:
        ValueError: no prompt, no model, or an unreadable file of prompts.
    """

    model: PretrainedModel | ModelFromRun | ModernLLMConfig
    hardware: Hardware
    paths: Paths = field(default_factory=Paths)
    seed: int = ROOT("seed")
    models: list[str] = _DEFAULTS("models")
    prompts: list[str] = _DEFAULTS("prompts")
    prompts_file: str | None = _DEFAULTS("prompts_file")
    chat: bool = _DEFAULTS("chat")
    max_new_tokens: int = _DEFAULTS("max_new_tokens")
    stop: list[str] = _DEFAULTS("stop")
    sampling: Sampling = GREEDY
    objective_metric: ClassVar[str] = "texts"

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "task.max_new_tokens", self.max_new_tokens, "must be at least 1", "Raise it")
        require("" not in self.stop, "task.stop", self.stop, "holds an empty text, which ends every text",
                "Leave it out")  # fmt: skip
        require(len({*self.models}) == len(self.models), "task.models", self.models, "names one twice",
                "Name each once; for other draws, use another seed")  # fmt: skip
        require(bool(self.all_prompts()), "task.prompts", self.prompts, "names no prompt",
                "Give texts, or task.prompts_file")  # fmt: skip
        if not self.models:
            require_pretrained(self.model)
        self._choices()

    def all_prompts(self) -> list[str]:
        """Those of the configuration, then those of the file."""
        return [*self.prompts, *(read_prompts(Path(self.prompts_file).expanduser()) if self.prompts_file else [])]

    def _choices(self) -> dict[str, PretrainedChoice]:
        """Models by what they are called."""
        if self.models:
            return {name: named_model(name) for name in self.models}
        assert not isinstance(self.model, ModernLLMConfig)
        return {self.model.path if isinstance(self.model, ModelFromRun) else self.model.name: self.model}

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Let every model continue every prompt, and write it down. Returns how many texts there are."""
        from modern_llm.experiment.loading import load_model
        from modern_llm.reporting.pages import blocks
        from modern_llm.training.runtime import Runtime

        runtime, prompts = Runtime(self.hardware), self.all_prompts()
        written: dict[str, list[dict[str, Any]]] = {}
        for name, choice in self._choices().items():
            say(f"{name}: {len(prompts)} prompts")
            loaded = load_model(choice, runtime, self.paths.mirror, [], train=False)
            loaded.decoder.eval()
            written[name] = [self._text(loaded, runtime, prompt, self.seed + n) for n, prompt in enumerate(prompts)]
        texts = [
            {"prompt": prompt, "model": name, **written[name][n]}
            for n, prompt in enumerate(prompts)
            for name in written
        ]
        path = folder.write_json("generations.json", texts)
        columns = [blocks.side_by_side(prompt, {name: written[name][n]["text"] for name in written})
                   for n, prompt in enumerate(prompts)]  # fmt: skip
        how = {"sampling": vars(self.sampling), "max_new_tokens": self.max_new_tokens, "chat": self.chat,
               "stop": self.stop, "seed": self.seed, "runtime": runtime.describe()}  # fmt: skip
        title = f"{len(prompts)} prompts, {len(written)} models"
        page = blocks.page(title, ", ".join(written), [*columns, blocks.section("How", blocks.facts(how))])
        metrics: dict[str, float] = {
            "texts": len(texts),
            "ended_share": sum(text["ended"] for text in texts) / len(texts),
            "distinct_trigram_share": sum(text["distinct_trigrams"] for text in texts) / len(texts),
        }
        samples = [{"prompt": text["prompt"], "text": text["text"]} for text in texts[:50]]
        folder.write_result(self.objective_metric, metrics, samples=samples, runtime=runtime.describe())
        tell_paths({"texts": path, "report": blocks.write_page(folder.path / "report.html", page)})
        return metrics

    def _text(self, loaded: LoadedModel, runtime: Runtime, prompt: str, seed: int) -> dict[str, Any]:
        """What a model writes behind a prompt, alone in its batch, so that no other prompt changes it."""
        from modern_llm.data.chat import ChatWriter, with_chat
        from modern_llm.models.decoding.generation import continue_ids

        tokenizer, start = loaded.tokenizer, loaded.start_ids
        if self.chat:
            loaded = replace(loaded, tokenizer=with_chat(tokenizer))
            ids = ChatWriter(loaded.tokenizer).prompt([{"role": "user", "content": prompt}])
        else:
            ids = start + tokenizer.encode(prompt) or [tokenizer.eos_id]
        room = None if loaded.context is None else loaded.context - len(ids)
        length = self.max_new_tokens if room is None or loaded.endless else min(self.max_new_tokens, room)
        if length < 1:
            raise ValueError(
                f"prompt {prompt[:40]!r}: has {len(ids)} tokens, and {loaded.name} was made for {loaded.context}. "
                "Shorten it, or choose a model with a longer context."
            )
        with runtime.autocast():
            (answer,) = continue_ids(
                loaded.decoder,
                tokenizer,
                [ids],
                max_new_tokens=length,
                sampling=self.sampling,
                stop=self.stop,
                seed=seed,
            )
        words = answer.text.split()
        triples = list(zip(words, words[1:], words[2:], strict=False))
        distinct = len(set(triples)) / len(triples) if triples else 1.0
        return {"text": answer.text, "ended": answer.ended, "distinct_trigrams": distinct}


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file.

    Raises:
        ValueError: it is not there, not UTF-8, or a line of it is no prompt; the message names the line.
    """
    require(path.is_file(), "task.prompts_file", str(path), "is no file", "Give a *.txt or *.jsonl file")
    require(path.suffix in (".txt", ".jsonl"), "task.prompts_file", str(path), "must end in .txt or .jsonl",
            "Rename it")  # fmt: skip
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as cause:
        raise ValueError(f"task.prompts_file={str(path)!r}: is not UTF-8 ({cause}). Convert the file.") from cause
    lines = text.split("\n")  # not splitlines, which also splits at characters inside a prompt
    if path.suffix == ".txt":
        return [line.rstrip("\r") for line in lines if line.strip()]
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as cause:
            raise ValueError(f"{path}, line {number}: is no JSON ({cause}). Correct it.") from cause
        prompt = row.get("prompt") if isinstance(row, dict) else row
        if not isinstance(prompt, str) or not prompt:
            raise ValueError(f'{path}, line {number}: holds no prompt. Give a text, or an object with "prompt".')
        prompts.append(prompt)
    return prompts
