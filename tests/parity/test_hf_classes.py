"""Classes of a Hugging Face folder keep their logits: label k is scored on logit k, as PyTorch scores it."""

import json

import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs PyTorch")

from transformers import (  # noqa: E402
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from tests.parity import folders  # noqa: E402

EVALUATE, TRAIN = "experiments.evaluate", "experiments.train"
WORDS = ("sea", "moon", "fish", "wave", "star")
TWELVE = range(12)
GENRES = ("tragedy", "comedy", "history")
WAYS = {
    "numbers": (12, None, [str(k) for k in TWELVE]),
    "their own names": (12, None, [f"LABEL_{k}" for k in TWELVE]),
    "names that are not sorted": (3, GENRES, GENRES),
}
"""How many classes a head has, how it names them, and the label of class k in the data."""


def classifier(kind, count, names, folder):
    """Save a small BERT of random weights that tells `count` classes apart, with a tokenizer; return both."""
    torch.manual_seed(0)
    named = (
        {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {x: i for i, x in enumerate(names)}}
    )
    cfg = (
        BertConfig(**folders.SMALL_BERT, num_labels=count)
        if names is None
        else BertConfig(**folders.SMALL_BERT, **named)
    )
    model = kind(cfg).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(40)  # random logits are otherwise all but equal, in whatever order
    model.save_pretrained(folder)
    folders.word_pieces(folder)
    return model, AutoTokenizer.from_pretrained(folder)


def log_loss(logits, targets) -> float:
    return torch.nn.functional.cross_entropy(logits, torch.tensor(targets)).item()


@pytest.mark.parametrize("way", WAYS)
def test_texts_are_scored_on_the_logit_of_their_label(call_command, tmp_path, way):
    count, names, labels = WAYS[way]
    model, tokenizer = classifier(BertForSequenceClassification, count, names, tmp_path / "bert")
    texts = [f"the {WORDS[i % 5]} {WORDS[i // 5]}" for i in range(24)]
    numbers = [i % count for i in range(24)]
    (tmp_path / "data.csv").write_text(
        "text,label\n" + "".join(f"{text},{labels[k]}\n" for text, k in zip(texts, numbers, strict=True))
    )
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    said = call_command(EVALUATE, f"--workdir=hf:{tmp_path}/bert", f"--sources=csv:{tmp_path}/data.csv")
    scored = json.loads(said[1])
    assert scored["loss"] == pytest.approx(log_loss(logits, numbers), rel=1e-5)
    assert scored["accuracy"] == pytest.approx((logits.argmax(-1) == torch.tensor(numbers)).float().mean().item())
    assert list(scored["classification"]["classes"]) == list(names or [f"LABEL_{k}" for k in range(count)])


@pytest.mark.parametrize("way", WAYS)
def test_words_are_scored_on_the_logit_of_their_tag(call_command, tmp_path, way):
    count, names, labels = WAYS[way]
    model, tokenizer = classifier(BertForTokenClassification, count, names, tmp_path / "bert")
    sentences = [[WORDS[(i + j) % 5] for j in range(4)] for i in range(6)]
    numbers = [[(4 * i + j) % count for j in range(4)] for i in range(6)]
    lines = ({"text": words, "label": [labels[k] for k in row]} for words, row in zip(sentences, numbers, strict=True))
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = tokenizer([" ".join(words) for words in sentences], return_tensors="pt")
    assert given["input_ids"].shape == (6, 6)  # [CLS], a token a word, [SEP]
    with torch.no_grad():
        logits = model(**given).logits[:, 1:-1].reshape(24, count)
    said = call_command(EVALUATE, f"--workdir=hf:{tmp_path}/bert", f"--sources=jsonl:{tmp_path}/data.jsonl")
    assert json.loads(said[1])["loss"] == pytest.approx(log_loss(logits, [k for row in numbers for k in row]), rel=1e-5)
