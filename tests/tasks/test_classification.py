"""Classification: labelled sources, their mistakes, the report against hand counts, and a run from file to figures."""

import json

import numpy as np
import pytest

from bigjax import data
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig, strict
from bigjax.data import DataError
from bigjax.data.sources import shakespeare
from bigjax.tasks.reports import classification
from tests import commands

ROWS = [('the moon, the "sun"', "sky"), ("a wet\nfish", "sea"), ("stars and clouds", "sky"), ("salt 海", "sea")] * 6


def csv_file(folder, rows=ROWS, columns=("text", "label"), delimiter=","):
    lines = [columns, *rows]
    quote = lambda field: '"' + field.replace('"', '""') + '"'  # noqa: E731
    path = folder / f"data.{'csv' if delimiter == ',' else 'tsv'}"
    path.write_text("".join(delimiter.join(map(quote, line)) + "\n" for line in lines), encoding="utf-8")
    return path


def build(source, cache, num_classes=2, **options):
    cfg = Config(
        ModelConfig(family="encoder", head="classification", num_classes=num_classes, vocab_size=260),
        DataConfig(sources=(source,), seq_len=16, holdout=0.0, cache_dir=str(cache), **options),
        TrainConfig(objective="classification", global_batch_size=4),
    )
    return data.build(cfg, slice(0, 4))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_table_gives_texts_and_classes(kind, tmp_path):
    path = tmp_path / "data.jsonl"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS))
    else:
        path = csv_file(tmp_path, delimiter="," if kind == "csv" else "\t")
    train = build(f"{kind}:{path}", tmp_path / "cache").train
    rows = train.sources[0]
    assert rows.classes == ("sea", "sky")
    arrays = rows.arrays(np.arange(25), np.arange(25))
    assert arrays["targets"].tolist() == [1, 0, 1, 0] * 6 + [0]
    assert arrays["weights"].tolist() == [1] * 24 + [0]
    for (text, _), tokens, segments in zip(ROWS, arrays["tokens"], arrays["segments"], strict=False):
        content = list(text.encode())[:14]
        assert tokens.tolist() == [257, *content, 258, *[256] * (14 - len(content))]
        assert segments.sum() == len(content) + 2


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, {"num_classes": 3}, r"there are 2 classes \(sea, sky\), but model.num_classes=3"),
        (ROWS, {"classes": ("sky", "earth")}, "has the label 'sea', which is none of the classes sky, earth"),
        (
            [("a gull", "sea " * 99)],
            {"classes": ("sky", "sea")},
            r"the label 'sea sea .*', which is none of the classes sky, sea: set data.classes to ",
        ),
        (ROWS, {"classes": ("sky", "sea", "fire"), "num_classes": 3}, "no text of the class 'fire' to train on"),
        (ROWS, {"label_key": "labels"}, "no column 'labels', only 'text', 'label'"),
        ([], {}, r"there is no label to train on in 'csv:.*data.csv'"),
        ([*ROWS, ("a gull", "")], {}, r"a label to train on in 'csv:.*' is empty: label it, or leave it out"),
        ([*ROWS, ("one", "two", "three")], {}, "line 32: 3 fields, but the first line names 2"),
    ],
)
def test_mistakes_are_named(rows, options, message, tmp_path):
    path = csv_file(tmp_path, rows)
    with pytest.raises(DataError, match=message):
        build(f"csv:{path}", tmp_path / "cache", **options)


def test_passages_are_split_by_work_and_labelled_by_genre(tmp_path):
    cfg = Config(
        ModelConfig(family="encoder", head="classification", num_classes=3, vocab_size=260),
        DataConfig(sources=("shakespeare-passages",), seq_len=64, cache_dir=str(tmp_path)),
        TrainConfig(objective="classification", global_batch_size=4),
    )
    text = data.build(cfg, slice(0, 4))
    (train,), (held_out,) = text.train.sources, text.eval.sources
    assert train.classes == held_out.classes == ("comedy", "history", "tragedy")
    assert {name.partition(":")[0] for name in held_out.shard.names()} == set(shakespeare.HELD_OUT)
    assert not {name.partition(":")[0] for name in train.shard.names()} & set(shakespeare.HELD_OUT)
    assert set(held_out.labels.tolist()) == {0, 1, 2}
    assert sum(map(len, (names.split() for names in shakespeare.GENRES.values()))) == 36  # plays of the First Folio


def test_the_report_is_what_counting_by_hand_gives():
    probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    measured = classification.report(probs, np.array([0, 0, 1, 1]), ("a", "b", "c"))
    assert measured["confusion"] == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert measured["accuracy"] == 0.5
    assert measured["classes"]["a"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "rows": 2}
    assert measured["classes"]["c"] == {"precision": 0, "recall": 0, "f1": 0, "rows": 0}
    assert measured["macro"]["f1"] == pytest.approx(1 / 3)
    assert measured["log_loss"] == pytest.approx(-np.log([0.7, 0.1, 0.3, 0.7]).mean())
    assert [line.split()[0] for line in classification.table(measured).splitlines()[2:]] == ["a", "b", "c", "macro"]


