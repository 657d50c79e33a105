"""E-mail addresses, IP addresses and long numbers replaced; the first two as datatrove does."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from bigjax.config.fields import bounded
from bigjax.prepare.step import Dropped, Record, Step, text_of
from bigjax.prepare.text import blocks


@dataclass(frozen=True)
class Mask:
    """What is replaced, and by what."""

    email: str = "email@example.com"
    """What an e-mail address becomes; empty leaves them."""
    ip: str = "192.0.2.1"
    """What a public IP address becomes; empty leaves them. The default is one that RFC 5737 keeps for documentation."""
    number: str = "0"
    """What each digit of a long number becomes, as those of telephones, bank accounts and cards; empty leaves them."""
    min_digits: int = bounded(7, minimum=1)
    """Digits from which on a number is long; single spaces, dots, hyphens and brackets between them do not count."""


_NUMBER = re.compile(r"(?<![\w.])\+?\(?\d(?:[ ().\-/]{0,2}\d)*(?!\w)")


def _build(options: Mask, cfg) -> Callable[[Record], Record | Dropped]:
    module = blocks.imported("datatrove.pipeline.formatters.pii")
    block = module.PIIFormatter(
        remove_emails=bool(options.email),
        remove_ips=bool(options.ip),
        email_replacement=options.email or "-",
        ip_replacement=options.ip or "-",
    )

    def number(match: re.Match) -> str:
        digits = sum(map(str.isdigit, match[0]))
        return re.sub(r"\d", options.number, match[0]) if digits >= options.min_digits else match[0]

    def apply(record: Record) -> Record | Dropped:
        text = block.format(text_of(record, cfg.text_key))
        return {**record, cfg.text_key: _NUMBER.sub(number, text) if options.number else text}

    return apply


STEP = Step(_build, Mask)
