"""A model of this project behind lm-evaluation-harness's three methods, and its tasks with their data from the mirror.

What the harness asks is computed by the project's own parts: likelihoods by `log_likelihoods`, which reads the context
of a question once for all its choices, and answers by the batched decoder. How texts become ids, where they are cut and
how a text is rolled over are the harness's rules, so the figures are those of its own `hf` model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory

from modern_llm.data.chat import render_chat
from modern_llm.evaluation.answering import write_answers
from modern_llm.evaluation.likelihood import Likelihoods, Progress, log_likelihoods, silent
from modern_llm.hub import mirrored_dataset
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.pretrained.loaded import LoadedModel

_ANY_LENGTH = 2048  # of a model that was made for any length, as the harness has it
_MAX_GEN_TOKS = 256  # the harness's own, for tasks that name none
# What a task may say of sampling, in the harness's words and in ours.
_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class HarnessLM(LM):
    """The harness's view of a loaded model.

    Args:
        loaded: a decoder, in evaluation mode.
        batch_size: rows per forward pass.
        seed: of sampled answers.
        progress: is told how far each of the methods is.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int, seed: int = 0, progress: Progress = silent) -> None:
        super().__init__()
        self.loaded, self.model, self.tokens = loaded, loaded.decoder, loaded.tokenizer
        self.batch_size, self.seed, self.progress = batch_size, seed, progress
        self.max_length = loaded.context or _ANY_LENGTH

    # -- likelihoods -------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Nats of each continuation behind its context, and whether greedy decoding would write it.

        Raises:
            ValueError: a continuation has no token of its own, or is longer than the model's context.
        """
        found = self._scored([self._cut(*pair) for pair in self._encoded([request.args for request in requests])])
        return list(zip(found.sums.tolist(), found.greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, each token once: the first window begins with bos or eos, the last one is full."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[tuple[Sequence[int], Sequence[int]]] = []
        counts = []
        for ids in self.tokens.encode_batch([request.args[0] for request in requests]):
            rolled = get_rolling_token_windows(ids, self.tokens.prefix_id, self.max_length, context_len=1)
            mine = [make_disjoint_window(window) for window in rolled]
            windows += mine
            counts.append(len(mine))
        sums, ends = self._scored(windows).sums, accumulate(counts)
        return [float(sums[end - count : end].sum()) for end, count in zip(ends, counts, strict=True)]

    def _scored(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Likelihoods:
        return log_likelihoods(self.model, pairs, self.batch_size, self.progress)

    def _encoded(self, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Ids of contexts and continuations. Both are encoded as one text and cut where the context alone ends; blanks
        at the end of a context go to the continuation, because tokenizers join them with what follows."""
        contexts = [context.rstrip() for context, _ in texts]
        wholes = self.tokens.encode_batch([context + continuation for context, continuation in texts])
        known = list(dict.fromkeys(contexts))
        ids_of = dict(zip(known, self.tokens.encode_batch(known), strict=True))
        pairs = []
        for context, (asked, answer), whole in zip(contexts, texts, wholes, strict=True):
            ids = [*self._start(context), *ids_of[context]]
            rest = whole[len(ids_of[context]) :]
            if not context:  # the first token of a bare text has bos or eos in front of it, unless it is that itself
                ids = [self.tokens.prefix_id]
                rest = whole[1:] if whole[:1] == ids else whole
            if not rest:
                raise ValueError(
                    f"the answer {answer!r} behind {asked[-40:]!r} has no token of its own under this model's "
                    "tokenizer, so this task cannot be asked. Choose another task or model."
                )
            pairs.append((ids, rest))
        return pairs

    def _start(self, context: str) -> list[int]:
        """What stands in front of a text, unless the text, such as a conversation, brings it along."""
        start = self.loaded.start_ids
        return [] if start and context.startswith(self.tokens.token(start[0])) else start

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """What fits: the beginning of the context goes first."""
        if len(continuation) > self.max_length:
            raise ValueError(
                f"an answer has {len(continuation)} tokens, and {self.loaded.name} was made for {self.max_length}. "
                "Choose another task, or a model with a longer context."
            )
        return context[-(self.max_length + 1 - len(continuation)) :], continuation

    # -- answers -----------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """An answer to each context, up to a stop string, the end of text or `max_gen_toks`.

        Raises:
            ValueError: a task asks for a way of decoding that there is not here.
        """
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        for settings, places in groups.items():
            sampling, stop, limit = _decoding(json.loads(settings))
            if limit >= self.max_length:
                raise ValueError(
                    f"a task asks for {limit} tokens, and {self.loaded.name} was made for {self.max_length} with the "
                    "question. Choose a model with a longer context."
                )
            contexts = [requests[place].args[0] for place in places]
            encoded = self.tokens.encode_batch(contexts)
            prompts = [
                [*self._start(text), *ids] or [self.tokens.prefix_id]
                for text, ids in zip(contexts, encoded, strict=True)
            ]
            written = write_answers(
                self.model,
                self.tokens,
                [prompt[-(self.max_length - limit) :] for prompt in prompts],
                max_new_tokens=limit,
                stop=stop,
                stop_in_blanks=True,
                batch_size=self.batch_size,
                sampling=sampling,
                seed=self.seed,
                progress=self.progress,
            )
            for place, answer in zip(places, written, strict=True):
                answers[place] = answer.text
        return answers

    # -- conversations -----------------------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """Tells the harness's caches one tokenizer from another."""
        return self.tokens.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own template, for the record."""
        return self.tokens.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without `add_generation_prompt` its last turn is left open."""
        tokens, messages = self.tokens, [{"role": m["role"], "content": m["content"]} for m in chat_history]
        assert tokens.chat_template is not None
        eos, bos = tokens.token(tokens.eos_id), tokens.token(tokens.bos_id)
        text = render_chat(tokens.chat_template, messages, add_generation_prompt, eos=eos, bos=bos)
        if add_generation_prompt:
            return text
        last = messages[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]


