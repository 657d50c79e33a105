"""The main text of a web page, by trafilatura."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bigjax.config.fields import bounded
from bigjax.prepare.step import Dropped, Record, Step, text_of
from bigjax.prepare.text import blocks


@dataclass(frozen=True)
class Html:
    """What of a page is wanted."""

    precise: bool = True
    """Whether less text, of which more is right, is preferred."""
    tables: bool = True
    """Whether the cells of tables are text, too."""
    max_mb: float = bounded(10.0, above=0)
    """Megabytes above which a page is dropped."""
    max_seconds: int = bounded(60, minimum=1)
    """Seconds after which a page is given up and dropped."""


class _TooSlow(Exception):
    pass


def _build(options: Html, cfg) -> Callable[[Record], Record | Dropped]:
    extract = blocks.imported("trafilatura").extract

    def apply(record: Record) -> Record | Dropped:
        page = text_of(record, cfg.text_key)
        if len(page) > options.max_mb * 1e6:
            return Dropped("too_large")
        try:
            with _limit(options.max_seconds):
                # Its option `deduplicate` is off: it remembers earlier pages, so that what a page becomes would depend
                # on those that the same process has seen before it.
                text = extract(
                    page,
                    favor_precision=options.precise,
                    include_comments=False,
                    include_tables=options.tables,
                    deduplicate=False,
                )
        except _TooSlow:
            return Dropped("too_slow")
        return {**record, cfg.text_key: text} if text else Dropped("no_main_text")

    return apply


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """Raise _TooSlow after so many seconds, where the system can interrupt this thread."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: Any) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


STEP = Step(_build, Html)
