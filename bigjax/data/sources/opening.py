"""Sources: from the strings of `data.sources` to records, split into training and held-out ones.

A record is a name and what it holds: a text where one column is asked for, else a tuple of the values of the columns,
strings, numbers, lists of them or NumPy arrays.

A source is known by the hash of its content, never by its path or time stamp: local files are read once, in full, to
compute it. Held-out documents are whole documents. Which they are depends on the source:

- `shakespeare` and `shakespeare-passages` have a fixed list of held-out works, which is never trained on;
- with `data.eval_sources` the other sources train on all their documents, and those sources are evaluated on;
- otherwise a document is held out when a hash of what it holds, as a number in [0, 1), is below `data.holdout`. So a
  document is on the same side in every run and on every machine, and copies of a document are on one side;
- where this leaves a side empty, the document with the lowest hash is held out, or the one with the highest trained on;
  of fewer than `FEW` plain texts the end of each is held out, `data.holdout` of it.

The user's own source is `module.path:NAME`, see `own`.
"""

import contextlib
import difflib
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bigjax.config import named
from bigjax.data.errors import DataError
from bigjax.data.sources import copying, own, readers, shakespeare, stored, tables
from bigjax.data.sources import tfds as tfds_source
from bigjax.data.sources.held_out import canonical, document_fraction, tail_start
from bigjax.data.stored.corpus import Corpus

Split = Literal["train", "eval"]
Document = tuple[str, Any]
"""Name, and a text or the values of several columns."""

FORMS = {
    "shakespeare": "shakespeare",
    "text": "text:GLOB",
    "shakespeare-passages": "shakespeare-passages",
    "jsonl": "jsonl:GLOB",
    "csv": "csv:GLOB",
    "tsv": "tsv:GLOB",
    "parquet": "parquet:GLOB",
    "tfds": "tfds:NAME[:SPLIT]",
    "copy": "copy:SYMBOLS:LENGTH",
    "conll": "conll:GLOB",
    "sklearn": "sklearn:NAME",
    "tokens": "tokens:GLOB",
}
"""How a source of each kind is written."""


READERS: dict[str, Callable[..., Iterator[Document]]] = {
    "jsonl": readers.read_jsonl,
    "csv": functools.partial(tables.read_table, delimiter=","),
    "tsv": functools.partial(tables.read_table, delimiter="\t"),
    "parquet": tables.read_parquet,
}
"""`reader(name, path, key)` yields (name, value of the column) of every record."""

RECORD_READERS: dict[str, Callable[..., Iterator[Document]]] = {
    "jsonl": readers.read_records,
    "conll": readers.read_conll,
    "csv": functools.partial(tables.read_table_records, delimiter=","),
    "tsv": functools.partial(tables.read_table_records, delimiter="\t"),
    "parquet": tables.read_parquet_records,
    "sklearn": tables.read_packaged,
}
"""`reader(name, path, keys)` yields (name, values of the columns) of every record."""


@dataclass(frozen=True)
class Source:
    """Documents that can be read again and again, in a fixed order.

    Attributes:
      spec: the string it was opened from.
      files: sha256 of every file by name; empty for the packaged corpus.
      digest: sha256 of everything the documents depend on.
      read: starts a pass over all the documents.
      notes: what is to be said of its files.
      corpus: its tokens, where it holds these and not texts; then it has no documents to read.
    """

    spec: str
    files: dict[str, str]
    digest: str
    read: Callable[[], Iterator[Document]]
    notes: tuple[str, ...] = ()
    corpus: Corpus | None = None


