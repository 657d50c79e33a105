"""Duplicates that were planted, against sets of n-grams made another way and compared one by one."""

import re

import numpy as np
import pytest

from bigjax.prepare import duplicates, words
from bigjax.prepare.pipeline import Preparation
from bigjax.prepare.step import Dropped, load
from tests.prepare import corpus


def dropped(name: str, shards: list[list[dict]], **options) -> set[int]:
    """Return the ids that a fitted step drops."""
    step, cfg = load(name), Preparation(sources=("jsonl:x",))
    given = step.fields(**options)
    observed = []
    places = {}
    for shard, records in enumerate(shards):
        observer = step.observe(given, cfg)
        for i, record in enumerate(records):
            places[shard << 32 | i] = record
            observer.add(shard << 32 | i, record)
        observed.append(observer.arrays())
    apply = step.build(given, cfg, step.combine(observed, given, cfg))
    return {record["id"] for place, record in places.items() if isinstance(apply(place, record), Dropped)}


def sets(text: str) -> set[tuple[str, ...]]:
    found = re.findall(r"\w+(?:['’]\w+)*", text.lower())
    return {tuple(found[i : i + 5]) for i in range(len(found) - 4)}


def test_all_exact_copies_are_found_and_nothing_else():
    records, exact, _ = corpus.planted(200)
    seen, wanted = set(), set()
    for record in records:
        wanted |= {record["id"]} if record["text"] in seen else set()
        seen.add(record["text"])
    assert len(wanted) == len(exact)  # of an original and its copy, whichever comes later
    assert dropped("exact_duplicates", [records[:90], [], records[90:]]) == wanted


def test_normalized_copies_differ_in_white_space_and_case_only():
    records = [{"id": i, "text": text} for i, text in enumerate(("A b\nc", "a  B c", "a bc"))]
    assert dropped("exact_duplicates", [records], normalized=True) == {1}
    assert dropped("exact_duplicates", [records]) == set()
    assert dropped("exact_duplicates", [[{"id": 0, "a": 1}, {"id": 1, "a": 1}]], columns=("a",)) == {1}


def test_near_copies_are_found_and_others_are_not():
    records, _, _ = corpus.planted(240)
    found = dropped("near_duplicates", [records[:100], records[100:]])
    ours, near, others = [sets(record["text"]) for record in records], set(), set()
    for i, record in enumerate(records):
        best = max((len(ours[i] & ours[j]) / len(ours[i] | ours[j]) for j in range(i)), default=0)
        (near if best >= 0.8 else others).add(record["id"])
    assert len(near) > 40 and len(others) > 240
    assert len(near & found) >= 0.95 * len(near)
    assert len(others & found) < 0.01 * len(others)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_bands_find_what_is_as_similar_as_asked(threshold):
    number, rows = duplicates.bands(threshold, 128)
    assert number * rows <= 128
    assert 1 - (1 - threshold**rows) ** number >= duplicates.SURE
    assert 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < duplicates.SURE


def test_signatures_agree_as_often_as_sets_are_alike():
    # The share of equal hashes has the mean J and the standard deviation sqrt(J (1 - J) / k) (Broder 1997).
    rng, k = np.random.default_rng(0), 4096
    pool = words.mixed(rng.integers(0, 2**63, 3000).astype(np.uint64))
    for shared in (100, 500, 900):
        a, b = pool[:1000], pool[1000 - shared : 2000 - shared]
        jaccard = shared / (2000 - shared)
        assert duplicates.jaccard(np.sort(a), np.sort(b)) == pytest.approx(jaccard)
        agree = np.mean(duplicates.signature(a, k) == duplicates.signature(b, k))
        assert abs(agree - jaccard) < 4 * (jaccard * (1 - jaccard) / k) ** 0.5


def test_short_and_empty_texts_are_alike_only_if_equal():
    texts = ["cat", "dog", "cat", "", "", "one two three", "one two four", "!?"]
    records = [{"id": i, "text": text} for i, text in enumerate(texts)]
    assert dropped("near_duplicates", [records]) == {2}


def test_a_chain_of_likenesses_drops_only_what_is_like_a_kept_one():
    base = [f"w{i}" for i in range(200)]
    chain = []
    for link in range(6):  # each shares 85 % with the one before, and less and less with the first
        chain.append({"id": link, "text": " ".join(base[link * 15 : link * 15 + 100])})
    found = dropped("near_duplicates", [chain], threshold=0.7)
    kept = [sets(record["text"]) for record in chain if record["id"] not in found]
    for record in chain:
        if record["id"] in found:
            mine = sets(record["text"])
            assert max(len(mine & other) / len(mine | other) for other in kept) >= 0.7
    assert {0, 2} <= set(range(6)) - found


def test_letters_of_scripts_without_spaces_are_words():
    assert words.words("Don’t panic: 床前明月光, ไทย!") == ["don’t", "panic", *"床前明月光", *"ไทย"]
    assert words.spelt("A, b_c.") == ["A", "b", "c"]
    assert words.sentences('He said "no." Then left.\nA list\n春眠。不觉。') == [
        'He said "no.',
        "Then left.",
        "A list",
        "春眠。",
        "不觉。",
    ]
