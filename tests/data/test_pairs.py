"""Pairs of texts: the rows, what is wrong with a source, and a run on a two-column table from training to BLEU."""

import json

import numpy as np
import pytest

from bigjax import data
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig, replace
from bigjax.data import DataError
from bigjax.data.sources import copying
from bigjax.models import build
from bigjax.params import names
from bigjax.tasks.reports import texts as text_scores
from bigjax.train.flops import model_flops_per_token
from tests.commands import Commands, read, shared_cache
from tests.models_of import model_of

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf"}
MODEL = ModelConfig(family="encdec", vocab_size=260, num_layers=1, d_model=32, num_heads=2, positions="sinusoidal")


def table(path, count: int = 120) -> str:
    """Write a table of numbers in English and German."""
    rng = np.random.default_rng(0)
    rows = [rng.choice(list(WORDS), rng.integers(1, 4)) for _ in range(count)]
    lines = [" ".join(row) + "\t" + " ".join(WORDS[word] for word in row) for row in rows]
    path.write_text("en\tde\n" + "\n".join(lines) + "\n")
    return f"tsv:{path}"


def config(source: str, tmp_path, **fields) -> Config:
    columns = {"text_key": "en", "target_key": "de", "seq_len": 12, "target_len": 10, "cache_dir": str(tmp_path / "c")}
    return Config(
        model=MODEL,
        data=DataConfig(sources=(source,), **columns | fields),
        train=TrainConfig(objective="seq2seq", global_batch_size=8),
    )


def test_rows_are_the_two_columns(tmp_path):
    source = table(tmp_path / "pairs.tsv")
    text = data.build(config(source, tmp_path), slice(0, 8))
    lines = [line.split("\t") for line in (tmp_path / "pairs.tsv").read_text().splitlines()[1:]]
    expected = {(a.encode()[:11], b.encode()[:9]) for a, b in lines}
    pad, end = 256, 258
    for step in range(3):
        batch = text.train.batch(step).arrays
        for b in range(8):
            source_ids = batch["tokens"][b][batch["segments"][b] > 0]
            target_ids = batch["targets"][b][batch["weights"][b] > 0]
            assert source_ids[-1] == target_ids[-1] == end
            assert (bytes(source_ids[:-1].tolist()), bytes(target_ids[:-1].tolist())) in expected
            assert batch["inputs"][b].tolist() == [pad, *batch["targets"][b, :-1].tolist()]
    # Both sides of the split together are all the pairs, none in both.
    assert len(text.train.sources[0]) + len(text.eval.sources[0]) == 120


def test_bpe_is_trained_on_both_columns(tmp_path):
    source = table(tmp_path / "pairs.tsv")
    cfg = config(source, tmp_path, tokenizer="bpe:280")
    text = data.build(replace(cfg, model={"vocab_size": 284}), slice(0, 8))
    assert len(text.tokenizer.encode("zwei drei")) < len("zwei drei")
    batch = text.train.batch(0).arrays
    # The tokenizer's own end of text ends rows, once.
    assert ((batch["targets"] == text.tokenizer.eos_id).sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        ("shakespeare", {}, "'shakespeare' has one column, but train.objective='seq2seq' needs a text and its target"),
        ("table", {"target_key": "fr"}, "no column 'fr', only 'en', 'de'"),
        ("copy:1:5", {}, "copy:1:5 is not copy:SYMBOLS:LENGTH with 2 to 94 symbols"),
        ("copy:10", {}, "copy:10 is not copy:SYMBOLS:LENGTH"),
        ("copy:", {}, "is no source"),
    ],
)
def test_what_is_wrong_with_a_source_is_said(source, fields, message, tmp_path):
    source = table(tmp_path / "pairs.tsv") if source == "table" else source
    with pytest.raises(DataError, match=message):
        data.build(config(source, tmp_path, **fields), slice(0, 8))


def test_the_copy_task_is_always_the_same():
    rows = list(copying.rows(10, 8))
    assert rows == list(copying.rows(10, 8)) and len(rows) == copying.EXAMPLES
    texts = [text for _, text in rows]
    assert set("".join(texts)) == set(copying.ALPHABET[:10])
    counts = np.bincount([len(text) for text in texts], minlength=9)
    assert counts[0] == 0 and np.all(np.abs(counts[1:] / len(texts) - 1 / 8) < 0.01)