def open_source(
    spec: str, text_key: str | tuple[str, ...], root: Path | None = None, *, labels: bool = False
) -> Source:
    """Open a source and hash its content.

    Args:
      text_key: the column that holds the texts; or several, of which a document is the values.
      root: cache folder, where the hashes of large files are kept. labels: whether the column may hold whole numbers
        or truth values, too.

    Raises:
      DataError: unknown kind, no file matches, an empty file, a dataset that is not prepared, an unknown split; several
        columns of a kind that has one.
    """
    kind, _, rest = spec.partition(":")
    if kind not in FORMS and named.is_own(spec):
        code = named.own_hashes(spec)
        return _made(spec, [spec, *code.values()], own.reader(spec, text_key, labels), code)
    packaged = kind.startswith("shakespeare")
    if kind not in FORMS or (spec != kind if packaged else not rest):
        near = difflib.get_close_matches(kind, FORMS, n=1, cutoff=0.0)[0]
        raise DataError(
            f"{spec!r} is no source; did you mean {FORMS[near]!r}? A source is {' or '.join(FORMS.values())}, or your "
            f"own as module.path:NAME{_QUOTED if ':' not in spec else ''}"
        )
    if not _suits(kind, text_key):
        raise DataError(f"{spec!r} cannot give what train.objective reads: {_wanted(text_key)}")
    if kind == "tokens":
        corpus = stored.open_tokens(rest, root)
        files = dict(corpus.files()) if corpus.shards <= stored.LISTED else {}
        return Source(spec, files, corpus.digest, functools.partial(stored.no_documents, spec), (), corpus)
    if kind == "sklearn" and isinstance(text_key, tuple):
        return _made(spec, [kind, rest, *text_key], functools.partial(tables.read_packaged, rest, text_key))
    if isinstance(text_key, tuple):
        files, notes = readers.find_files(rest)
        paths = readers.relative_names(files)
        read_all = RECORD_READERS[kind]
        records = lambda: (doc for item in paths.items() for doc in read_all(*item, text_key))  # noqa: E731
        return _hashed(spec, [kind, *text_key], paths, records, root, notes)
    if kind == "shakespeare":
        return Source(spec, {}, shakespeare.SHA256, shakespeare.works)
    if packaged:
        digest = hashlib.sha256(f"{shakespeare.SHA256}/{spec}/{text_key}".encode()).hexdigest()
        return Source(spec, {}, digest, functools.partial(shakespeare.passages, text_key))
    if kind == "copy":
        made = functools.partial(copying.rows, *copying.parse(rest))  # every column holds the same
        return Source(spec, {}, hashlib.sha256(spec.encode()).hexdigest(), made)
    if kind == "tfds":
        builder, split = tfds_source.open_split(rest, text_key)
        paths = {path.name: path for path in tfds_source.split_files(builder, split)}
        read = functools.partial(tfds_source.read_tfds, builder, split, text_key, labels)
        return _hashed(spec, [kind, split, text_key], paths, read, root)
    files, notes = readers.find_files(rest)
    if kind == "parquet" and 0 < len(bare := tables.without_rows(files)) < len(files):
        files = [path for path in files if path not in bare]
        notes += tuple(f"{path} is empty: it has no rows" for path in bare)
    paths = readers.relative_names(files)
    if kind == "text":
        whole = lambda: (doc for item in paths.items() for doc in readers.read_text(*item))  # noqa: E731
        return _hashed(spec, [kind], paths, whole, root, notes)
    reader = READERS[kind]
    documents = lambda: (doc for item in paths.items() for doc in reader(*item, text_key, labels))  # noqa: E731
    return _hashed(spec, [kind, text_key], paths, documents, root, notes)


_QUOTED = (
    """. A comma in a file's name needs quotes: --config.data.sources="('text:a,b.txt',)", or """
    """--sources='"text:a,b.txt"'"""
)


def _suits(kind: str, columns: str | tuple[str, ...]) -> bool:
    if isinstance(columns, str):
        return kind not in ("conll", "sklearn")
    return kind in RECORD_READERS and (kind != "conll" or len(columns) == 2)


def _wanted(columns: str | tuple[str, ...]) -> str:
    if isinstance(columns, str):
        return f"texts, under {columns!r}"
    forms = " or ".join(FORMS[kind] for kind in RECORD_READERS if _suits(kind, columns))
    return f"{', '.join(repr(key) for key in columns if key not in readers.OPTIONAL)} of each record of {forms}"


def _made(
    spec: str, how: list[str], read: Callable[[], Iterator[Document]], files: dict[str, str] | None = None
) -> Source:
    """Return the source of records that are in no file; it is known by what they hold."""
    digest = hashlib.sha256(json.dumps(how).encode())
    for _, value in read():
        digest.update(canonical(value))
    return Source(spec, files or {}, digest.hexdigest(), read)


def _packaged(source: Source) -> bool:
    """Whether the source has a fixed list of held-out works."""
    return source.spec.startswith("shakespeare")


