"""A crawl to clean, made from the packaged Shakespeare: `python -m experiments.studies.prepared_text.crawl FOLDER`.

`FOLDER/raw.jsonl` has the faults that crawls are known for, in shares of its pages: `COPIES` repeat a popular page, as
it is or with a few words changed, `SPAM` are lists of search words, `GARBLED` were decoded wrongly, and all have the
menu and the foot of their site. `FOLDER/clean.jsonl` has passages of works that no page is from, without any fault.
"""

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from bigjax.data.sources import shakespeare

PAGES, WORDS = 6000, 150
COPIES, SPAM, GARBLED = 0.35, 0.15, 0.15
"""Shares of the pages; the first is about that of exact and near duplicates in one dump of Common Crawl."""

MENU = "Home | Plays | Sonnets | About us | Contact\nSign in or register\nShare this page"
FOOT = "Previous | Next\nTerms of use | Privacy policy\nThis site uses cookies to improve your experience.\nBack to top"
TERMS = ["cheap", "deals", "online", "casino", "bonus", "free", "download", "best", "price", "buy", "now", "click"]
TERMS += ["here", "win", "big", "offer"]


def passages(held_out: bool) -> Iterator[str]:
    """Yield passages of whole sentences of the works that are held out, or of the others."""
    for name, text in shakespeare.works():
        if (name in shakespeare.HELD_OUT) != held_out:
            continue
        passage: list[str] = []
        for sentence in re.split(r"(?<=[.!?])\s+", text):
            passage += sentence.split()
            if len(passage) >= WORDS and passage[-1][-1] in ".!?":
                yield " ".join(passage)
                passage = []


def pages(seed: int = 0) -> Iterator[str]:
    """Yield the pages of the crawl."""
    rng = random.Random(seed)
    plays = list(passages(held_out=False))
    rng.shuffle(plays)
    popular, fresh = plays[:40], iter(plays[40:])
    for _ in range(PAGES):
        kind = rng.random()
        if kind < COPIES:
            words = rng.choice(popular).split()
            for at in rng.sample(range(len(words)), rng.choice((0, 0, 1, 2, 3))):
                words[at] = rng.choice(TERMS)
            text = " ".join(words)
        elif kind < COPIES + SPAM:
            text = "\n".join(" ".join(rng.choices(TERMS, k=8)) for _ in range(rng.randint(10, 30)))
        else:
            text = next(fresh, None) or rng.choice(plays)
            if kind > 1 - GARBLED:
                text = text.replace("'", "’").encode().decode("cp1252")
        yield f"{MENU}\n{text}\n{FOOT}"


def write(folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in (("raw", pages()), ("clean", passages(held_out=True))):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
