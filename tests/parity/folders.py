"""Small Hugging Face folders of random weights, as transformers writes them, with tokenizers and their settings."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from bigjax.data.tokens.bpe import train_bpe

SMALL_BERT = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
}
SMALL = SMALL_BERT | {"num_key_value_heads": 2, "max_position_embeddings": 64}
"""Of a decoder."""

TEXT = "the sea, the moon, the fish and a wave of the sea by the light of a star\n"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def save(kind: str, folder: Path, **said: Any) -> Any:
    """Save a small model of a model type with other fields of its config, and return it in evaluation mode."""
    torch.manual_seed(0)
    cfg = transformers.AutoConfig.for_model(kind, **SMALL | said)
    model = transformers.AutoModelForCausalLM.from_config(cfg).eval()
    model.save_pretrained(folder)
    return model


def edit(path: Path, **said: Any) -> None:
    """Change keys of a JSON file; "absent" removes one."""
    values = (json.loads(path.read_text()) if path.exists() else {}) | said
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))


def bpe(folder: Path, size: int = 280) -> None:
    """Save byte-level BPE with `<|endoftext|>` as id 0."""
    folder.mkdir(exist_ok=True)
    train_bpe([TEXT * 3], size, folder)


def word_pieces(folder: Path) -> None:
    """Save a vocabulary of a few words as BERT's are."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, "the", "sea", "moon", "fish", "wave", "star"]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.save(str(folder / "tokenizer.json"))
