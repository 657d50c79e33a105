"""What lies beside a `tokenizer.json` and belongs to it: settings, chat templates, and ids that a model's config says.

A run carries all of it along as it is, so that what is exported from the run is read as its origin was.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bigjax.data.errors import DataError
from bigjax.errors import brief

FILE, CONFIG_FILE, TOKENS_MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
TEMPLATES = "additional_chat_templates"
CARRIED = (
    CONFIG_FILE,
    TOKENS_MAP,
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
"""Files that transformers and others read with a `tokenizer.json`, beside the folder of templates."""

PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt", f"{TEMPLATES}/*.jinja")
"""What all of these and the files below match."""

MODEL_CONFIG = "config.json"
IDS = "special_ids.json"
"""What a run folder keeps of the config of the model that its tokenizer came with."""

SPELLINGS = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
"""Role -> how vocabularies spell it, where no file says."""


class Beside(NamedTuple):
    """What belongs to a tokenizer of a folder.

    Attributes:
      files: the bytes of each carried file, by its path in the folder.
      tokens: the spelling of the token for a role, such as `eos`, where a file names one.
      ids: the id for a role by the config of a model, `start` being what an encoder-decoder writes after; None where
        the folder is that of no model.
    """

    files: Mapping[str, bytes]
    tokens: Mapping[str, str]
    ids: Mapping[str, int] | None


def read_beside(folder: str | Path) -> Beside:
    """Read what lies beside a `tokenizer.json`.

    Raises:
      DataError: a file is no JSON, or names a token by something that is no text.
    """
    folder = Path(folder)
    templates = sorted((folder / TEMPLATES).glob("*.jinja"))
    paths = [*(folder / name for name in CARRIED), *templates]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}
    settings, legacy = (_parsed(folder / name) if name in files else {} for name in (CONFIG_FILE, TOKENS_MAP))
    tokens = _tokens(settings, folder / CONFIG_FILE)
    if "added_tokens_decoder" not in settings:  # else transformers does not look into the other file
        tokens |= _tokens(legacy, folder / TOKENS_MAP)
    return Beside(files, tokens, _ids(folder))


def write_beside(folder: str | Path, beside: Beside) -> list[str]:
    """Write what `read_beside` read; return the names of the carried files."""
    folder = Path(folder)
    for name, content in beside.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return [*beside.files]


def _tokens(values: Any, place: Path) -> dict[str, str]:
    """Return the spelling of each role's token by a file of settings."""
    if not isinstance(values, dict):
        raise DataError(f"{place} names no eos_token: it is {brief(values)}")
    found = {}
    for role in (*SPELLINGS, "eos", "bos"):
        token = values.get(f"{role}_token")
        if isinstance(token, dict):  # an added token, spelled out
            token = token.get("content")
        if not (token is None or isinstance(token, str)):
            raise DataError(f"{place} names no {role}_token: it is {brief(token)}")
        if token is not None:
            found[role] = token
    return found


def _ids(folder: Path) -> dict[str, int] | None:
    if (folder / IDS).is_file():
        return _parsed(folder / IDS)
    values = _parsed(folder / MODEL_CONFIG) if (folder / MODEL_CONFIG).is_file() else None
    if not isinstance(values, dict) or "model_type" not in values:  # of a run, or none
        return None
    said = {role: values.get(f"{role}_token_id") for role in (*SPELLINGS, "eos")}
    start = values.get("decoder_start_token_id")
    said["start"] = said["pad"] if start is None else start
    ends = said["eos"]
    said["eos"] = ends[0] if isinstance(ends, list) and ends else ends
    return {role: id_ for role, id_ in said.items() if type(id_) is int and id_ >= 0}


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
