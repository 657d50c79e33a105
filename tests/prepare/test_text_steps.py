"""The steps on text that are no filters: extraction, repair, language, masking, decontamination, sampling."""

import json

import pytest

pytest.importorskip("datatrove", reason="needs the extra prepare")

from bigjax.prepare.step import Dropped
from tests.prepare import corpus
from tests.prepare.fitting import kept, through

PAGE = "<html><body><nav><a href='/'>Home</a></nav><article>{}</article><footer>Imprint</footer></body></html>"


def texts(given: list[str], step: str, **options) -> list[str | Dropped]:
    found = through([{"text": text} for text in given], (step,), **{step: options} if options else {})
    return [record if isinstance(record, Dropped) else record["text"] for record in found]


def test_a_page_is_the_same_whatever_came_before_it():
    # An extractor that remembers what it has seen drops a paragraph that comes for the third time (trafilatura 778).
    paragraphs = corpus.passages(4)
    page = PAGE.format("".join(f"<p>{text}</p>" for text in paragraphs))
    found = texts([page] * 12, "html")
    assert found == ["\n".join(paragraphs)] * 12


def test_a_page_without_text_is_dropped_and_a_small_one_is_not_doubled():
    found = texts(["<html><body></body></html>", "", "no markup < at all", "x" * 2000], "html", max_mb=0.001)
    assert [isinstance(text, Dropped) for text in found][:2] == [True, True]
    assert found[3] == Dropped("too_large")
    small = "<html><body><article><h1>Name</h1><p>A first paragraph of some length, for the extractor.</p>"
    [text] = texts(
        [small + "<p>And a second one, which is as long as the first was.</p></article></body></html>"], "html"
    )
    assert isinstance(text, str) and text.count("second one") >= 1


def test_wrongly_decoded_text_is_repaired():
    assert texts(["schÃ¶n â€œquotedâ€\x9d", "床前明月光，疑是地上霜"], "unicode") == [
        "schön “quoted”",
        "床前明月光，疑是地上霜",
    ]


def test_plain_text_is_what_ftfy_leaves_as_it_is():
    from datatrove.pipeline.formatters.ftfy import FTFYFormatter

    given = ["".join(map(chr, [9, 10, 13, *range(32, 127)])).replace("&", ""), "a\r\nb &amp; <p>", "\x1b[31mred", "ﬁ …"]
    assert texts(given, "unicode") == [FTFYFormatter().format(text) for text in given]
    assert texts(given, "unicode")[0] == given[0]


def test_languages_are_told_apart():
    given = {
        "en": "The quick brown fox jumps over the lazy dog and runs into the forest to hide from the rain.",
        "de": "Der schnelle braune Fuchs springt über den faulen Hund und läuft in den Wald.",
        "zh": "今天天气很好，我们一起去公园散步，看到了很多漂亮的花和鸟。",
        "fr": "Le renard brun et rapide saute par-dessus le chien paresseux et court dans la forêt.",
    }
    found = through([{"text": text} for text in given.values()], ("language",))
    assert [record["language"] for record in kept(found)] == list(given)
    assert [isinstance(text, str) for text in texts(list(given.values()), "language", keep=("de",))] == [
        language == "de" for language in given
    ]


def test_addresses_and_long_numbers_are_masked():
    given = "Write to jane.doe+x@mail.co.uk or call +49 (30) 123-45 67, from 8.8.8.8 or 10.0.0.1, in 1984, for 3.14159."
    assert texts([given], "mask") == [
        "Write to email@example.com or call +00 (00) 000-00 00, from 192.0.2.1 or 10.0.0.1, in 1984, for 3.14159."
    ]
    assert texts(["in 2019, 2020 and 2021; 4111 1111 1111 1111"], "mask") == [
        "in 2019, 2020 and 2021; 0000 0000 0000 0000"
    ]
    assert texts([given], "mask", email="", ip="", number="") == [given]


def test_texts_that_share_a_run_of_words_with_an_evaluation_set_are_dropped(tmp_path):
    passages = corpus.passages(30)
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in passages[:3]))
    (tmp_path / "short.txt").write_text("Wherefore art thou a xyzzy?")
    run = " ".join(passages[1].upper().split()[40:53]).replace(" ", "  ")  # 13 words
    given = [
        *passages,
        f"{passages[10]} {run}",
        f"{passages[10]} {' '.join(run.split()[:11])}",
        "wherefore art THOU a xyzzy",
    ]
    files = (str(tmp_path / "eval.jsonl"), str(tmp_path / "short.txt"))
    found = texts(given, "decontaminate", files=files)
    dropped = [i for i, text in enumerate(found) if isinstance(text, Dropped)]
    runs = [set(zip(*(words[i:] for i in range(13)), strict=False)) for words in (p.lower().split() for p in passages)]
    same = {i for i in range(3, 30) if runs[i] & (runs[0] | runs[1] | runs[2])}
    assert dropped == [*sorted({0, 1, 2} | same), 30, 32]


def test_a_sample_by_quality_keeps_the_good(tmp_path):
    plays = corpus.passages(112)
    (tmp_path / "good.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in plays[:100]))
    noise = [" ".join(f"buy{(i * j) % 50} now{j % 7} click{(i + j) % 90}" for j in range(40)) for i in range(600)]
    found = texts([*plays[100:], *noise], "quality_sample", good=(str(tmp_path / "good.jsonl"),), features=4096)
    good, rest = ([isinstance(text, str) for text in part] for part in (found[:12], found[12:]))
    # A score of 1 is always kept, and one of 0 if Pareto(9) is above 1: 2^-9 = 0.2 % (Brown et al. 2020, appendix A).
    assert sum(good) >= 8
    assert sum(rest) < 0.1 * len(rest)
