"""Documents that stand twice: counted at the start, said, kept, and refused where too many are on both sides."""

import hashlib
import json

import numpy as np
import pytest

from bigjax import data
from bigjax.config import Config, DataConfig, LogConfig, ModelConfig, TrainConfig
from bigjax.data import DataError
from bigjax.data.sources import duplicates
from bigjax.science.report.page.tables import tables
from bigjax.science.report.summary import build
from experiments import train

LINES = [f"line number {number} of the text" for number in range(60)]


def config(folder, train_lines, eval_lines, key="text", **options) -> Config:
    for name, lines in {"train": train_lines, "eval": eval_lines}.items():
        records = [line if isinstance(line, dict) else {key: line} for line in lines]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return Config(
        ModelConfig(vocab_size=256, num_layers=1, d_model=16, num_heads=2, max_seq_len=16),
        DataConfig(
            sources=(f"jsonl:{folder}/train.jsonl",),
            eval_sources=(f"jsonl:{folder}/eval.jsonl",),
            cache_dir=str(folder / "cache"),
            seq_len=16,
            **options,
        ),
        TrainConfig(global_batch_size=8, steps=2),
        log=LogConfig(tensorboard=False, plot=False),
    )


SAME = {
    "as they are": LINES[:10],
    "in capitals": [line.upper() for line in LINES[:10]],
    "spaced otherwise": [f"  {line.replace(' ', chr(9) + ' ')} \n" for line in LINES[:10]],
}


@pytest.mark.parametrize("case", SAME)
def test_held_out_documents_that_are_trained_on_are_refused(case, tmp_path):
    cfg = config(tmp_path, LINES, [*SAME[case], *(f"{number}. another one" for number in range(10))])
    message = r"10 of 20 held-out documents are trained on, too \(50\.0%.*more than data\.max_overlap=0\.1:.* 0\.5 if"
    for _ in range(2):  # from the cache, too
        with pytest.raises(DataError, match=message):
            data.build(cfg, slice(0, 8))


@pytest.mark.exhaustive
def test_what_is_allowed_is_counted_said_and_kept(tmp_path, capsys):
    cfg = config(tmp_path, [*LINES, *LINES[:15]], [*LINES[:4], *LINES[:4], "new one", "  "], max_overlap=0.9)
    assert train.run(cfg, tmp_path / "run") == 0
    wanted = {
        "train": 75,
        "held_out": 9,
        "train_repeated": 15,
        "held_out_repeated": 4,
        "held_out_trained_on": 8,
    }
    said = capsys.readouterr().err
    for line in (
        "note: 8 of 9 held-out documents are trained on, too (88.9%)",
        "note: 15 of 75 training documents repeat an earlier one (20.0%)",
        "note: 4 of 9 held-out documents repeat an earlier one (44.4%)",
    ):
        assert line in said
    (table, *_) = tables(build(str(tmp_path / "run")))
    assert dict(zip([name for name, _ in table.columns], table.rows[0], strict=True))["held out and trained on"] == 8
    for name in ("data.json", "result.json"):
        assert json.loads((tmp_path / "run" / name).read_text())["duplicates"] == wanted


def test_no_word_where_there_are_none(tmp_path):
    text = data.build(config(tmp_path, LINES[:50], LINES[50:]), slice(0, 8))
    assert text.notes == ()
    assert text.duplicates["held_out"] == 10 and not text.duplicates["held_out_trained_on"]


def test_a_question_is_the_same_with_its_text_alone(tmp_path):
    """Many questions are asked of one text."""
    documents = [("a text", f"question {number}?", ["a"], [0]) for number in (1, 2, 2)]
    assert len({duplicates._text(document) for document in documents}) == 2
    tagged = [(["a", "b"], tags) for tags in (["O", "O"], ["O", "B-x"])]
    assert len({duplicates._text(document) for document in tagged}) == 1


def test_hashes_are_those_of_the_folded_text():
    digest = hashlib.blake2b(b"strasse 1", digest_size=8).digest()
    assert duplicates.hash_of("  Straße\n1 ") == int.from_bytes(digest)
    assert np.uint64(duplicates.hash_of("x")) == duplicates.hash_of("X")
