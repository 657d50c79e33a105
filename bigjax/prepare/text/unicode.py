"""Repair of text that was decoded wrongly, by ftfy, with the choices of datatrove's formatter."""

import re
from collections.abc import Callable

from bigjax.prepare.step import Dropped, Record, Step, text_of
from bigjax.prepare.text import blocks

_SOUND = re.compile(r"[\t\n\r -%'-~]*")
"""ASCII without control characters and the `&` of HTML: nothing that could be repaired, which is most of English."""


def _build(options, cfg) -> Callable[[Record], Record | Dropped]:
    del options
    blocks.imported("ftfy")
    block = blocks.imported("datatrove.pipeline.formatters.ftfy").FTFYFormatter()

    def apply(record: Record) -> Record | Dropped:
        text = text_of(record, cfg.text_key)
        return record if _SOUND.fullmatch(text) else {**record, cfg.text_key: block.format(text)}

    return apply


STEP = Step(_build)