def test_scores_by_definition():
    wanted = ["the cat sat on the mat", "a b c d", ""]
    said = ["the cat sat on the mat ", "b a x", ""]
    assert text_scores.exact_match(said, wanted) == 2 / 3
    # 2 common words of 3 and of 4: precision 2/3, recall 1/2.
    assert text_scores.token_f1(said, wanted) == pytest.approx((1 + 2 / (3 / 2 + 2) + 1) / 3)
    assert text_scores.bleu(wanted[:2], wanted[:2]) == pytest.approx(100)
    # One 1-gram of each order missing at the end of a text of 7: (6/7 * 5/6 * 4/5 * 3/4) ** (1/4), no brevity penalty.
    said, wanted = ["one two three four five six nine"], ["one two three four five six seven"]
    expected = 100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25
    assert text_scores.bleu(said, wanted) == pytest.approx(expected)
    assert 0 < text_scores.chrf(said, wanted) < 100


def test_flops_of_a_row():
    """Every matrix by the tokens it sees: keys and values of cross-attention see those that are read."""
    sizes = {"vocab_size": 50, "num_layers": 2, "num_decoder_layers": 3, "d_model": 8, "num_heads": 2, "d_ff": 20}
    cfg = model_of(family="encdec", positions="none", **sizes)
    S, T, D, F = 7, 5, 8, 20
    encoder = 2 * S * (4 * D * D + 2 * D * F)
    decoder = 3 * (T * (4 * D * D + 2 * D * D + 2 * D * F) + S * 2 * D * D)
    pairs = 2 * S * S + 3 * (T * T + T * S)
    expected = 6 * (encoder + decoder + T * 50 * D) + 12 * D * pairs
    specs = build(cfg).specs
    assert model_flops_per_token(cfg, specs, S, T) * S == pytest.approx(expected)
    assert sum(spec.size for name, spec in names(specs).items() if name.startswith("decoder/blocks/cross/")) > 0


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.mark.exhaustive
def test_a_table_is_translated(commands, call_command, tmp_path):
    run = (
        "--config=configs/translation.py",
        f"--config.data.sources={table(tmp_path / 'pairs.tsv', 400)}",
        "--config.data.text_key=en",
        "--config.data.target_key=de",
        "--config.data.seq_len=20",
        "--config.data.target_len=20",
        "--config.model.d_model=64",
        "--config.model.d_ff=128",
        "--config.model.num_layers=1",
        "--config.model.encdec.num_decoder_layers=1",
        "--config.model.dropout=0.0",
        "--config.train.steps=150",
        "--config.train.global_batch_size=32",
        "--config.optim.warmup=30",
        "--config.optim.lr=4e-3",
        "--config.log.plot=false",
        "--config.log.tensorboard=false",
        f"--workdir={tmp_path}/run",
    )
    commands.run("experiments.train", *run)
    assert read(tmp_path / "run" / "result.json")["eval_loss"] < 1.0
    where = f"--workdir={tmp_path}/run"
    done = commands.run("experiments.evaluate", where, "--tasks=bleu,chrf,exact_match,f1", "--beams=2")
    found = json.loads(done.stdout)
    assert found["texts"] > 5 and found["chrf"] > 20 and 0 <= found["exact_match"] <= found["f1"] <= 1
    assert "wrote" in done.stderr
    said = commands.run("experiments.generate", where, "--prompt=one two", "--beams=2", "--max_new_tokens=12")
    assert said.stdout.strip() and "one two" not in said.stdout
    drawn = ("experiments.generate", where, "--prompt=one two", "--min_p=0.1", "--stop= ", "--max_new_tokens=12")
    first, second = commands.run(*drawn), commands.run(*drawn)
    assert first.stdout == second.stdout and " " not in first.stdout
    for flags, message in (
        (("--beams=2", "--top_k=3"), "--top_k has no use with --beams"),
        (("--length_penalty=1",), "--length_penalty needs --beams"),
        (("--beams=200",), "beams=200 must be 1 to half of model.vocab_size=260"),
    ):
        status, _, said = call_command("experiments.generate", where, "--prompt=one", *flags)
        assert status == 2 and message in said and "Traceback" not in said
    known = "bleu, chrf, exact_match, f1, multiple_choice:FILE.jsonl, rolling:SOURCE"
    failed = call_command("experiments.evaluate", where, "--tasks=rouge")
    assert failed == (2, "", f"error: --tasks: 'rouge' is none of {known}\n")
