"""Blocks of datatrove as functions on records."""

from collections.abc import Callable
from typing import Any

from bigjax.prepare.errors import PrepareError
from bigjax.prepare.step import Dropped, Record, text_of
from bigjax.prepare.words import any_word


def imported(module: str) -> Any:
    """Return a module of a package of the extra `prepare`.

    Raises:
      PrepareError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise PrepareError(f"this step needs {error.name}: pip install 'bigjax[prepare]'") from None


def filtering(block: Any, cfg: Any) -> Callable[[Record], Record | Dropped]:
    """Return a filter of datatrove, which may also change the text, as a function on records.

    A text without a word is dropped as `empty`: the filters divide by numbers of words and lines.
    """
    document, result = imported("datatrove.data").Document, imported("datatrove.pipeline.filters.base_filter")

    def apply(record: Record) -> Record | Dropped:
        text = text_of(record, cfg.text_key)
        if not any_word(text):
            return Dropped("empty")
        found = document(text=text, id="")
        kept, rule = result.get_filter_result(block.filter(found))
        if not kept:
            return Dropped(rule or "dropped")
        return record if found.text is text else {**record, cfg.text_key: found.text}

    return apply
