"""Tokenizers: text to ids and back, and how many UTF-8 bytes each id stands for.

`token_bytes` turns a loss in nats per token into bits per byte, which can be compared between tokenizers. It is exact
for `bytes` and byte-level BPE. Where a definition changes a text first, to another Unicode form or by the space that
many put before it, it counts what is made of the text, and `text_bytes` the text itself. WordPiece has none.
Text is taken literally, so that no document can inject what it spells: a special token spelled out is encoded like any
other characters. `with_special` reads it as the token, as transformers does, which is for prompts.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from bigjax.config import named
from bigjax.data.errors import DataError
from bigjax.data.tokens.beside import CONFIG_FILE, FILE, IDS, PATTERNS, SPELLINGS, Beside, read_beside, write_beside
from bigjax.data.tokens.own import own
from bigjax.errors import brief
from bigjax.paths import AnyPath, as_path, fetched_folder, on_disk

END_OF_TEXT = "<|endoftext|>"
EOS_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
"""What an end-of-text token is called, where no tokenizer_config.json says."""


NOTHING = Beside({}, {}, None)


class Tokenizer(Protocol):
    """What all tokenizers offer.

    Attributes:
      vocab_size: one more than the largest id.
      eos_id: the id that ends a document, if there is one.
      opening: the ids that the definition puts before a text, such as the `<bos>` of Llama and Gemma; mostly none.
      bos_id: the last of `opening`, else the bos_token that a tokenizer_config.json names, if it does.
      special: the id for a role, of those in `SPELLINGS` or `start`, where a file beside the definition says one.
      token_bytes: (vocab_size,) int32, UTF-8 bytes each id stands for, 0 for special ones; None where that cannot be
        said, as for WordPiece, which drops spaces.
      word_starts: (vocab_size,) bool, whether a word starts with the id.
      digest: sha256 of the definition.
    """

    vocab_size: int
    eos_id: int | None
    opening: tuple[int, ...]
    bos_id: int | None
    special: Mapping[str, int]
    token_bytes: np.ndarray | None
    word_starts: np.ndarray
    digest: str

    def encode(self, text: str) -> np.ndarray:
        """Return the ids (n,) int32 of a text, nothing added."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts."""
        ...

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the ids (n,) int32 of several texts, and (n, 2) the characters that each stands for, from and to."""
        ...

    def with_special(self) -> "Tokenizer":
        """Return the same tokenizer reading special tokens spelled out in a text as those tokens; another digest."""
        ...

    def token_id(self, token: str) -> int | None:
        """Return the id of a special token by its spelling, None if there is none."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the definition into a folder, for `load_tokenizer`."""
        ...


class ByteTokenizer:
    """Ids are the 256 byte values of the UTF-8 text; no special tokens."""

    vocab_size = 256
    eos_id: int | None = None
    opening: tuple[int, ...] = ()
    bos_id: int | None = None
    special: Mapping[str, int] = MappingProxyType({})
    digest = "bytes"

    def __init__(self):
        self.token_bytes: np.ndarray | None = np.ones(256, np.int32)
        self.word_starts = np.array([not chr(byte).isalnum() if byte < 128 else False for byte in range(256)])

    def encode(self, text: str) -> np.ndarray:
        try:
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        except UnicodeEncodeError as error:  # of an argument that is not UTF-8, or an escape in JSON
            found = text[error.start]
            raise DataError(f"the text is not UTF-8: {found!r} at character {error.start} stands for none") from None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        places = (np.repeat(np.arange(len(text)), [len(character.encode()) for character in text]) for text in texts)
        return [(self.encode(text), np.stack([at, at + 1], axis=1)) for text, at in zip(texts, places, strict=True)]

    def with_special(self) -> "ByteTokenizer":
        return self

    def token_id(self, token: str) -> int | None:
        del token

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        # A model may have spare ids above 255; 0xff never occurs in UTF-8.
        return np.minimum(np.asarray(ids, np.int64), 255).astype(np.uint8).tobytes().decode(errors="replace")

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        (folder / FILE).write_text(json.dumps({"kind": "bytes"}))


