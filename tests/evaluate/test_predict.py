"""Answers to records without labels: from any file to any, on any mesh, a bounded number at a time, and mistakes."""

import csv
import datetime
import io
import json
import re
import sys
from itertools import count

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigjax import models, sharding
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig, replace
from bigjax.data import DataError
from bigjax.data.inputs import Record, open_inputs
from bigjax.data.tokens.bpe import train_bpe
from bigjax.data.tokens.tokenizers import ByteTokenizer, load_tokenizer
from bigjax.evaluate import prediction, tables
from bigjax.tasks import regression
from experiments import train
from tests.conftest import mesh_of

PREDICT = "experiments.predict"
TRAINED = [("o for a horse", "history"), ("kiss me sweet", "comedy"), ("blood and death", "tragedy")]
BYTES = ByteTokenizer()
TEXTS = ("the sea", "a longer line, of the moon", "fish", "words " * 20)
MESHES = ({"fsdp": 2, "tensor": 2, "data": 2}, {"data": 8})


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A run that tells three kinds of lines apart, all the lines of each alike."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "train.csv").write_text(
        "text,label\n" + "".join(f"{text} {i},{c}\n" for i in range(8) for text, c in TRAINED)
    )
    cfg = config("classification", "encoder", seq_len=24, num_classes=3)
    data = {"sources": (f"csv:{folder}/train.csv",), "holdout": 0.0, "cache_dir": str(folder / "cache")}
    log = {"plot": False, "tensorboard": False}
    steps = {"steps": 60, "eval_every_steps": 0}
    assert train.run(replace(cfg, data=data, train=steps, optim={"lr": 0.003}, log=log), folder / "run") == 0
    return folder / "run"


