"""A source of the user's own, `module.path:NAME`: a function that yields every record as a mapping of columns."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bigjax.config import named
from bigjax.data.errors import DataError
from bigjax.data.sources.readers import ALL, OPTIONAL, picked, spelled


def reader(spec: str, columns: str | tuple[str, ...], labels: bool) -> Callable[[], Iterator[tuple[str, Any]]]:
    """Return what starts a pass over the records that a function of the user's yields.

    Args:
      columns: the column that holds the texts, or those of which a record is the values. labels: whether the texts may
        be whole numbers or truth values, too.

    Raises:
      ConfigError: it cannot be imported. DataError: it is not a function; and in a pass: it fails, a record is not a
        mapping, lacks a column, or holds no string where a text is asked for.
    """
    function = named.load("data.sources", spec, {})
    if not callable(function):
        raise DataError(f"{spec!r} is a {type(function).__name__}, not a function that yields records")
    return functools.partial(_read, spec, function, columns, labels)


def _read(spec: str, function: Callable[[], Any], columns: str | tuple[str, ...], labels: bool):
    keys = (columns,) if isinstance(columns, str) else columns
    for number, record in enumerate(_records(spec, function)):
        if not isinstance(record, Mapping):
            raise DataError(f"{spec}, record {number}: a {type(record).__name__}, not a mapping of columns")
        for key in keys:
            if key not in record and key not in (ALL, *OPTIONAL):
                raise DataError(f"{spec}, record {number}: no column {key!r}, only {', '.join(map(repr, record))}")
        name = f"{named.section(spec)}:{number}"
        if not isinstance(columns, str):
            yield name, picked(dict(record), columns)
            continue
        text = spelled(record[columns]) if labels else record[columns]
        if not isinstance(text, str):
            raise DataError(f"{spec}, record {number}: {columns!r} is {type(text).__name__}, not a string")
        yield name, text


def _records(spec: str, function: Callable[[], Any]) -> Iterator[Any]:
    try:
        yield from function()
    except DataError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise DataError(f"{spec} failed while it was read: {said}") from error
