"""What `experiments.predict` answers, against transformers' pipelines, or its models, on one folder in float32."""

import csv
import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs PyTorch")

import transformers as peers  # noqa: E402
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402

from bigjax.tasks.reports import answers  # noqa: E402
from tests.parity import folders  # noqa: E402

pipeline: Any = peers.pipeline  # its annotations forget what comes back

PREDICT = "experiments.predict"
WORDS = ("sea", "moon", "fish", "wave", "star")
TEXTS = ["the sea", "the moon fish wave", "star", "the the the wave", *(f"{a} the {b}" for a in WORDS for b in WORDS)]
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
REL = 1e-4
"""Of probabilities: logits agree to some 1e-6 of their size, which is below 20 here."""


def bert(kind: str, folder, **said):
    """Save a small BERT of random weights with a head, and a tokenizer; return both."""
    torch.manual_seed(0)
    model = getattr(peers, f"BertFor{kind}")(peers.AutoConfig.for_model("bert", **folders.SMALL_BERT | said)).eval()
    with torch.no_grad():
        for w in model.parameters():
            if w.ndim > 1:
                w.mul_(8)  # random predictions are otherwise all but equal
    folder.mkdir()
    folders.word_pieces(folder)
    names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    folders.edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **names)
    model.config.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if hasattr(model, "classifier"):
        with torch.no_grad():  # no class is the likeliest of all texts
            logits = [
                model(**tokenizer(text, return_tensors="pt")).logits.reshape(-1, model.num_labels) for text in TEXTS
            ]
            model.classifier.bias -= torch.cat(logits).mean(0)
    model.save_pretrained(folder)
    return model, tokenizer


def predict(call_command, folder, records: list[dict], *flags) -> list[dict]:
    """Return the lines that the command prints for lines of JSON."""
    path = folder.parent / "inputs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    status, out, err = call_command(
        PREDICT, f"--workdir=hf:{folder}", f"--inputs={path}", "--config.model.dtype=float32", *flags
    )
    assert status == 0, err
    return [json.loads(line) for line in out.splitlines()]


def texts(given=TEXTS) -> list[dict]:
    return [{"id": i, "text": text} for i, text in enumerate(given)]


def test_classes_are_those_of_text_classification(call_command, tmp_path):
    names = ("tragedy", "comedy", "history")
    model, tokenizer = bert("SequenceClassification", tmp_path / "bert", id2label=dict(enumerate(names)))
    theirs = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)(TEXTS)
    ours = predict(call_command, tmp_path / "bert", texts())
    assert [one["id"] for one in ours] == list(range(len(TEXTS)))
    assert len({one["prediction"] for one in ours}) > 1
    for one, found in zip(ours, theirs, strict=True):
        assert one["prediction"] == found[0]["label"]
        assert one["probability"] == pytest.approx(found[0]["score"], rel=REL)
        assert one["probabilities"] == pytest.approx({each["label"]: each["score"] for each in found}, rel=REL)


@pytest.mark.parametrize("given", ["text", "words"])
def test_tags_and_entities_are_those_of_token_classification(call_command, tmp_path, given):
    model, tokenizer = bert("TokenClassification", tmp_path / "bert", id2label=dict(enumerate(TAGS)))
    plain = pipeline("token-classification", model=model, tokenizer=tokenizer, ignore_labels=[])(TEXTS)
    records = texts() if given == "text" else [{"id": i, "text": text.split()} for i, text in enumerate(TEXTS)]
    ours = predict(call_command, tmp_path / "bert", records)
    for text, one, found in zip(TEXTS, ours, plain, strict=True):
        assert one["words"] == text.split() == [text[each["start"] : each["end"]] for each in found]
        assert one["prediction"] == [each["entity"] for each in found]
        assert one["probabilities"] == pytest.approx([each["score"] for each in found], rel=REL)
    grouped = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="first")(TEXTS)
    compared = 0
    for one, found in zip(ours, grouped, strict=True):
        spelt = [(each["kind"], each["start"], each["end"]) for each in one["entities"]]
        assert all(each["text"] == TEXTS[one["id"]][each["start"] : each["end"]] for each in one["entities"])
        assert spelt == [(each["entity_group"], each["start"], each["end"]) for each in found]
        compared += len(spelt)
    assert compared > 20


