"""An encoder-decoder starts to write, and a BERT pads and masks, with the tokens that its folder names."""

import json

import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs PyTorch")

from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration  # noqa: E402

from bigjax.data import load_tokenizer, save_tokenizer  # noqa: E402
from bigjax.data.cutting import ends_of  # noqa: E402
from bigjax.data.tokens.special import special_ids  # noqa: E402
from bigjax.interop import hf  # noqa: E402
from tests.parity import folders  # noqa: E402

EVALUATE = "experiments.evaluate"
PIECES = ["<blank>", "<stop>", "<what>", "<go>", "the", "sea", "moon", "fish", "wave", "star"]


def t5(folder, pad_token, **said):
    """Save a T5 of random weights with a vocabulary whose special tokens nobody else spells so."""
    torch.manual_seed(0)
    small = {"vocab_size": 300, "d_model": 64, "d_kv": 16, "num_heads": 4, "num_layers": 2, "d_ff": 128}
    model = T5ForConditionalGeneration(T5Config(**small, pad_token_id=0, eos_token_id=1, **said)).eval()
    model.save_pretrained(folder)
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="<what>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(PIECES[:4])
    backend.save(str(folder / "tokenizer.json"))
    if pad_token:
        settings = {"pad_token": "<blank>", "eos_token": "<stop>", "tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


@pytest.mark.parametrize(
    ("pad_token", "start"),
    [(True, 0), (False, 0), (True, 3)],
    ids=["named by the tokenizer", "by config.json alone", "a start that is not padding"],
)
def test_the_loss_is_that_of_transformers(call_command, tmp_path, pad_token, start):
    model = t5(tmp_path / "t5", pad_token, decoder_start_token_id=start)
    read, written = ["the sea", "the moon the sea", "a wave"], ["fish star", "moon", "the wave the star"]
    rows = "".join(f"{a},{b}\n" for a, b in zip(read, written, strict=True))
    (tmp_path / "pairs.csv").write_text("text,target\n" + rows)
    ids = [[PIECES.index(w) if w in PIECES else 2 for w in text.split()] + [1] for text in read + written]
    losses, tokens = [], 0
    for source, target in zip(ids[:3], ids[3:], strict=True):
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([source]), labels=torch.tensor([target])).loss.item()
        losses.append(loss * len(target))
        tokens += len(target)
    flags = ("--config.data.seq_len=8", "--config.data.target_len=8", "--config.train.global_batch_size=8")
    columns = ("--config.data.target_key=target", f"--sources=csv:{tmp_path}/pairs.csv")
    status, said, error = call_command(EVALUATE, f"--workdir=hf:{tmp_path}/t5", *flags, *columns)
    assert status == 0, error
    assert json.loads(said)["loss"] == pytest.approx(sum(losses) / tokens, rel=1e-5)
    save_tokenizer(load_tokenizer(tmp_path / "t5"), tmp_path / "run")
    for folder in ("t5", "run"):
        assert vars(ends_of(load_tokenizer(tmp_path / folder))) == {"start": start, "end": 1, "pad": 0}
    cfg, params = hf.import_checkpoint(tmp_path / "t5")
    hf.export_checkpoint(params, cfg, tmp_path / "out", tokenizer_from=tmp_path / "run", started_from=tmp_path / "t5")
    values = json.loads((tmp_path / "out/config.json").read_text())
    assert (values["decoder_start_token_id"], values["pad_token_id"], values["eos_token_id"]) == (start, 0, 1)


@pytest.mark.parametrize(("more", "pad"), [({}, 7), ({"added_tokens_decoder": {}}, 0)])
def test_roles_that_settings_name(tmp_path, more, pad):
    """A token for a role is the one that AutoTokenizer has for it, in whichever of two files that is."""
    token = {"__type": "AddedToken", "special": True}
    folders.word_pieces(tmp_path)
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    for old, new in (("[PAD]", "<blank>"), ("[MASK]", "<hidden>")):
        definition = json.loads(json.dumps(definition).replace(old, new))
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    settings = {"pad_token": "<blank>", "mask_token": "<hidden>", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    told = dict(settings, tokenizer_class="PreTrainedTokenizerFast", mask_token={"content": "<hidden>", **token})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told | more))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "moon"}))
    ours = special_ids(load_tokenizer(tmp_path), ("pad", "cls", "sep", "mask"))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours == {role: getattr(theirs, f"{role}_token_id") for role in ours}
    assert ours == {"pad": pad, "cls": 2, "sep": 3, "mask": 4}
