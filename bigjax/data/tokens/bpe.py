"""Choosing the tokenizer of a run, and training byte-level BPE on its training documents."""

import difflib
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from bigjax.config import named
from bigjax.data.errors import DataError
from bigjax.data.tokens.cache import content_key, make_once
from bigjax.data.tokens.own import own
from bigjax.data.tokens.shards import Side
from bigjax.data.tokens.tokenizers import END_OF_TEXT, ByteTokenizer, Tokenizer, load_file, load_tokenizer

FORMS = {"bytes": "bytes", "bpe": "bpe:SIZE", "hf": "hf:PATH"}
SMALLEST = 257
"""The 256 bytes and the end-of-text token."""


def build_tokenizer(spec: str, training: Sequence[Side], root: str | Path, room: int | None = None) -> Tokenizer:
    """Return the tokenizer that `data.tokenizer` names.

    Args:
      spec: `bytes`, `bpe:SIZE`, `hf:PATH`, or the user's own as `module.path:NAME`.
      training: the documents that BPE is trained on.
      root: cache folder for trained ones.
      room: how many ids the model has, so that none is trained, which takes long, for a model that it does not suit.

    Raises:
      DataError: unknown kind, a size that is no number or does not suit the documents, or an unusable file.
    """
    kind, _, rest = spec.partition(":")
    if spec == "bytes":
        return ByteTokenizer()
    if kind == "hf" and rest:
        return load_file(rest)
    if kind == "bpe" and rest.isdecimal():
        if room is not None and int(rest) > room:
            raise DataError(
                f"data.tokenizer={spec!r} would have more ids than model.vocab_size={room}: set "
                f"model.vocab_size={rest} or more, or data.tokenizer=bpe:{room} or fewer"
            )
        return _trained(int(rest), training, Path(root))
    if rest and kind not in FORMS and named.is_own(spec):
        return own(spec)
    near = difflib.get_close_matches(kind, FORMS, n=1, cutoff=0.0)[0]
    wanted = "bytes, bpe:SIZE, hf:PATH of a tokenizer.json, or your own as module.path:NAME"
    raise DataError(f"data.tokenizer: {spec!r} is no tokenizer; did you mean {FORMS[near]!r}? A tokenizer is {wanted}")


def _trained(size: int, training: Sequence[Side], root: Path) -> Tokenizer:
    if size < SMALLEST:
        raise DataError(f"data.tokenizer='bpe:{size}' is too small: 256 bytes and {END_OF_TEXT} make {SMALLEST}")
    sides = [side.key() for side in training]
    folder = root / "tokenizers" / content_key("byte-level BPE", size, version("tokenizers"), sides)
    texts = (text for side in training for _, text in side.documents())
    make_once(folder, lambda temporary: train_bpe(texts, size, temporary))
    return load_tokenizer(folder)


def train_bpe(texts: Iterable[str], size: int, folder: str | Path) -> None:
    """Train byte-level BPE (Radford et al. 2019, section 2.2), with `<|endoftext|>` as id 0, and save it in a folder.

    Raises:
      DataError: the texts have too few repeated pairs for that many tokens.
    """
    folder = Path(folder)
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    reached = backend.get_vocab_size()
    if reached < size:
        raise DataError(
            f"data.tokenizer='bpe:{size}' needs more text: the training documents give {reached} tokens; "
            f"set data.tokenizer='bpe:{reached}' or less"
        )
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