@pytest.mark.exhaustive
def test_from_masked_tokens_to_classes(tmp_path, tmp_path_factory):
    run = commands.Commands(commands.shared_cache(tmp_path_factory)).run
    longer = [(text * 4, label) for text, label in ROWS]
    (tmp_path / "unseen").mkdir()
    path, unseen = csv_file(tmp_path, longer), csv_file(tmp_path / "unseen", longer[:7])
    tiny = (
        "--config.model.num_layers=1",
        "--config.model.d_model=32",
        "--config.model.num_heads=2",
        "--config.model.max_seq_len=32",
        "--config.model.vocab_size=260",
        "--config.data.seq_len=32",
        f"--config.data.sources=csv:{path}",
        f"--config.data.eval_sources=csv:{unseen}",
        "--config.data.max_overlap=1.0",  # what is learnt here is learnt by heart
        "--config.train.global_batch_size=8",
        "--config.optim.warmup=2",
        "--config.train.steps=30",
        "--config.log.plot=False",
        "--config.log.tensorboard=False",
    )
    before, after = tmp_path / "before", tmp_path / "after"
    masked = ("--config=configs/mlm_shakespeare.py", "--config.data.tokenizer=bytes", *tiny)
    run("experiments.train", *masked, f"--workdir={before}")
    scores = json.loads(run("experiments.evaluate", f"--workdir={before}").stdout)
    assert 0 <= scores["accuracy"] <= 1
    assert "bits_per_byte" not in scores
    labelled = ("--config=configs/finetune_classification.py", *tiny, "--config.model.num_classes=2")
    labelled += (f"--config.init_from={before}", f"--workdir={after}", "--config.optim.lr=0.003")
    run("experiments.train", *labelled, f"--config.data.tokenizer=hf:{before}/tokenizer.json", devices=2)
    evaluated = run("experiments.evaluate", f"--workdir={after}")
    measured = json.loads(evaluated.stdout)["classification"]
    assert measured["accuracy"] == commands.read(after / "result.json")["eval_accuracy"] == 1.0
    assert "precision" in evaluated.stderr
    # A run knows its classes without what it was trained on.
    path.rename(tmp_path / "elsewhere.csv")
    alone = json.loads(run("experiments.evaluate", f"--workdir={after}", f"--sources=csv:{unseen}").stdout)
    assert alone["classification"] == measured
    (tmp_path / "elsewhere.csv").rename(path)
    other = run(
        "experiments.train",
        *labelled,
        "--config.data.tokenizer=bpe:280",
        "--config.model.vocab_size=300",
        f"--workdir={tmp_path}/other",
        code=2,
    )
    assert "was trained with another tokenizer" in other.stderr


def test_configs_clash_by_name():
    for changes, message in (
        ({"model": {"family": "encoder"}}, "train.objective='causal_lm' trains model.family='decoder'"),
        ({"train": {"objective": "masked_lm"}}, "train.objective='masked_lm' trains model.family='encoder'"),
        ({"model": {"num_classes": 2}}, "model.num_classes=2 does not suit model.head='lm'"),
        ({"data": {"classes": ["a", "b", "a"]}}, "data.classes=\\('a', 'b', 'a'\\) must be names, each only once"),
        ({"data": {"classes": ["a", " "]}}, "data.classes=\\('a', ' '\\) must be names, each only once"),
    ):
        with pytest.raises(strict.ConfigError, match=message):
            strict.from_dict(Config, changes)


CHINESE = [
    ("床前明月光，疑是地上霜。", "诗"),
    ("春眠不觉晓，处处闻啼鸟。", "诗"),
    ("白日依山尽，黄河入海流。", "诗"),
    ("本函数返回文件的大小，单位为字节。", "手册"),
    ("该命令列出目录中的文件。", "手册"),
    ("选项用于指定输出的格式。", "手册"),
]


def word_piece(folder, texts):
    """Save a WordPiece vocabulary of the characters of some texts, as BERT's tokenizer for Chinese has it."""
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: i for i, token in enumerate([*special, *sorted({*"".join(texts)})])}
    made = tokenizers.Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(special)
    made.save(str(folder / "tokenizer.json"))
    return vocab


@pytest.mark.exhaustive
def test_chinese_text_with_word_pieces(tmp_path, tmp_path_factory):
    run = commands.Commands(commands.shared_cache(tmp_path_factory)).run
    vocab = word_piece(tmp_path, [text for text, _ in CHINESE])
    records = [{"text": text, "label": label} for text, label in CHINESE]
    path, unseen = tmp_path / "train.jsonl", tmp_path / "unseen.jsonl"
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records * 4), encoding="utf-8")
    unseen.write_text(json.dumps({"text": "明月處處", "label": "诗"}) + "\n")
    tokenizer = f"hf:{tmp_path}/tokenizer.json"
    rows = build(f"jsonl:{path}", tmp_path / "cache", tokenizer=tokenizer).train.sources[0]
    tokens = rows.arrays(np.array([1]), np.array([1]))["tokens"][0]
    assert tokens.tolist() == [vocab[one] for one in ["[CLS]", *"春眠不觉晓，处处闻啼鸟。", "[SEP]", "[PAD]", "[PAD]"]]
    run(
        "experiments.train",
        "--config=configs/finetune_classification.py:scratch",
        "--config.model.num_layers=1",
        "--config.model.d_model=32",
        "--config.model.num_heads=2",
        "--config.model.num_classes=2",
        "--config.model.vocab_size=104",
        "--config.data.seq_len=24",
        f"--config.data.tokenizer={tokenizer}",
        f"--config.data.sources=jsonl:{path}",
        f"--config.data.eval_sources=jsonl:{unseen}",
        "--config.train.global_batch_size=8",
        "--config.train.steps=30",
        "--config.optim.warmup=2",
        "--config.optim.lr=0.003",
        "--config.log.plot=False",
        "--config.log.tensorboard=False",
        f"--workdir={tmp_path}/run",
    )
    measured = json.loads(run("experiments.evaluate", f"--workdir={tmp_path}/run", "--split=train").stdout)
    assert measured["classification"]["accuracy"] == 1.0
    assert set(measured["classification"]["classes"]) == {"诗", "手册"}