@torch.no_grad()
def test_answers_stand_where_the_question_answering_pipeline_finds_them(call_command, tmp_path):
    """transformers 5 has no such pipeline: as that of transformers 4 decodes, on the logits of the model."""
    model, tokenizer = bert("QuestionAnswering", tmp_path / "bert")
    asked = [("the sea", f"the moon {a} the {b} wave") for a in WORDS for b in WORDS]
    records = [{"question": question, "text": context} for question, context in asked]
    ours = predict(call_command, tmp_path / "bert", records)
    for one, (question, context) in zip(ours, asked, strict=True):
        given = tokenizer(
            question, context, return_tensors="pt", return_offsets_mapping=True, return_token_type_ids=True
        )
        offsets = given.pop("offset_mapping")[0]
        out = model(**given)
        inside = torch.tensor([number == 1 for number in given.sequence_ids(0)])
        allowed = inside | (torch.arange(len(inside)) == 0)
        ends = [torch.where(allowed, each[0].double(), -1e4).softmax(-1) for each in (out.start_logits, out.end_logits)]
        start, end = (torch.where(inside, each, 0.0) for each in ends)
        scores = torch.tril(torch.triu(start[:, None] * end[None, :]), answers.LONGEST - 1)
        first, last = divmod(int(scores.argmax()), len(inside))
        where = int(offsets[first, 0]), int(offsets[last, 1])
        assert (one["start"], one["end"]) == where
        assert one["prediction"] == context[slice(*where)]
        assert one["probability"] == pytest.approx(float(scores.max()), rel=REL)
        none = float(out.start_logits[0, 0] + out.end_logits[0, 0])
        best = float(out.start_logits[0, first] + out.end_logits[0, last])
        assert one["no_answer"] == pytest.approx(none - best, rel=REL, abs=1e-4)
    assert len({one["start"] for one in ours}) > 1


def test_fillings_are_those_of_fill_mask(call_command, tmp_path):
    model, tokenizer = bert("MaskedLM", tmp_path / "bert", tie_word_embeddings=True, vocab_size=11)
    masked = [f"the {word} [MASK] the wave" for word in WORDS] + ["[MASK] the [MASK]"]
    theirs = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=5)(masked)
    ours = predict(call_command, tmp_path / "bert", texts(masked))
    for one, found in zip(ours, theirs, strict=True):
        found = found if isinstance(found[0], list) else [found]
        assert len(one["fillings"]) == len(found)
        for fillings, each in zip(one["fillings"], found, strict=True):
            assert [filling["probability"] for filling in fillings] == pytest.approx(
                [filling["score"] for filling in each], rel=REL
            )
            assert [filling["id"] for filling in fillings] == [filling["token"] for filling in each]
            special = set(tokenizer.all_special_tokens)
            # What has no text, such as [PAD], is told as none.
            said = ["" if filling["token_str"] in special else filling["token_str"] for filling in each]
            assert [filling["token"] for filling in fillings] == said
    assert all(one["prediction"] == found[0]["sequence"] for one, found in zip(ours[:5], theirs[:5], strict=True))


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_is_what_generate_writes(call_command, tmp_path, beams):
    """transformers 5 has no pipeline for translation, which called `generate` and decoded."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 300}
    ids = {"pad_token_id": 299, "eos_token_id": 0, "decoder_start_token_id": 299}
    kind: Any = peers.T5ForConditionalGeneration
    model = kind(peers.AutoConfig.for_model("t5", **sizes, **ids)).eval()
    model.save_pretrained(tmp_path / "t5")
    folders.bpe(tmp_path / "t5")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "t5" / "tokenizer.json"))
    flags = ("--config.data.target_len=12", *([f"--beams={beams}"] if beams > 1 else []))
    ours = predict(call_command, tmp_path / "t5", texts(TEXTS[:6]), *flags)
    for one in ours:
        given = torch.tensor([[*tokenizer(one["text"]).input_ids, 0]])
        with torch.no_grad():
            how = {"max_new_tokens": 12, "do_sample": False, "num_beams": beams, "length_penalty": 0.0}
            out = model.generate(given, **how, early_stopping=True if beams > 1 else None)
        kept = [i for i in out[0, 1:].tolist() if i not in (0, 299)]
        assert one["prediction"] == tokenizer.decode(kept)


def test_log_probabilities_are_those_of_the_model(call_command, tmp_path):
    model = folders.save("llama", tmp_path / "llama", bos_token_id=0, eos_token_id=0)
    folders.bpe(tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    path = tmp_path / "texts.csv"
    with path.open("w") as file:
        csv.writer(file).writerows([["n", "text"], *enumerate(TEXTS[:6])])
    out = tmp_path / "out.csv"
    flags = (f"--inputs={path}", f"--out={out}", "--config.model.dtype=float32")
    assert call_command(PREDICT, f"--workdir=hf:{tmp_path}/llama", *flags)[0] == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["text"] for row in rows] == TEXTS[:6]
    for row in rows:
        ids = torch.tensor([[0, *tokenizer(row["text"]).input_ids]])
        with torch.no_grad():
            log_probs = model(ids[:, :-1]).logits[0].double().log_softmax(-1)
        expected = float(log_probs[np.arange(ids.shape[1] - 1), ids[0, 1:]].sum())
        assert float(row["log_prob"]) == pytest.approx(expected, rel=1e-5)
        assert int(row["tokens"]) == ids.shape[1] - 1