class JsonTokenizer:
    """A tokenizer of the `tokenizers` library: byte-level BPE, SentencePiece-style BPE or Unigram, or WordPiece.

    Raises:
      DataError: the kind of vocabulary is another, or `eos_token` or `bos_token` is not in it.
    """

    def __init__(
        self,
        definition: str,
        eos_token: str | None,
        place: str,
        bos_token: str | None = None,
        beside: Beside = NOTHING,
        *,
        special: bool = False,
    ):
        """Args:
        definition: the content of a tokenizer.json.
        eos_token: the token that ends a document; None takes the first of `EOS_NAMES` that exists.
        place: what to call the definition in errors.
        bos_token: the token that starts a text, where the definition does not put one there itself.
        beside: what else belongs to the definition, and is saved with it.
        special: whether special tokens in a text are read as such.
        """
        from tokenizers import Tokenizer as Backend

        try:
            self._backend = Backend.from_str(definition)
        except Exception as error:  # the library raises Exception itself
            raise DataError(f"{place} is not a tokenizer.json that can be read: {error}") from None
        self._backend.encode_special_tokens = not special  # True reads them literally
        self._backend.no_truncation()
        self._backend.no_padding()
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise DataError(f"{place} has no tokens")
        for role, token in (("eos_token", eos_token), ("bos_token", bos_token)):
            if token is not None and token not in vocabulary:
                raise DataError(f"{place}: the {role} {token!r} of its {CONFIG_FILE} is not in the vocabulary")
        ids = beside.ids or {}
        if eos_token is None and "eos" in ids:
            eos_token = self._backend.id_to_token(ids["eos"])
        if eos_token is None:
            eos_token = next((name for name in EOS_NAMES if name in vocabulary), None)
        self._eos_token, self._bos_token = eos_token, bos_token
        self._definition = definition
        self.eos_id = None if eos_token is None else vocabulary[eos_token]
        self.vocab_size = max(vocabulary.values()) + 1
        self._vocabulary = vocabulary
        self._place = place
        content = json.loads(definition)
        self.opening = tuple(_opening(content.get("post_processor") or {}))
        self.bos_id = self.opening[-1] if self.opening else None if bos_token is None else vocabulary[bos_token]
        self._set_tables(content, place)
        said = {role: vocabulary[token] for role, token in beside.tokens.items() if token in vocabulary}
        said = {role: id_ for role, id_ in ({**ids} | said).items() if role in (*SPELLINGS, "start")}
        self.special: Mapping[str, int] = said
        self._beside = beside
        unlike = [*self._unusual(), *["special"] * special]
        self.digest = hashlib.sha256(json.dumps([definition, eos_token, *unlike]).encode()).hexdigest()

    def _unusual(self) -> list[dict[str, int]]:
        """Return the ids that files beside the definition say and its spellings would not have given."""
        given = {
            role: next((self._vocabulary[name] for name in names if name in self._vocabulary), self.vocab_size + index)
            for index, (role, names) in enumerate(SPELLINGS.items())
        }
        given["start"] = self.special.get("pad", given["pad"])
        unusual = {role: id_ for role, id_ in sorted(self.special.items()) if id_ != given[role]}
        return [unusual] if unusual else []

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._encode(self._backend.encode_batch_fast, texts)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        encodings = self._encode(self._backend.encode_batch, texts)
        return [(np.array(e.ids, np.int32), np.array(e.offsets, np.int64).reshape(-1, 2)) for e in encodings]

    def _encode(self, encode: Callable[..., list[Any]], texts: Sequence[str]) -> list[Any]:
        try:
            return encode(list(texts), add_special_tokens=False)
        except Exception as error:  # a definition that can be read, but not applied, such as one without unknown token
            raise DataError(f"{self._place} cannot encode the text: {error}") from None

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._backend.decode(np.asarray(ids, np.int64).tolist(), skip_special_tokens=True)

    def with_special(self) -> "JsonTokenizer":
        how = self._definition, self._eos_token, self._place, self._bos_token, self._beside
        return JsonTokenizer(*how, special=True)

    def token_id(self, token: str) -> int | None:
        return self._vocabulary.get(token)

    def _set_tables(self, definition: dict[str, Any], place: str) -> None:
        """Derive what each id stands for from its spelling."""
        added = self._backend.get_added_tokens_decoder()
        word_piece = (definition.get("model") or {}).get("type") == "WordPiece"
        length = (lambda token: 0) if word_piece else _token_length(definition, place)
        token_bytes = np.zeros(self.vocab_size, np.int32)
        self.word_starts = np.zeros(self.vocab_size, bool)
        for token, id_ in self._vocabulary.items():
            # Byte-level vocabularies spell a space and a line end as letters.
            inner = token.startswith("##") if word_piece else token[:1].isalnum() and token[0] not in "ĠĊ"
            self.word_starts[id_] = not inner
            if id_ not in added:
                token_bytes[id_] = length(token)
            elif not added[id_].special:
                token_bytes[id_] = len(token.encode())
        self.token_bytes = None if word_piece else token_bytes

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        (folder / FILE).write_bytes(self._definition.encode())
        write_beside(folder, self._beside)
        if self._beside.ids is not None:  # of a model's folder, in which nothing is missing
            (folder / IDS).write_text(json.dumps(self._beside.ids))
            return
        named = {"eos_token": self._eos_token, "bos_token": self._bos_token}
        named = {role: token for role, token in named.items() if token is not None}
        if named and CONFIG_FILE not in self._beside.files:
            (folder / CONFIG_FILE).write_text(json.dumps(named))


