"""Folders of weights and checkpoints with something damaged in them are read whole, or what is wrong is named."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from bigjax.checkpoint.saving import Checkpoints
from bigjax.config import CheckpointConfig
from bigjax.interop import hf
from tests.fuzzing import JUNK, attempt, lengths, search
from tests.interop.test_hf_weights import LLAMA, random_params
from tests.saver import state_after

DAMAGE = st.tuples(st.sampled_from(["flip", "cut", "grow", "delete"]), st.floats(0, 1), st.integers(1, 255))


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


@lengths(30, 500)
def test_a_damaged_folder_of_weights_is_read_or_named(count, tmp_path):
    hf.export_checkpoint(random_params(LLAMA), LLAMA, tmp_path / "sound")
    keys = list(json.loads((tmp_path / "sound" / "config.json").read_text()))

    def check(file: str, how: tuple[str, float, int], key: str, value: Any) -> None:
        with tempfile.TemporaryDirectory() as here, attempt():
            copy = Path(shutil.copytree(tmp_path / "sound", Path(here, "copy")))
            if file == "option":
                values = json.loads((copy / "config.json").read_text())
                (copy / "config.json").write_text(json.dumps({**values, key: value}))
            else:
                damage(copy / file, how)
            cfg, params = hf.import_checkpoint(copy)
            assert params["embed"]["tokens"].shape == (cfg.vocab_size, cfg.d_model)

    files = st.sampled_from(["option", "config.json", "model.safetensors"])
    search(count, check, files, DAMAGE, st.sampled_from(keys), JUNK)


@lengths(25, 100)
def test_a_damaged_checkpoint_is_set_aside_and_never_read(count, tmp_path, capsys):
    cfg = CheckpointConfig(keep_last=2, asynchronous=False)
    with Checkpoints(tmp_path / "sound", cfg) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_after(step), {"next_step": step}, {})
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_after(1))

    def check(steps: list[int], where: float, how: tuple[str, float, int]) -> None:
        with tempfile.TemporaryDirectory() as here, attempt():
            copy = Path(shutil.copytree(tmp_path / "sound", Path(here, "copy")))
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
    search(count, check, chosen, st.floats(0, 1), DAMAGE)
    capsys.readouterr()