def lines(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_fine_tuned_run_labels_a_file_that_has_no_labels(classifier, call_command, tmp_path):
    given = tmp_path / "new.csv"
    rows = [[number, f"{text} {number}", "x, y"] for number, (text, _) in enumerate(TRAINED, start=3)]
    with given.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text", "note"], *rows, [9, " ", ""], [10, TRAINED[0][0] * 3, ""]])
    status, out, err = call_command(PREDICT, f"--workdir={classifier}", f"--inputs={given}")
    assert status == 0, err
    found = lines(out)
    assert [one["prediction"] for one in found[:3]] == [label for _, label in TRAINED]
    assert [(one["id"], one["note"]) for one in found[:3]] == [("3", "x, y"), ("4", "x, y"), ("5", "x, y")]
    for one in (*found[:3], found[4]):
        assert list(one["probabilities"]) == ["comedy", "history", "tragedy"]
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert one["probability"] == max(one["probabilities"].values()) == one["probabilities"][one["prediction"]]
    assert found[3] == {
        "id": "9",
        "text": " ",
        "note": "",
        "prediction": None,
        "probability": None,
        "probabilities": None,
    }
    assert "note: 1 of 5 records are empty" in err
    assert "note: 1 of 4 records are longer than data.seq_len=24: cut off there" in err

    # The same from every kind of file to every kind.
    wanted = [one["prediction"] for one in found[:3]]
    values = [{"id": int(one["id"]), "text": one["text"]} for one in found[:3]]
    for kind, write in WRITERS.items():
        path, out = tmp_path / f"new.{kind}", tmp_path / f"out.{'parquet' if kind == 'parquet' else 'csv'}"
        write(path, values)
        status, _, err = call_command(PREDICT, f"--workdir={classifier}", f"--inputs={path}", f"--out={out}")
        assert status == 0, err
        if kind == "parquet":
            answered = pq.read_table(out).to_pylist()
            assert [one["probabilities"] for one in answered] == [one["probabilities"] for one in found[:3]]
            assert [one["id"] for one in answered] == [3, 4, 5]
        else:
            answered = list(csv.DictReader(out.read_text().splitlines()))
            assert [json.loads(one["probabilities"]) for one in answered] == [o["probabilities"] for o in found[:3]]
        assert [one["text"] for one in answered] == [one["text"] for one in values]
        assert [one["prediction"] for one in answered] == wanted


def jsonl(path, values):
    path.write_text("".join(json.dumps(one) + "\n\n" for one in values))


def table(path, values, delimiter):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(values[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(values)


WRITERS = {
    "jsonl": jsonl,
    "csv": lambda path, values: table(path, values, ","),
    "tsv": lambda path, values: table(path, values, "\t"),
    "parquet": lambda path, values: pq.write_table(pa.Table.from_pylist(values), path),
    "txt": lambda path, values: path.write_text("".join(one["text"] + "\r\n" for one in values)),
}


def test_standard_input_is_lines_of_json_or_as_the_flag_says(classifier, call_command, monkeypatch):
    for flags, text in (
        (("--inputs=-",), json.dumps({"text": "blood and death 3"})),
        (("--inputs=-", "--format=txt"), "blood and death 3"),
        (("--inputs=-", "--config.data.text_key=line"), json.dumps({"line": "blood and death 3", "text": [1]})),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        status, out, err = call_command(PREDICT, f"--workdir={classifier}", *flags)
        assert (status, lines(out)[0]["prediction"]) == (0, "tragedy"), err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"blood and death 3")))
    status, out, err = call_command(PREDICT, f"--workdir={classifier}", "--inputs=-")
    assert (status, out) == (2, "")
    assert err.startswith("error: standard input, line 1: not JSON") and err.endswith("say so with --format=txt\n")


LONG = "x" * 10_000
MISTAKES = {
    "a.csv": ("id,review\n1,a\n", r"a\.csv, line 1: no column 'text', only 'id', 'review'"),
    "b.csv": ("id,text\n1,a,b\n", r"b\.csv, line 2: 3 fields, but the first line names 2"),
    "c.csv": ("text,text\na,b\n", r"c\.csv: the first line names the column 'text' twice"),
    "d.csv": ("text\n", r"d\.csv has no records"),
    "e.csv": (f'text\n"{LONG}"x\n', r"e\.csv, line 2: not a table"),
    "f.jsonl": ('{"text": "a"}\n{"text": 3}\n', r"f\.jsonl, line 2: 'text' is int, not a string"),
    "g.jsonl": ('{"text": "a"}\n[1]\n', r"g\.jsonl, line 2: a JSON object is needed, not list"),
    "h.jsonl": ('{"text": "a"}\n{"id": 1}\n', r"h\.jsonl, line 2: no column 'text', only 'id'"),
    "i.jsonl": ('{"text": "\\ud800"}\n', r"i\.jsonl, line 1: 'text' has \\ud800, half a surrogate pair"),
    "j.jsonl": (
        '{"text": "a", "prediction": "b"}\n',
        r"line 1: the column 'prediction' is called as one of the answer",
    ),
    "k.jsonl": ('{"text": {"' + LONG + '": 1}}\n', r"k\.jsonl, line 1: 'text' is dict, not a string"),
    "l.txt": (b"a\nb\xff\n", r"l\.txt, line 2, is not UTF-8: byte 0xff at byte offset 3"),
    "m.data": ("a\n", r"its suffix is none of csv, .*: say its form with --format"),
    "n.parquet": ("a\n", r"n\.parquet cannot be read as Parquet"),
    "o.csv": ("", r"o\.csv is empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_a_file_are_one_sentence(classifier, call_command, tmp_path, name):
    content, message = MISTAKES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "out.csv"
    status, said, err = call_command(PREDICT, f"--workdir={classifier}", f"--inputs={tmp_path}/{name}", f"--out={out}")
    assert (status, said) == (2, "")
    assert len(err) < 600 and err.count("\n") == 1
    assert re.search(message, err), err
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing half written


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--inputs is missing"),
        (("--inputs=no.csv",), "no file matches 'no.csv'"),
        (("--inputs={}", "--out=x.xlsx"), "its suffix must be .jsonl, .csv, .tsv or .parquet, or give -"),
        (("--inputs={}", "--out={}"), "is the file of --inputs"),
        (("--inputs={}", "--beams=2"), "--beams is for what an encoder-decoder writes"),
        (("--inputs=-", "--format=parquet"), "not from standard input"),
    ],
)
def test_mistakes_in_flags_are_one_sentence(classifier, call_command, tmp_path, flags, message):
    path = tmp_path / "new.csv"
    path.write_text("text\na\n")
    status, _, err = call_command(PREDICT, f"--workdir={classifier}", *(flag.format(path) for flag in flags))
    assert (status, err.count("\n")) == (2, 1) and message in err
    assert path.read_text() == "text\na\n"


def config(objective: str, family: str, seq_len: int = 32, **model) -> Config:
    sizes = {"vocab_size": 264, "num_layers": 1, "d_model": 32}
    sizes |= {} if family == "rnn" else {"num_heads": 4, "d_ff": 64, "max_seq_len": 64}
    head = {"head": objective} if family == "encoder" and objective != "masked_lm" else {}
    return Config(
        ModelConfig(**sizes | {"family": family} | head | model),
        DataConfig(seq_len=seq_len, target_len=16 if family == "encdec" else 0, doc_stride=8, tokenizer="bytes"),
        TrainConfig(objective=objective, global_batch_size=8),
    )


def predictor(cfg: Config, processor=BYTES, **axes) -> tuple[prediction.Predictor, jax.sharding.Mesh]:
    mesh_cfg, mesh = mesh_of(8 if axes else 1, **axes)
    model = models.build(cfg.model)
    layout = sharding.layout(mesh_cfg, mesh, model.specs)
    with jax.set_mesh(mesh_of(1)[1]):
        drawn = jax.device_get(model.init(jax.random.key(0)))
    with jax.set_mesh(mesh):
        weights = model.place(jax.tree.map(lambda w: w * (8 if w.ndim > 1 else 1), drawn), layout)
    return prediction.Predictor(replace(cfg, mesh=axes), model, weights, processor, layout), mesh


CASES = {
    "classes": (config("classification", "encoder", num_classes=3), [{"text": text} for text in TEXTS]),
    "tags": (config("token_classification", "encoder", num_classes=5), [{"text": text} for text in TEXTS]),
    "answers": (
        config("question_answering", "encoder", token_types=2),
        [{"text": text, "question": "why?"} for text in TEXTS],
    ),
    "fillings": (config("masked_lm", "encoder"), [{"text": f"{text} [MASK] and [MASK]."} for text in TEXTS]),
    "spans": (config("span_corruption", "encdec", positions="sinusoidal", vocab_size=400), [{"text": TEXTS[0]}]),
    "recurrent": (config("causal_lm", "rnn"), [{"text": text} for text in TEXTS]),
    "texts": (config("seq2seq", "encdec", positions="sinusoidal"), [{"text": text} for text in TEXTS]),
    "likelihoods": (config("causal_lm", "decoder"), [{"text": text} for text in TEXTS]),
}


def answers(cfg: Config, records: list[dict], **axes) -> list[dict]:
    use, mesh = predictor(cfg, **axes)
    given = [Record(f"record {number}", values) for number, values in enumerate(records)]
    with jax.set_mesh(mesh):
        return [answer for some in use.answer(given) for _, answer in some]


def close(one, other) -> bool:
    """Whether answers are the same but for how floats are rounded."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == pytest.approx(other, rel=1e-4, abs=1e-5) if isinstance(one, float) else one == other


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", CASES)
def test_answers_are_the_same_on_every_mesh_and_have_the_shape_that_is_declared(case):
    cfg, records = CASES[case]
    alone = answers(cfg, records)
    assert all(list(answer) == list(prediction.example(cfg)) for answer in alone)
    types = pa.array([prediction.example(cfg)]).type
    assert pa.array(alone, types).to_pylist() == alone
    for axes in MESHES:
        assert all(map(close, answers(cfg, records, **axes), alone)), axes
    # Nor do the others in a batch matter, or how far a row is padded.
    assert close(answers(cfg, records[:1])[0], alone[0])


def test_long_texts_are_read_in_pieces_or_cut_as_in_training():
    cfg, _ = CASES["tags"]
    tagged = answers(cfg, [{"text": TEXTS[3]}])[0]
    assert tagged["words"] == ["words"] * 20 and None not in tagged["prediction"]
    # An answer beyond the first row is found where it stands.
    cfg, _ = CASES["answers"]
    context = "".join(chr(97 + i % 26) for i in range(90))
    found = answers(cfg, [{"text": context, "question": "why?"}])[0]
    assert found["prediction"] == context[found["start"] : found["end"]] and found["end"] > found["start"]
    # A mask far from the start has its row, with what is around it.
    cfg, _ = CASES["fillings"]
    far = answers(cfg, [{"text": "b" * 80 + "[MASK]" + "a" * 80}])[0]
    near = answers(cfg, [{"text": "b" * 15 + "[MASK]" + "a" * 14}])[0]
    assert close(far["fillings"], near["fillings"])


def test_records_are_read_as_they_are_answered_by_few_programs():
    cfg, _ = CASES["classes"]
    use, mesh = predictor(cfg)
    read = 0

    def endless():
        nonlocal read
        for read in count(1):
            yield Record(f"record {read}", {"text": "w" * (read % 40 + 1), "number": read})

    with jax.set_mesh(mesh):
        some = use.answer(endless())
        for turn in (1, 2):
            answered = next(some)
            assert [record.values["number"] for record, _ in answered][-1] == read == turn * prediction.AHEAD
    assert use._program._cache_size() == 1  # rows of 8, all of data.seq_len


def test_an_answer_has_no_space_at_its_ends_though_its_tokens_have(tmp_path):
    """Tokens of byte-level BPE start with the space before a word."""
    train_bpe(["the sea and the moon and the wave " * 3], 272, tmp_path)
    cfg = replace(CASES["answers"][0], model={"vocab_size": 300})
    use, mesh = predictor(cfg, processor=load_tokenizer(tmp_path))
    contexts = [" ".join(("the", a, "and", b, "the")) for a in ("sea", "moon", "wave") for b in ("moon", "wave", "sea")]
    given = [Record(f"record {n}", {"text": one, "question": "the moon"}) for n, one in enumerate(contexts)]
    with jax.set_mesh(mesh):
        found = [(record.values["text"], answer) for some in use.answer(given) for record, answer in some]
    assert any(answer["start"] for _, answer in found)
    for context, answer in found:
        said = answer["prediction"]
        assert said == said.strip() == context[answer["start"] : answer["end"]]


def test_a_regression_answers_with_values_in_the_units_of_its_target(tmp_path, call_command):
    """What scikit-learn's least squares says of a target that is linear, within what few steps leave."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 2)) * (3, 100) + (5, -20)
    target = features @ (10, 0.5) + 1000
    rows = np.column_stack([features, target]).tolist()
    (tmp_path / "train.csv").write_text("a,b,y\n" + "".join(f"{a},{b},{y}\n" for a, b, y in rows))
    cfg = Config(
        ModelConfig(family="mlp", num_layers=1, d_model=16, activation="relu", mlp={"features": 2}),
        DataConfig(sources=(f"csv:{tmp_path}/train.csv",), seq_len=1, holdout=0.0, cache_dir=str(tmp_path / "cache")),
        TrainConfig(objective="regression", global_batch_size=16, steps=80, eval_every_steps=0),
        task=regression.Fields(target="y"),
    )
    assert train.run(replace(cfg, optim={"lr": 0.02}, log={"plot": False, "tensorboard": False}), tmp_path / "run") == 0
    (tmp_path / "new.csv").write_text("id,b,a\n" + "".join(f"{i},{b},{a}\n" for i, (a, b, _) in enumerate(rows)))
    status, out, err = call_command(PREDICT, f"--workdir={tmp_path}/run", f"--inputs={tmp_path}/new.csv")
    assert status == 0, err
    found = [one["prediction"] for one in lines(out)]
    assert np.corrcoef(found, target)[0, 1] > 0.99 and abs(np.mean(found) - target.mean()) < 0.1 * target.std()
    (tmp_path / "new.csv").write_text("a,b\n1,\n1,x\n")
    status, out, err = call_command(PREDICT, f"--workdir={tmp_path}/run", f"--inputs={tmp_path}/new.csv")
    assert status == 2 and "new.csv, line 3: 'b' is 'x', no finite number" in err


def test_words_of_a_text_stand_where_they_are_said_to_stand():
    cfg = replace(config("token_classification", "encoder", num_classes=3), data={"classes": ("O", "B-X", "I-X")})
    text = "Lear,  (the U.N.) king\tsaid e-mail."
    found = answers(cfg, [{"text": text}, {"text": ["Lear", ",", "e-mail."]}])
    assert found[0]["words"] == ["Lear", ",", "(", "the", "U.N", ".", ")", "king", "said", "e-mail", "."]
    assert found[1]["words"] == ["Lear", ",", "e-mail."]
    for one, whole in zip(found, (text, "Lear , e-mail."), strict=True):
        assert all(each["text"] == whole[each["start"] : each["end"]] for each in one["entities"])
        assert len(one["prediction"]) == len(one["words"])
    with pytest.raises(DataError, match="record 0: 'text' is not a text, nor a list of words of which none is empty"):
        answers(cfg, [{"text": ["a", ""]}])


def test_a_task_that_says_nothing_of_answers_and_a_mask_that_is_missing_are_named():
    cfg, _ = CASES["fillings"]
    with pytest.raises(DataError, match=r"record 0: 'text' has no \[MASK\] to be filled"):
        answers(cfg, [{"text": "abc"}])
    with pytest.raises(DataError, match="has one text a line, but 'text' and 'question' are needed"):
        open_inputs(__file__, "txt", prediction.columns(CASES["answers"][0], BYTES))


LIKE = {"prediction": "", "probabilities": {"a": 0.0}}
DATE = datetime.date(2020, 2, 29)


def write(path, chunks, schema=None):
    with tables.writing(str(path), LIKE, schema) as into:
        for number, chunk in enumerate(chunks):
            into(
                [
                    (Record(f"record {number}", values), {"prediction": "p", "probabilities": {"a": 0.5}})
                    for values in chunk
                ]
            )


def test_columns_are_carried_along_as_they_are(tmp_path):
    values = [{"n": 1, "tags": ["x", "y"], "day": DATE, "raw": b"\0", "none": None, "real": 0.1}]
    parquet = tmp_path / "in.parquet"
    types = [pa.int8(), pa.list_(pa.string()), pa.date32(), pa.binary(), pa.float32(), pa.float64()]
    schema = pa.schema(list(zip(values[0], types, strict=True)))
    pq.write_table(pa.Table.from_pylist(values * 3, schema=schema), parquet)
    inputs = open_inputs(str(parquet), None, ())
    write(tmp_path / "out.parquet", [[record.values for record in inputs.read()]], inputs.schema())
    back = pq.read_table(tmp_path / "out.parquet")
    assert back.select(schema.names).schema == schema
    assert back.to_pylist() == [{**values[0], "prediction": "p", "probabilities": {"a": 0.5}}] * 3
    with pytest.raises(DataError, match=r"record 0: 'raw' holds bytes, which only \.parquet can carry along"):
        write(tmp_path / "out.csv", [values])
    del values[0]["raw"]
    write(tmp_path / "out.csv", [values])
    assert list(csv.reader((tmp_path / "out.csv").read_text().splitlines())) == [
        ["n", "tags", "day", "none", "real", "prediction", "probabilities"],
        ["1", '["x", "y"]', "2020-02-29", "", "0.1", "p", '{"a": 0.5}'],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.csv", "out.parquet"]


def test_a_record_with_other_columns_than_the_first_needs_lines_of_json(tmp_path):
    for name in ("out.csv", "out.parquet"):
        with pytest.raises(DataError, match=r"record 1: the first record has no 'b', .*: write \.jsonl"):
            write(tmp_path / name, [[{"a": "1"}], [{"a": "1", "b": 2}]])
    with pytest.raises(DataError, match="between record 1 and record 1 a column has another type"):
        write(tmp_path / "out.parquet", [[{"a": 1}], [{"a": "x"}]])
    write(tmp_path / "out.jsonl", [[{"a": "1"}], [{"a": 1, "b": np.inf}]])
    assert [one.get("b") for one in lines((tmp_path / "out.jsonl").read_text())] == [None, "Infinity"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_tables_with_line_ends_quotes_and_a_mark_of_the_byte_order_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,id\r\n"two\nlines, ""quoted""",1\r\n\r\n' + b"x" * 200_000 + b",2\r\n")
    found = list(open_inputs(str(path), None, ("text",)).read())
    assert [record.values["text"] for record in found] == ['two\nlines, "quoted"', "x" * 200_000]
    assert [record.place for record in found] == [f"{path}, line 3", f"{path}, line 5"]
