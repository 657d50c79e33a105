"""Which text a run is of: by what its files hold, wherever they lie. The fingerprint of a run sees that, not paths.

What reads files is imported only where there are any, so that a command can say at once what it does.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigjax.config import Config, named, replace, strict

FIELDS = ("data.sources", "data.eval_sources", "data.tokenizer")
"""The fields that name files. Others may name the user's own code, which is known by what its files hold, too."""

LISTED = 1000
"""Of a source of more files than these only the hash of all is kept."""

MADE = ("shakespeare", "shakespeare-passages", "copy", "sklearn")
"""Kinds of sources that are no files."""

Contents = dict[str, Any]
"""For each field that names files or code, a list with an entry for each name in it: None where that is no file, else
`sha256` of all files in order and `files`, the sha256 of each by name."""


def contents_of(cfg: Config) -> Contents:
    """Return what the files of a run's text and tokenizer hold now.

    Raises:
      DataError: a source or a tokenizer cannot be read.
    """
    found = {
        "data.sources": [_source(cfg, spec) for spec in cfg.data.sources],
        "data.eval_sources": [_source(cfg, spec) for spec in cfg.data.eval_sources],
        "data.tokenizer": [_tokenizer(cfg, cfg.data.tokenizer)],
    }
    found |= {path: [_code(name)] for path, name in strict.code_of(cfg).items()}
    return {path: entries for path, entries in found.items() if any(entries)}


class Once:
    """`contents_of`, looked up once for each config, as a start asks it again and again."""

    def __init__(self):
        self._seen: list[tuple[Any, Contents]] = []

    def __call__(self, cfg: Config) -> Contents:
        """Return what the files held when this was first asked."""
        asked = strict.maths(cfg), cfg.data  # a start may choose a mesh and the like in between
        for known, found in self._seen:
            if known == asked:
                return found
        self._seen.append((asked, contents_of(cfg)))
        return self._seen[-1][1]


def _code(name: str) -> dict[str, Any]:
    return {"sha256": named.digest(name), "files": named.own_hashes(name)}


def _source(cfg: Config, spec: str) -> dict[str, Any] | None:
    if spec.partition(":")[0] in MADE:
        return None
    from bigjax.data.sources.opening import FORMS, open_source
    from bigjax.data.tokens.cache import cache_folder

    if _is_own(spec, FORMS):  # known by its code: to open it would read all of it
        return _entry(named.own_hashes(spec))
    source = open_source(spec, named.task(cfg).columns(cfg), cache_folder(cfg.data.cache_dir))
    return {"sha256": source.digest, "files": source.files} if source.corpus is not None else _entry(source.files)


def _tokenizer(cfg: Config, spec: str) -> dict[str, Any] | None:
    kind, _, place = spec.partition(":")
    if kind in ("bytes", "bpe") or not place:
        return None
    from bigjax.data.tokens.bpe import FORMS

    if _is_own(spec, FORMS):
        return _entry(named.own_hashes(spec))
    if kind != "hf":
        return None
    from bigjax.data.sources import readers
    from bigjax.data.tokens.cache import cache_folder
    from bigjax.data.tokens.tokenizers import definition_files

    root = cache_folder(cfg.data.cache_dir)
    return _entry({path.name: readers.file_digest(path, root) for path in definition_files(place)})


def code_of(cfg: Config) -> dict[str, Path]:
    """Return the files of the user's own code that a config names, by module."""
    from bigjax.data.sources import opening
    from bigjax.data.tokens import bpe

    own = list(strict.code_of(cfg).values())
    for specs, forms in (
        ((*cfg.data.sources, *cfg.data.eval_sources), opening.FORMS),
        ((cfg.data.tokenizer,), bpe.FORMS),
    ):
        own += [spec for spec in specs if _is_own(spec, forms)]
    return {module: file for name in own for module, file in named.own_files(name).items()}


def _is_own(spec: str, forms: Mapping[str, str]) -> bool:
    """Whether a source or a tokenizer is the user's own: what bigjax has a meaning for comes first."""
    return spec.partition(":")[0] not in forms and named.is_own(spec)


def _entry(files: Mapping[str, str]) -> dict[str, Any]:
    listed = dict(files) if len(files) <= LISTED else {}
    return {"sha256": hashlib.sha256(json.dumps([*files.values()]).encode()).hexdigest(), "files": listed}


def fingerprint(cfg: Config, contents: Contents | None = None) -> str:
    """Return `strict.fingerprint` with what files hold in the place of their names.

    Args:
      contents: as `contents_of` returned it for this config, then or now; None: as it returns it now.
    """
    contents = contents_of(cfg) if contents is None else contents
    fields, code = {}, {}
    for path, entries in contents.items():
        if path not in FIELDS:
            code[path] = entries[0]["sha256"]
            continue
        name = path.rpartition(".")[2]
        value = getattr(cfg.data, name)
        names = [value] if isinstance(value, str) else value
        # A name is `KIND:PLACE`, and the kind stays.
        held = [
            spec if entry is None else f"{spec.partition(':')[0]}:sha256={entry['sha256']}"
            for spec, entry in zip(names, entries, strict=True)
        ]
        fields[name] = held[0] if isinstance(value, str) else tuple(held)
    return strict.fingerprint(replace(cfg, data=fields) if fields else cfg, code or None)


def changes(before: Contents, now: Contents) -> list[str]:
    """Return a line for each of the first few files that are not what they were, with both hashes."""
    found = []
    for path in dict.fromkeys((*FIELDS, *before, *now)):
        for old, new in zip(before.get(path, []), now.get(path, []), strict=False):
            if old and new and old["sha256"] != new["sha256"]:
                found += list(_changed_files(old, new)) or [
                    f"{path}: the sha256 of all files was {old['sha256'][:12]} and is {new['sha256'][:12]}"
                ]
    return found[:5] + ([f"... and {len(found) - 5} more"] if len(found) > 5 else [])


def _changed_files(old: dict[str, Any], new: dict[str, Any]):
    for name in sorted({**old["files"], **new["files"]}):
        was, now = old["files"].get(name), new["files"].get(name)
        if was != now:
            yield f"{name}: sha256 was {_short(was)} and is {_short(now)}"


def _short(digest: str | None) -> str:
    return "none (no such file)" if digest is None else digest[:12]
