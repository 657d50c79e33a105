"""BERT and T5 by command: a Hugging Face folder is scored, trained on, written from, and left again."""

import json
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from bigjax.config import Config, strict
from bigjax.data.tokens.bpe import train_bpe
from bigjax.data.tokens.tokenizers import ByteTokenizer
from bigjax.errors import UserError
from bigjax.interop import hf
from bigjax.interop.hf import verify as hf_verify
from configs import finetune_classification
from experiments import trained
from tests.commands import Commands, contents, read, rows, shared_cache
from tests.interop.test_hf_weights import BERT, T5_V1_1, random_params
from tests.models_of import changed

TRAIN, EVALUATE, GENERATE, EXPORT = (f"experiments.{name}" for name in ("train", "evaluate", "generate", "export"))
BRIEFLY = (
    "--config.data.seq_len=16",
    "--config.train.global_batch_size=4",
    "--config.train.steps=3",
    "--config.optim.warmup=1",
    "--config.log.plot=false",
    "--config.log.tensorboard=false",
)
ROWS = [("the moon and the stars", "sky"), ("a wet fish", "sea"), ("stars and clouds", "sky"), ("salt", "sea")] * 6


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> tuple[str, ...]:
    """Return the flags of a table that is trained on and scored."""
    folder = tmp_path_factory.mktemp("tables")
    for name, pairs in (("trained", ROWS), ("scored", ROWS[:7])):
        lines = [f"{text},{label}\n" for text, label in [("text", "label"), *pairs]]
        (folder / f"{name}.csv").write_text("".join(lines))
    sources = f"--config.data.sources=csv:{folder}/trained.csv", f"--config.data.eval_sources=csv:{folder}/scored.csv"
    return *sources, "--config.data.max_overlap=1.0"  # what is scored is trained on, too


def folder_of(cfg, save_tokenizer, parent):
    """Export random weights with a tokenizer."""
    (parent / "tokenizer").mkdir()
    save_tokenizer(parent / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_verify, "find_spec", lambda name: None)
        hf.export_checkpoint(random_params(cfg), cfg, parent / "model", tokenizer_from=parent / "tokenizer")
    return parent / "model"


def word_pieces(folder):
    """Save a vocabulary of 30 pieces as BERT's are."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvw", "##s", "the"]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(pieces[:5])
    backend.save(str(folder / "tokenizer.json"))


@pytest.mark.exhaustive
def test_bert_is_scored_and_tuned(commands, table, tmp_path):
    bert = folder_of(BERT, word_pieces, tmp_path)
    before = contents(bert)
    scored = json.loads(commands.run(EVALUATE, f"--workdir=hf:{bert}", *BRIEFLY, *table).stdout)
    assert (scored["step"], scored["sources"]) == (0, [table[1].partition("=")[2]])
    assert scored["loss"] > 0 and 0 <= scored["accuracy"] <= 1
    tuned = ("--config.model.num_classes=2", "--config.train.eval_every_steps=0")
    config = f"--config=configs/finetune_classification.py:hf:{bert}"
    done = commands.run(TRAIN, config, *BRIEFLY, *tuned, *table, f"--workdir={tmp_path}/run")
    assert f"note: {bert} is trained up to its head: head/classes, head/classes_bias, head/pooler" in done.stderr
    assert 0 <= read(tmp_path / "run/result.json")["eval_accuracy"] <= 1
    assert contents(bert) == before
    commands.run(EXPORT, f"--workdir={tmp_path}/run", f"--out={tmp_path}/out")
    assert read(tmp_path / "out/config.json")["id2label"] == {"0": "sea", "1": "sky"}


@pytest.mark.exhaustive
def test_t5_is_tuned_and_writes(commands, table, tmp_path):
    t5 = folder_of(
        changed(T5_V1_1, vocab_size=280, num_layers=1, num_decoder_layers=1),
        lambda to: train_bpe(["the sea"], 258, to),
        tmp_path,
    )
    columns = (*table, "--config.data.target_key=label", "--config.data.target_len=8")
    commands.run(TRAIN, f"--config=hf:{t5}", *BRIEFLY, *columns, f"--workdir={tmp_path}/run")
    assert [row["step"] for row in rows(tmp_path / "run") if "train/loss" in row] == [1, 3]
    how = ("--prompt=the moon", "--temperature=0", "--max_new_tokens=6")
    assert commands.run(GENERATE, f"--workdir=hf:{t5}", *how).stdout.strip()


def test_another_tokenizer_is_refused(tmp_path):
    bert = folder_of(BERT, word_pieces, tmp_path)
    cfg = strict.from_dict(Config, finetune_classification.get_config(f"hf:{bert}"))
    with pytest.raises(UserError, match=r"was trained with another tokenizer than data.tokenizer='hf:"):
        trained.initial_params(cfg, {}, SimpleNamespace(tokenizer=ByteTokenizer()))