def _hashed(
    spec: str,
    how: list[str],
    paths: dict[str, Path],
    read: Callable[[], Iterator[Document]],
    root: Path | None,
    notes: tuple[str, ...] = (),
) -> Source:
    """Return the source of some files; a pass over them ends with an error if they are no longer those hashed here.

    Else what was read of a file that changed meanwhile would be kept, in the cache, as the content of the old one.
    """
    with _readable():
        files = {name: readers.file_digest(path, root) for name, path in paths.items()}

    def documents() -> Iterator[Document]:
        with _readable():
            yield from read()
            for name, path in paths.items():
                if readers.file_digest(path, root) != files[name]:
                    raise DataError(f"{path} changed while it was read: run again when nothing writes to it")

    digest = hashlib.sha256(json.dumps([how, files]).encode()).hexdigest()
    return Source(spec, files, digest, documents, notes)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Make a file that the system does not let us read, or not any more, a DataError that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class SplitSource:
    """One side of a source.

    Attributes:
      source: where the documents come from.
      split: `train` or `eval`.
      rule: which documents belong to it: `all`, `works` (the fixed list) or `hash:P`; or `tail:P`, the part of each.
    """

    source: Source
    split: Split
    rule: str

    def documents(self) -> Iterator[Document]:
        """Yield the documents on this side, in the order of the source."""
        if self.rule.startswith("tail:"):
            return self._parts(float(self.rule.removeprefix("tail:")))
        return (document for document in self.source.read() if self.keeps(*document))

    def keeps(self, name: str, text: Any) -> bool:
        """Whether a document of the source is on this side."""
        return self.rule == "all" or (self.split == "eval") == self._held_out(name, text)

    def _parts(self, share: float) -> Iterator[Document]:
        """Yield the beginning or the end of each document, cut where a line or else a word begins, if one is near."""
        for name, text in self.source.read():
            cut = tail_start(text, share)
            if part := text[:cut] if self.split == "train" else text[cut:]:
                yield name, part

    def _held_out(self, name: str, text: Any) -> bool:
        if self.rule == "works":
            return name.partition(":")[0] in shakespeare.HELD_OUT
        return document_fraction(text) < float(self.rule.removeprefix("hash:"))

    def key(self) -> list[str]:
        """What the documents depend on, for a cache."""
        return [self.source.digest, self.split if self.rule != "all" else "all", self.rule]


FEW = 10
"""Documents, of which one would be more than is wanted of a text."""


def _rule(source: Source, holdout: float, whole: bool) -> str:
    """Return the rule that holds out documents of a source, or, of too few and unless `whole`, parts of each."""
    if source.corpus is not None:
        return f"tail:{holdout}"
    lowest, highest, sides, count = 1.0, 0.0, set(), 0
    for count, (_, text) in enumerate(source.read(), start=1):  # noqa: B007
        fraction = document_fraction(text)
        lowest, highest = min(lowest, fraction), max(highest, fraction)
        sides.add(fraction < holdout)
        if len(sides) == 2:
            return f"hash:{holdout}"
    if count < FEW and not whole:
        return f"tail:{holdout}"
    if lowest < highest:  # more than one text
        return f"hash:{highest if True in sides else math.nextafter(lowest, 1.0)!r}"
    return f"hash:{holdout}"


def split_sources(
    sources: tuple[str, ...],
    eval_sources: tuple[str, ...],
    holdout: float,
    text_key: str | tuple[str, ...],
    root: Path | None = None,
    *,
    whole: bool = True,
) -> tuple[list[SplitSource], list[SplitSource]]:
    """Return the training sides and the held-out sides (none when nothing is held out).

    Args:
      whole: whether documents must not be cut in two where there are too few to hold one out.

    Raises:
      DataError: as `open_source`, or a file is both trained on and evaluated on.
    """
    train_side = [open_source(spec, text_key, root) for spec in sources]
    rules = [
        "works" if _packaged(source) else _rule(source, holdout, whole) if holdout and not eval_sources else "all"
        for source in train_side
    ]
    train = [SplitSource(source, "train", rule) for source, rule in zip(train_side, rules, strict=True)]
    if not eval_sources:
        held_out = zip(train_side, rules, strict=True)
        return train, [SplitSource(source, "eval", rule) for source, rule in held_out if rule != "all"]
    eval_side = [open_source(spec, text_key, root) for spec in eval_sources]
    trained_on = {digest: (source.spec, name) for source in train_side for name, digest in source.files.items()}
    for source in eval_side:
        for name, digest in source.files.items():
            if digest in trained_on:
                spec, trained_name = trained_on[digest]
                raise DataError(
                    f"data.eval_sources: {name} of {source.spec!r} has the same bytes as {trained_name} of {spec!r}, "
                    "which is trained on: take it out of one of them"
                )
        stored.check_apart(source.spec, source.corpus, [(other.spec, other.corpus) for other in train_side])
    return train, [SplitSource(s, "eval", "works" if _packaged(s) else "all") for s in eval_side]
