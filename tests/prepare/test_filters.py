"""The quality filters against a literal reading of the papers, on 1,000 documents."""

import random
import re

import pytest

pytest.importorskip("datatrove", reason="needs the extra prepare")

from bigjax.prepare import words
from bigjax.prepare.pipeline import Preparation
from bigjax.prepare.step import Dropped, load
from tests.prepare import corpus


def documents() -> list[str]:
    """Return plays in lines, most of them spoilt in a way that a rule is made for."""
    rng, found = random.Random(1), []
    for i, text in enumerate(corpus.passages(1000, words=90)):
        parts = re.split(r"(?<=[.!?,;]) ", text)
        lines = [line.strip().capitalize() + ("" if line[-1:] in ".!?" else ".") for line in parts if line.strip()]
        spoil = i % 14
        for at in range(len(lines)):
            if spoil == 1 and rng.random() < 0.9:
                lines[at] = "- " + lines[at]
            elif spoil == 2 and rng.random() < 0.35:
                lines[at] = lines[at].rstrip(".") + "..."
            elif spoil == 3:
                lines[at] += " #" * rng.randint(0, 2)
            elif spoil == 4 and rng.random() < 0.5:
                lines[at] = lines[0]
            elif spoil == 5 and rng.random() < 0.6:
                lines[at] = lines[at][: rng.randint(3, 30)]
            elif spoil == 6 and rng.random() < 0.3:
                lines[at] = " ".join(str(rng.randrange(1000)) for _ in range(9))
            elif spoil == 7 and rng.random() < 0.9:
                lines[at] = lines[at].rstrip(".!?")
        if spoil == 8:
            lines = lines[: rng.randint(1, 6)]
        elif spoil == 9:
            lines = lines[:4] * rng.randint(1, 3) + lines
        elif spoil == 10:
            lines[rng.randrange(len(lines))] += rng.choice((" {x}.", " Lorem ipsum dolor.", " Enable JavaScript now."))
        elif spoil == 11:
            lines = [re.sub(r"\b(the|be|to|of|and|that|have|with)\b", "xu", line) for line in lines]
        elif spoil == 12:
            lines = [line.replace(" ", "") if rng.random() < 0.5 else line for line in lines]
        found.append("\n".join(lines))
    return found


TEXTS = documents()


def kept(name: str, **options) -> list[bool]:
    step = load(name)
    apply = step.build(step.fields(**options), Preparation(sources=("jsonl:x",)))
    return [not isinstance(apply({"text": text}), Dropped) for text in TEXTS]


def gopher_quality(text: str) -> bool:
    """Rae et al. 2021, section A1.1, 'Quality filtering'."""
    tokens, lines = words.spelt(text), text.splitlines()
    real = [token for token in tokens if re.search(r"\w", token) and token != "_"]
    mean = sum(map(len, real)) / max(1, len(real))
    return (
        50 <= len(real) <= 100_000
        and 3 <= mean <= 10
        and text.count("#") / len(tokens) <= 0.1
        and (text.count("...") + text.count("…")) / len(tokens) <= 0.1
        and sum(line.lstrip()[:1] in ("-", "•") for line in lines) <= 0.9 * len(lines)
        and sum(line.rstrip().endswith(("...", "…")) for line in lines) <= 0.3 * len(lines)
        and sum(any(c.isalpha() for c in token) for token in tokens) >= 0.8 * len(tokens)
        and len({"the", "be", "to", "of", "and", "that", "have", "with"} & set(tokens)) >= 2
    )


def gopher_repetition(text: str) -> bool:
    """Rae et al. 2021, table A1."""

    def repeated(parts: list[str]) -> list[str]:
        return [part for i, part in enumerate(parts) if part in parts[:i]]

    lines, paragraphs, tokens = text.split("\n"), text.split("\n\n"), words.spelt(text)
    if len(repeated(lines)) > 0.3 * len(lines) or len(repeated(paragraphs)) > 0.3 * len(paragraphs):
        return False
    if sum(map(len, repeated(lines))) > 0.2 * len(text) or sum(map(len, repeated(paragraphs))) > 0.2 * len(text):
        return False
    for n, limit in ((2, 0.2), (3, 0.18), (4, 0.16)):
        grams = [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        counts = {gram: grams.count(gram) for gram in set(grams)}
        most = max(counts.values(), default=0)
        first = next((gram for gram in grams if counts[gram] == most), "")
        if len(first) * most > limit * len(text):
            return False
    for n, limit in enumerate((0.15, 0.14, 0.13, 0.12, 0.11, 0.10), start=5):
        seen, chars, at = set(), 0, 0
        while at + n <= len(tokens):  # a run that is counted is not counted again in part
            gram = tuple(tokens[at : at + n])
            chars += sum(map(len, gram)) if gram in seen else 0
            at += n if gram in seen else 1
            seen.add(gram)
        if chars > limit * len(text):
            return False
    return True


def c4(text: str) -> bool:
    """Raffel et al. 2020, section 2.2, with the later code's rules on long words and policies."""
    left = []
    for line in text.splitlines():
        lower = line.lower()
        if not line.strip().endswith((".", "!", "?", '"', "'")) or line.strip().endswith("..."):
            continue
        if len(line.split()) < 5 or any(len(word) > 1000 for word in line.split()):
            continue
        if "lorem ipsum" in lower or ("{" in line and "javascript" not in lower):
            return False
        if "javascript" in lower or any(
            phrase in lower for phrase in ("terms of use", "privacy policy", "cookie policy", "uses cookies")
        ):
            continue
        left.append(line)
    return sum(len(words.sentences(line)) for line in left) >= 3


def fineweb(text: str) -> bool:
    """Penedo et al. 2024, section 3.6: the share of lines that end a sentence, of repeated and of short lines."""
    lines = [line for line in text.split("\n") if line.strip()]
    ended = sum(line[-1] in ".!?" for line in lines) / len(lines)
    repeated = sum(len(line) for i, line in enumerate(lines) if line in lines[:i])
    short = sum(len(line) <= 30 for line in lines) / len(lines)
    listed = text.count("\n") / len(words.spelt(text))
    return ended >= 0.12 and short <= 0.67 and repeated <= 0.01 * sum(map(len, text.split("\n"))) and listed <= 0.3


@pytest.mark.parametrize("name, literal", [
    ("gopher_quality", gopher_quality),
    ("gopher_repetition", gopher_repetition),
    ("c4", c4),
    ("fineweb", fineweb),
])  # fmt: skip
def test_a_filter_keeps_what_its_paper_keeps(name, literal):
    expected = [literal(text) for text in TEXTS]
    assert len(TEXTS) == 1000
    assert 30 < sum(expected) < 990
    assert kept(name) == expected


def test_an_empty_text_is_dropped_and_not_divided_by():
    cfg = Preparation(sources=("jsonl:x",))
    for name in ("gopher_quality", "gopher_repetition", "c4", "fineweb", "language"):
        step = load(name)
        apply = step.build(step.fields(), cfg)
        assert [apply({"text": text}) for text in ("", " \n ", "--- !\n")] == [Dropped("empty")] * 3


def test_c4_takes_lines_out():
    apply = load("c4").build(load("c4").fields(), Preparation(sources=("jsonl:x",)))
    good = "This is a good line of text. It has more than one sentence. Here is the third."
    record = {"text": f"Home | About\n{good}\nPlease enable JavaScript to see this page.\nToo short.", "url": "u"}
    assert apply(record) == {"text": good, "url": "u"}
