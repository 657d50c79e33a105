"""The tokenizer of an exported folder: transformers' AutoTokenizer makes the rows that the run was trained on, and its
`generate` starts and ends texts as the run does.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from bigjax.config import ModelConfig
from bigjax.data.cutting import ends_of
from bigjax.data.tokens.beside import CONFIG_FILE, FILE, IDS, SPELLINGS, read_beside
from bigjax.data.tokens.special import SENTINELS, special_ids
from bigjax.data.tokens.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from bigjax.interop.hf.architecture import HuggingFaceError
from bigjax.interop.hf.config import EOS, GENERATION, read_json
from bigjax.interop.hf.origin import config_of
from bigjax.run.json_files import write_json

START = "decoder_start_token_id"
STARTS = (START, "pad_token_id")
"""What decides with which token an encoder-decoder starts to write."""


class Special(NamedTuple):
    """What a family does with special tokens.

    Attributes:
      config: keys of `config.json`. roles: names of `tokenizer_config.json` -> ids. around: the ids before and after a
        text. settings: other keys of `tokenizer_config.json`.
    """

    config: Mapping[str, int | None]
    roles: dict[str, int]
    around: tuple[list[int], list[int]]
    settings: Mapping[str, Any] = MappingProxyType({})


def _of_decoder(tokenizer: Tokenizer) -> Special:
    bos_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return Special({"bos_token_id": bos_id, EOS: tokenizer.eos_id}, {}, ([], []))


def _of_encoder(tokenizer: Tokenizer) -> Special:
    ids = special_ids(tokenizer, tuple(SPELLINGS))
    roles = {f"{role}_token": id_ for role, id_ in ids.items()}
    inputs = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    return Special({"pad_token_id": ids["pad"]}, roles, ([ids["cls"]], [ids["sep"]]), inputs)


def _of_encdec(tokenizer: Tokenizer) -> Special:
    ends = ends_of(tokenizer)
    said = {"pad_token_id": ends.pad, EOS: ends.end, START: ends.start}
    return Special(said, {"pad_token": ends.pad, "eos_token": ends.end}, ([], [ends.end]))


_SPECIAL: dict[str, Callable[[Tokenizer], Special]] = {
    "decoder": _of_decoder,
    "encoder": _of_encoder,
    "encdec": _of_encdec,
}


class Exported(NamedTuple):
    """What was written: the special tokens that a run was trained with, by keys of `config.json`, and the files."""

    special: Mapping[str, int | None]
    files: list[str]


def export_tokenizer(source: str | Path, folder: str | Path, cfg: ModelConfig) -> Exported:
    """Write the tokenizer of `source`, if it has one, for a model.

    One that came from a model's folder is written as it was there, if it has all the tokens that the model needs.

    Raises:
      HuggingFaceError: it has more ids than the model.
    """
    folder = Path(folder)
    source = Path(source)
    if not (source / FILE).is_file():
        return Exported({}, [])
    tokenizer = load_tokenizer(source)
    if tokenizer.vocab_size > cfg.vocab_size:
        raise HuggingFaceError(
            f"{source / FILE} has ids up to {tokenizer.vocab_size - 1}, but model.vocab_size={cfg.vocab_size}"
        )
    special = _SPECIAL[cfg.family](tokenizer)
    if isinstance(tokenizer, ByteTokenizer):  # no tokenizer.json that others know
        return Exported(special.config, [])
    tokenizer.save(folder)
    beside = read_beside(source)
    (folder / IDS).unlink(missing_ok=True)
    files = [FILE, *beside.files]
    if beside.ids is not None and all(id_ < tokenizer.vocab_size for id_ in special.roles.values()):
        return Exported(special.config, files)
    spellings = _complete(folder / FILE, tokenizer, special, cfg) if special.roles else {}
    # By the model's type alone, AutoTokenizer would put another family's vocabulary rules in the place of the file's.
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **special.settings, **spellings}
    for place in (folder / CONFIG_FILE, source / CONFIG_FILE):
        settings |= read_json(place) if place.is_file() else {}
    write_json(folder / CONFIG_FILE, settings)
    return Exported(special.config, [*dict.fromkeys([*files, CONFIG_FILE])])


def special_tokens(
    special: Mapping[str, int | None], origin: str | Path | None, cfg: ModelConfig
) -> dict[str, int | None]:
    """Return what `config.json` says of special tokens: as that of the origin, if there is one, in the same way.

    An encoder-decoder starts in any case with the token that it was trained to start with.
    """
    if config_of(origin):
        return {key: special[key] for key in STARTS if key in special} if cfg.family == "encdec" else {}
    none = dict.fromkeys(("bos_token_id", EOS, "pad_token_id"))  # no token of another vocabulary
    return none | dict(special)


def export_generation(origin: str | Path | None, folder: str | Path, special: Mapping[str, int | None]) -> list[str]:
    """Write `generation_config.json` as the origin has it, if there is one; else the model's special tokens.

    Returns:
      The files written: none where the model ends no text, or the origin's `config.json` says all.

    Raises:
      HuggingFaceError: what is there cannot be read.
    """
    folder = Path(folder)
    origin = None if origin is None else Path(origin)
    found = origin / GENERATION if origin and (origin / GENERATION).is_file() else None
    if found is None and (special.get(EOS) is None or config_of(origin)):
        return []
    ids = {name: id_ for name, id_ in special.items() if id_ is not None}
    write_json(folder / GENERATION, read_json(found) if found else ids)
    return [GENERATION]


def _complete(path: Path, tokenizer: Tokenizer, special: Special, cfg: ModelConfig) -> dict[str, str]:
    """Spell special tokens that stand after a vocabulary, and put texts between their ends; return the spellings."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    backend = Backend.from_file(str(path))
    if all(tokenizer.token_id(name) is None for names in SPELLINGS.values() for name in names):
        after = [names[0] for names in SPELLINGS.values()]
        after += [f"<extra_id_{number}>" for number in range(SENTINELS)] if cfg.kind == "encdec" else []
        backend.add_special_tokens(after[: cfg.vocab_size - tokenizer.vocab_size])
    named = {role: backend.id_to_token(id_) for role, id_ in special.roles.items()}
    spelled = [[backend.id_to_token(id_) for id_ in ids] for ids in special.around]
    # What is there already adds the ends, but for the one of byte-level vocabularies, which only counts characters.
    kind = type(backend.post_processor).__name__
    if kind in ("NoneType", "ByteLevel") and None not in [*spelled[0], *spelled[1]]:
        ids = [(backend.id_to_token(id_), id_) for id_ in {*special.around[0], *special.around[1]}]
        pair = [*spelled[0], "$A", *spelled[1], "$B:1", *(f"{token}:1" for token in spelled[1])]
        backend.post_processor = TemplateProcessing(
            single=[*spelled[0], "$A", *spelled[1]], pair=pair, special_tokens=ids
        )
    backend.save(str(path))
    return {role: name for role, name in named.items() if name is not None}