def _opening(processor: dict[str, Any]) -> list[int]:
    """Return the ids that a post-processor of a tokenizer.json puts before a text."""
    if processor.get("type") == "Sequence":
        return [id_ for inner in reversed(processor["processors"]) for id_ in _opening(inner)]
    before = itertools.takewhile(lambda part: "SpecialToken" in part, processor.get("single") or [])
    return [id_ for part in before for id_ in processor["special_tokens"][part["SpecialToken"]["id"]]["ids"]]


def _token_length(definition: dict[str, Any], place: str) -> Callable[[str], int]:
    """Return the function from a token's spelling to its number of UTF-8 bytes."""
    parts = [definition.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    pieces = json.dumps(parts, ensure_ascii=False)
    if '"ByteLevel"' in pieces:
        return len  # a character per byte
    if '"Metaspace"' in pieces or "\u2581" in pieces:
        unknown = (definition.get("model") or {}).get("unk_token")

        def length(token: str) -> int:
            if token == unknown:
                return 0
            return 1 if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else len(token.replace("\u2581", " ").encode())

        return length
    raise DataError(
        f"{place}: a vocabulary is byte-level, SentencePiece-style or WordPiece; "
        f"this one has the decoder {(definition.get('decoder') or {}).get('type')!r}"
    )


def save_tokenizer(tokenizer: Tokenizer, folder: str | AnyPath) -> None:
    """Write `tokenizer.json` (for `bytes` it says just that) into a folder, such as a run's.

    Raises:
      DataError: it cannot be written, as on a full disk.
    """
    try:
        with on_disk(folder) as place:
            place.mkdir(parents=True, exist_ok=True)
            tokenizer.save(place)
    except OSError as error:
        raise DataError(f"the tokenizer cannot be written to {folder}: {error.strerror}") from error


def load_tokenizer(folder: str | AnyPath) -> Tokenizer:
    """Load the tokenizer that `save_tokenizer` wrote, or a `tokenizer.json` from elsewhere.

    The end-of-text token is the `eos_token` of a `tokenizer_config.json` beside it, else the `eos_token_id` of the
    `config.json` of a model there, else the first of `EOS_NAMES`. What
    a text starts with is up to the post-processor of the file, as for transformers, whatever `add_bos_token` says.

    Raises:
      DataError: there is none, or it cannot be used.
    """
    return load_file(as_path(folder) / FILE)


def definition_files(path: str | AnyPath) -> list[Path]:
    """Return the files that `load_file` reads for a path.

    Raises:
      DataError: there is no tokenizer.
    """
    path = _on_disk(as_path(path)).expanduser()
    if path.is_dir():
        if not (path / FILE).is_file():
            raise DataError(f"the folder {path} has no {FILE}: give the folder or the path of one")
        path = path / FILE
    if not path.is_file():
        raise DataError(f"there is no tokenizer at {path}")
    return [file for file in (path, path.with_name(CONFIG_FILE)) if file.is_file()]


def _on_disk(path: AnyPath) -> Path:
    """Return a tokenizer's file or folder on the disk, with all that belongs to it beside it."""
    if isinstance(path, Path):
        return path
    if path.is_dir():
        return fetched_folder(path, *PATTERNS)
    return fetched_folder(path.parent, *PATTERNS) / path.name


def load_file(path: str | AnyPath) -> Tokenizer:
    """Load a tokenizer from the path of its `tokenizer.json`, or of the folder of that; see `load_tokenizer`."""
    path = definition_files(path)[0]
    try:
        definition = path.read_bytes().decode()
        content = json.loads(definition)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if content == {"kind": "bytes"}:
        return ByteTokenizer()
    if isinstance(content, dict) and content.keys() == {"kind"}:
        if not named.is_own(str(content["kind"])):
            raise DataError(f"{path} names the tokenizer {brief(content['kind'])}, and there is none of this name")
        return own(content["kind"])
    beside = read_beside(path.parent)
    return JsonTokenizer(definition, beside.tokens.get("eos"), str(path), beside.tokens.get("bos"), beside)
