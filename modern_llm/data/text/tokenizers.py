"""Text to ids and back: bytes, a BPE trained on the corpus at hand, or any Hugging Face tokenizer.

All three are one `tokenizers.Tokenizer` underneath, saved in Hugging Face's own format. The settings classes are
what a configuration names; `prepare` gives the working `Tokenizer`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from modern_llm.checks import require
from modern_llm.data.kept import kept
from modern_llm.data.text.sources import Source
from modern_llm.defaults import Defaults

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """Text to ids and back.

    Args:
        backend: the Rust tokenizer.
        eos_id: id that stands between documents.
        bos_id: id that starts a text, or None where the model knows none.
        config: contents of `tokenizer_config.json`.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_id: int,
        bos_id: int | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.backend, self.eos_id, self.bos_id = backend, eos_id, bos_id
        self._config = config or {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
        }

    @property
    def vocab_size(self) -> int:
        """Ids 0..vocab_size-1, added tokens included."""
        # Added tokens may leave gaps, so the largest id counts and not their number.
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def fingerprint(self) -> str:
        """Changes when any id would."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    @property
    def chat_template(self) -> str | None:
        """How a conversation becomes text (jinja), or None where the model has learned no chat."""
        template = self._config.get("chat_template")
        return template if isinstance(template, str) else None

    def with_chat_template(self, template: str) -> Tokenizer:
        """The same tokenizer with another chat template, which is saved with it."""
        return Tokenizer(self.backend, self.eos_id, self.bos_id, {**self._config, "chat_template": template})

    @property
    def prefix_id(self) -> int:
        """Id behind which the first token of a bare text is scored: the bos that the tokenizer names, whether or not
        it begins texts with it, else eos; as lm-evaluation-harness has it."""
        named = self._config.get("bos_token")
        text = named.get("content") if isinstance(named, dict) else named
        bos = self.backend.token_to_id(text) if self.bos_id is None and isinstance(text, str) else self.bos_id
        return self.eos_id if bos is None else bos

    def token(self, token_id: int | None) -> str:
        """The text of one id, special tokens included; empty for None."""
        return "" if token_id is None else self.backend.id_to_token(token_id) or ""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without bos and eos."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all cores."""
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers' AutoTokenizer reads."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        ids = {"eos_id": self.eos_id, "bos_id": self.bos_id}
        (folder / "tokenizer_config.json").write_text(json.dumps(self._config | {"modern_llm": ids}, indent=2))

    @classmethod
    def load(cls, folder: Path, told: str = "") -> Tokenizer:
        """Read what `save` or transformers wrote.

        Args:
            folder: with the files.
            told: how a person named it, key and value, for messages.

        Raises:
            ValueError: no fast tokenizer, or no token that ends a text.
        """
        import tokenizers

        path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
        config = json.loads(config_path.read_text()) if config_path.is_file() else {}
        template = folder / "chat_template.jinja"
        if template.is_file():
            config["chat_template"] = template.read_text()
        if not path.is_file():
            return cls._converted(folder, told or str(folder))
        backend = tokenizers.Tokenizer.from_file(str(path))
        backend.no_truncation()
        backend.no_padding()
        own = config.pop("modern_llm", None)
        if own is not None:
            return cls(backend, own["eos_id"], own["bos_id"], config)

        def special(kind: str) -> int | None:
            token = config.get(f"{kind}_token")
            text = token.get("content") if isinstance(token, dict) else token
            return None if text is None else backend.token_to_id(text)

        eos_id = special("eos")
        if eos_id is None:
            eos_id = special("sep")  # BERT-like tokenizers end a text with [SEP]
        if eos_id is None:
            raise ValueError(_endless(told or str(folder)))
        adds_bos = config.get("add_bos_token", "Llama" in str(config.get("tokenizer_class")))
        return cls(backend, eos_id, special("bos") if adds_bos else None, config)

    @classmethod
    def _converted(cls, folder: Path, told: str) -> Tokenizer:
        """From the older files of a tokenizer, or a GGUF file, by way of transformers."""
        from transformers import AutoTokenizer

        packed = gguf_file(folder)
        theirs = AutoTokenizer.from_pretrained(str(folder), **({"gguf_file": packed} if packed else {}))
        if not hasattr(theirs, "backend_tokenizer"):
            raise ValueError(f"{told}: has no fast tokenizer (tokenizer.json). Choose another tokenizer.")
        if theirs.eos_token_id is None:
            raise ValueError(_endless(told))
        backend = theirs.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        starts = theirs.bos_token_id is not None and theirs("a")["input_ids"][0] == theirs.bos_token_id
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": theirs.eos_token,
            "clean_up_tokenization_spaces": False,
        }
        if theirs.bos_token is not None:
            config["bos_token"] = theirs.bos_token
        if theirs.chat_template:
            config["chat_template"] = theirs.chat_template
        return cls(backend, theirs.eos_token_id, theirs.bos_token_id if starts else None, config)


