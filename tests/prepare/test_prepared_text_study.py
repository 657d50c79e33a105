"""The study of prepared text: its crawl has the faults that it says, its sweep the runs."""

import json

import pytest

from bigjax.prepare.pipeline import resolved
from bigjax.science import sweeps
from experiments.studies.prepared_text import cleaning, crawl, training
from tests.prepare.fitting import kept, through


def test_two_equal_runs_with_three_seeds_each():
    points = sweeps.collect(training.sweep, training.get_config())
    assert len({point.cfg.train.steps for point in points}) == 1
    assert len({point.cfg.data.sources for point in points}) == 2
    assert {point.cfg.data.eval_sources for point in points} == {("jsonl:runs/prepared_text/clean.jsonl",)}
    assert [point.cfg.train.seed for point in points] == [0, 1, 2] * 2


@pytest.mark.exhaustive
def test_what_the_crawl_is_spoilt_by_is_taken_out(tmp_path, monkeypatch):
    pytest.importorskip("datatrove", reason="needs the extra prepare")
    monkeypatch.setattr(crawl, "PAGES", 400)
    crawl.write(tmp_path)
    raw = [json.loads(line) for line in (tmp_path / "raw.jsonl").read_text().splitlines()]
    clean = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    steps = resolved({**cleaning.get_config().to_dict(), "sources": ("jsonl:x",)}).steps
    texts = [record["text"] for record in kept(through(raw, steps))]
    assert 0.4 * len(raw) < len(texts) < 0.7 * len(raw)  # half are plays, and each popular page stays once or twice
    assert not [text for text in texts if "Privacy policy" in text or "casino bonus" in text or "â€" in text]
    assert len(kept(through(clean, steps))) > 0.97 * len(clean)
