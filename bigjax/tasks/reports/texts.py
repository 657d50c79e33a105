"""Scores of written texts against what should have been written."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

Texts = Sequence[str]


def bleu(written: Texts, references: Texts) -> float:
    """Return BLEU of the corpus, 0 to 100, as sacrebleu computes it by default (Papineni et al. 2002; Post 2018)."""
    import sacrebleu

    return sacrebleu.corpus_bleu(list(written), [list(references)]).score


def chrf(written: Texts, references: Texts) -> float:
    """Return chrF2 of the corpus, 0 to 100, as sacrebleu computes it by default (Popović 2015)."""
    import sacrebleu

    return sacrebleu.corpus_chrf(list(written), [list(references)]).score


def exact_match(written: Texts, references: Texts) -> float:
    """Return the share of texts that equal their reference, space around them aside."""
    return _mean(float(a.strip() == b.strip()) for a, b in zip(written, references, strict=True))


def token_f1(written: Texts, references: Texts) -> float:
    """Return the mean over texts of the F1 of their words, as bags (Rajpurkar et al. 2016, section 6.1)."""
    return _mean(bag_f1(a.split(), b.split()) for a, b in zip(written, references, strict=True))


def bag_f1(written: list[str], reference: list[str]) -> float:
    """Return the F1 of some words as bags."""
    if not written or not reference:
        return float(written == reference)
    return 2 * sum((Counter(written) & Counter(reference)).values()) / (len(written) + len(reference))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


SCORES: dict[str, Callable[[Texts, Texts], float]] = {
    "bleu": bleu,
    "chrf": chrf,
    "exact_match": exact_match,
    "f1": token_f1,
}
