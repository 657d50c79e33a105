"""Whatever a user hands in, the outcome is what was asked for or one clear error, no traceback, no silent default.

Every property holds for so many inputs of Hypothesis, the same each time; under `-m faults` for many more.
"""

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigjax import data
from bigjax.checkpoint import Checkpoints
from bigjax.config import CheckpointConfig, Config, replace
from bigjax.data.bpe import train_bpe
from bigjax.data.tokenizers import load_file
from bigjax.errors import UserError
from bigjax.interop import hf
from bigjax.schema import field_paths
from experiments import cli, train
from tests.commands import ROOT
from tests.saver import state_after
from tests.test_hf_weights import LLAMA, random_params

FEW, MANY = 30, 500
RULES = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.faults)]
counts = pytest.mark.parametrize("count", RULES)

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["", "0", "-1", "1e999", "nan", "None", "true", "(1,", "'a'", "decoder", "bytes", "../x"])
)
JSON = st.recursive(
    LEAVES.filter(lambda x: x == x), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)
)
DAMAGE = st.tuples(st.sampled_from(["flip", "cut", "grow", "delete"]), st.floats(0, 1), st.integers(1, 255))


def holds(count: int, check: Callable[..., None], **strategies: st.SearchStrategy) -> None:
    """Try a property on `count` inputs, the same each time."""
    rules = settings(max_examples=count, derandomize=True, database=None, deadline=None)
    settings(rules, suppress_health_check=list(HealthCheck))(given(**strategies)(check))()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder for one input."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextlib.contextmanager
def sentence() -> Iterator[None]:
    """Let pass what is the user's to mend, if it says so in print."""
    try:
        yield
    except UserError as error:
        assert str(error).strip() and "Traceback" not in str(error)


def damage(path: Path, how: tuple[str, float, int]) -> None:
    """Change a byte of a file, cut it short there, put one more in, or delete the file."""
    kind, where, byte = how
    content = path.read_bytes()
    at = int(where * max(len(content) - 1, 0))
    here, rest = content[:at], content[at:]
    if kind == "delete":
        path.unlink()
    else:
        changed = {"flip": bytes(b ^ byte for b in rest[:1]) + rest[1:], "cut": b"", "grow": bytes([byte]) + rest}
        path.write_bytes(here + changed[kind])


@counts
def test_an_override_is_shown_or_refused(count):
    def check(path: str, value: Any) -> None:
        argv = ["train", f"--config={ROOT}/configs/quickstart.py", f"--config.{path}={value}", "--print_config"]
        out, err, status = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main(train.main, doc=train.__doc__, define_flags=train.define_flags, argv=argv)
            except SystemExit as end:
                status = int(end.code or 0)
        said = err.getvalue()
        if status:
            assert status == 2 and said.startswith("error: ") and "Traceback" not in said
        else:
            assert out.getvalue() and not said

    holds(count, check, path=st.sampled_from([*field_paths(Config), "model", "optim.rate", "x.y", ""]), value=LEAVES)


READERS = {"text": "txt", "jsonl": "jsonl", "csv": "csv", "tsv": "tsv", "parquet": "parquet", "conll": "conll"}


@counts
def test_a_data_file_is_read_or_named(count):
    lines = st.lists(JSON.map(json.dumps) | st.text() | st.just('{"text": "some words to read"}'), max_size=4)
    content = st.binary(max_size=200) | lines.map(lambda parts: "\n".join(parts).encode("utf-8", "surrogatepass"))
    small = replace(
        Config(), model={"vocab_size": 257}, data={"seq_len": 4, "holdout": 0.0}, train={"global_batch_size": 2}
    )

    def check(kind: str, content: bytes) -> None:
        with folder() as here, sentence():
            path = here / f"a.{READERS[kind]}"
            path.write_bytes(content)
            fields = {"sources": (f"{kind}:{path}",), "cache_dir": str(here / "cache")}
            text = data.build(replace(small, data=fields), slice(0, 2))
            batch = text.train.batch(0)
            assert batch.arrays["tokens"].shape == (2, 4) and batch.arrays["tokens"].max() < 257

    holds(count, check, kind=st.sampled_from(list(READERS)), content=content)


@counts
def test_a_tokenizer_file_is_used_or_named(count, tmp_path):
    train_bpe(["to be or not to be"] * 4, 260, tmp_path)
    sound = (tmp_path / "tokenizer.json").read_text()
    keys = list(json.loads(sound))

    def check(key: str, value: Any, how: tuple[str, float, int], flip: bool) -> None:
        with folder() as here, sentence():
            path = here / "tokenizer.json"
            path.write_text(sound if flip else json.dumps({**json.loads(sound), key: value}))
            if flip:
                damage(path, how)
            loaded = load_file(path)
            ids = loaded.encode("to be")
            assert all(0 <= token < loaded.vocab_size for token in ids)

    holds(count, check, key=st.sampled_from(keys), value=JSON, how=DAMAGE, flip=st.booleans())


@counts
def test_a_damaged_folder_of_weights_is_read_or_named(count, tmp_path):
    hf.export_checkpoint(random_params(LLAMA), LLAMA, tmp_path / "sound")
    keys = list(json.loads((tmp_path / "sound" / "config.json").read_text()))

    def check(file: str, how: tuple[str, float, int], key: str, value: Any) -> None:
        with folder() as here, sentence():
            copy = Path(shutil.copytree(tmp_path / "sound", here / "copy"))
            if file == "option":
                values = json.loads((copy / "config.json").read_text())
                (copy / "config.json").write_text(json.dumps({**values, key: value}))
            else:
                damage(copy / file, how)
            cfg, params = hf.import_checkpoint(copy)
            assert params["embed"]["tokens"].shape == (cfg.vocab_size, cfg.d_model)

    files = st.sampled_from(["option", "config.json", "model.safetensors"])
    holds(count, check, file=files, how=DAMAGE, key=st.sampled_from(keys), value=JSON)


@counts
def test_a_damaged_checkpoint_is_set_aside_and_never_read(count, tmp_path, capsys):
    cfg = CheckpointConfig(keep_last=2, asynchronous=False)
    with Checkpoints(tmp_path / "sound", cfg) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_after(step), {"next_step": step}, {})
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_after(1))

    def check(steps: list[int], where: float, how: tuple[str, float, int]) -> None:
        with folder() as here, sentence():
            copy = Path(shutil.copytree(tmp_path / "sound", here / "copy"))
            for step in steps:
                files = sorted(path for path in (copy / str(step)).rglob("*") if path.is_file())
                damage(files[int(where * (len(files) - 1))], how)
            with Checkpoints(copy, cfg) as checkpoints:
                if not checkpoints.resumable():
                    return
                found = checkpoints.restore(abstract)
            assert found.data_state == {"next_step": found.step} and found.step not in steps
            for array in jax.tree.leaves(found.state):
                np.testing.assert_array_equal(array, jnp.int32(found.step))

    chosen = st.sampled_from([[2], [1], [1, 2]])
    holds(max(count // 5, 20), check, steps=chosen, where=st.floats(0, 1), how=DAMAGE)
    capsys.readouterr()