def _endless(told: str) -> str:
    return (
        f"{told}: its tokenizer names no eos_token that is in its vocabulary, so that no text would ever end. Name one "
        "in tokenizer_config.json, or choose another model or tokenizer."
    )


def gguf_file(folder: Path) -> str | None:
    """Name of the one GGUF file that a folder holds in place of `config.json`, or None.

    Raises:
        ValueError: there are several.
    """
    if (folder / "config.json").is_file():
        return None
    names = sorted(path.name for path in folder.glob("*.gguf"))
    if len(names) > 1:
        raise ValueError(f"{folder}: holds several GGUF files ({', '.join(names)}). Put one into a folder of its own.")
    return names[0] if names else None


class TokenizerChoice(Protocol):
    """What a configuration names."""

    def prepare(self, source: Source, cache: Path, mirror: str | None) -> Tokenizer:
        """The tokenizer, trained on `source` where it has to be."""


def _byte_level(model: tokenizers.models.Model) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


@dataclass(frozen=True)
class ByteTokenizer:
    """One id per UTF-8 byte, and one that ends a text: 257 ids."""

    def prepare(self, source: Source, cache: Path, mirror: str | None) -> Tokenizer:
        from tokenizers import models, pre_tokenizers

        alphabet = {END_OF_TEXT: 0}
        alphabet |= {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 1)}
        backend = _byte_level(models.BPE(vocab=alphabet, merges=[]))
        backend.add_special_tokens([END_OF_TEXT])
        return Tokenizer(backend, eos_id=0)


_BPE_TOKENIZER = Defaults("task/tokenizer/bpe")


@dataclass(frozen=True)
class BPETokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909; Radford et al. 2019) trained on the
    training split.

    Args:
        vocab_size: ids, the 256 bytes and the end of text included.
        min_frequency: pairs rarer than this are not merged.
        max_training_megabytes: text that the merges are learned from; more changes them little and costs memory.
    """

    vocab_size: int = _BPE_TOKENIZER("vocab_size")
    min_frequency: int = _BPE_TOKENIZER("min_frequency")
    max_training_megabytes: int = _BPE_TOKENIZER("max_training_megabytes")

    def __post_init__(self) -> None:
        require(self.vocab_size >= 257, "task.tokenizer.vocab_size", self.vocab_size, "must be at least 257 (256 bytes "
                "and the end of text)", "Use task/tokenizer=bytes for none")  # fmt: skip
        require(self.min_frequency >= 1, "task.tokenizer.min_frequency", self.min_frequency, "must be at least 1",
                "Use 2")  # fmt: skip
        require(self.max_training_megabytes >= 1, "task.tokenizer.max_training_megabytes",
                self.max_training_megabytes, "must be at least 1", "Use 200")  # fmt: skip

    def prepare(self, source: Source, cache: Path, mirror: str | None) -> Tokenizer:
        key = f"bpe {self} {source.fingerprint('train', mirror)}"
        folder = cache / "tokenizers" / hashlib.sha256(key.encode()).hexdigest()[:24]
        return Tokenizer.load(kept(folder, lambda aside: self._train(source, mirror).save(aside)))

    def _train(self, source: Source, mirror: str | None) -> Tokenizer:
        from tokenizers import models, pre_tokenizers, trainers

        def text() -> Iterator[str]:
            left = self.max_training_megabytes * 2**20
            for document in source.documents("train", mirror):
                left -= len(document.encode())
                yield document
                if left <= 0:
                    return

        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(text(), trainer)
        return Tokenizer(backend, eos_id=0)  # special tokens come first


@dataclass(frozen=True)
class HubTokenizer:
    """Any Hugging Face tokenizer.

    Args:
        name: a folder, or a hub name such as `openai-community/gpt2`: looked for in the mirror, the local cache and
            the hub.
    """

    name: str

    def prepare(self, source: Source, cache: Path, mirror: str | None) -> Tokenizer:
        from modern_llm.hub import find_model

        return Tokenizer.load(Path(find_model(self.name, mirror)), f"task.tokenizer.name={self.name!r}")