def _decoding(asked: dict[str, Any]) -> tuple[Sampling, list[str], int]:
    """How a task wants answers written: sampling, stop strings and the most tokens."""
    asked = dict(asked)
    until = asked.pop("until", None) or []
    stop = [text for text in ([until] if isinstance(until, str) else until) if text]
    lengths = [asked.pop(name) for name in _LENGTHS if name in asked]
    do_sample = asked.pop("do_sample", None)
    known = {name: asked.pop(name) for name in _SAMPLING & asked.keys() if asked[name] is not None}
    temperature = float(known.pop("temperature", 1.0 if do_sample else 0.0))
    if do_sample is False or temperature == 0:
        known, temperature = {k: v for k, v in known.items() if k == "repetition_penalty"}, 0.0
    if asked:
        raise ValueError(
            f"generation_kwargs: a task asks for {', '.join(sorted(asked))}, which the decoder here does not have. It "
            f"has {', '.join(sorted(_SAMPLING))}, until and max_gen_toks. Choose another task."
        )
    return Sampling(**{"temperature": temperature, **known}), stop, int(lengths[0]) if lengths else _MAX_GEN_TOKS


# -- tasks -----------------------------------------------------------------------------------------------------------


class _MirroredTasks(TaskFactory):
    """Builds the harness's tasks on the mirror's data sets where it has them."""

    def __init__(self, mirror: str | None, meta: dict[str, Any]) -> None:
        super().__init__(meta=meta)
        self.mirror = mirror

    def _load_full_config(self, entry: Any, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        config: dict[str, Any] = super()._load_full_config(entry, overrides)
        name = config.get("dataset_path")
        found = mirrored_dataset(name, self.mirror) if isinstance(name, str) else None
        if found is None:
            return config
        more = {**(config.get("dataset_kwargs") or {}), "cache_dir": found["cache_dir"]}
        return {**config, "dataset_path": found["path"], "dataset_kwargs": more}


@lru_cache(maxsize=1)  # it reads thousands of files
def task_manager(include_path: str | None, mirror: str | None) -> TaskManager:
    """The harness's tasks, and those of a folder; their data are looked for in the mirror first."""
    manager = TaskManager(include_path=include_path)
    manager._factory = _MirroredTasks(mirror, manager._factory._meta)
    return manager
