"""Checkpoints in an S3 store hold to what those on a disk do, and a device reads its own part of them alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bigjax.checkpoint import Checkpoints, blocks, digests, reading, saving
from bigjax.config import CheckpointConfig
from bigjax.errors import UserError
from tests import object_store
from tests.conftest import mesh_of

SYNC = CheckpointConfig(keep_last=2, asynchronous=False)
SPECS = {"rows": P("fsdp"), "columns": P(None, "tensor"), "both": P("fsdp", "tensor"), "one": P(), "half": P("tensor")}


def state_on(mesh):
    key = jax.random.key(0)
    shapes = {"rows": (16, 24), "columns": (6, 32), "both": (8, 8, 3), "one": (), "half": (64,)}
    keys = jax.random.split(key, len(shapes))
    found = {name: jax.random.normal(keys[i], shape) for i, (name, shape) in enumerate(shapes.items())}
    found["half"] = found["half"].astype(jnp.bfloat16)
    return {"params": {name: jax.device_put(x, NamedSharding(mesh, SPECS[name])) for name, x in found.items()}}


def abstract_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def same(a, b):
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.fixture
def small(monkeypatch):
    """Blocks and objects so small that these arrays have many."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 128)
    monkeypatch.setattr(blocks, "OBJECT_BYTES", 512)
    monkeypatch.setattr(digests, "BLOCK_BYTES", 128)


def test_a_checkpoint_comes_back_bit_for_bit_on_other_meshes(bucket, small):
    before = state_on(mesh_of(8, fsdp=4, tensor=2)[1])
    with Checkpoints(bucket / "c", SYNC) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, before, {"at": step}, {"who": "me"}, first=lambda: None)
        assert checkpoints.steps() == [2, 3]  # keep_last
        assert [report.problems for report in digests.verify(bucket / "c")] == [(), ()]
        for axes in ({"fsdp": 4, "tensor": 2}, {"fsdp": 2, "tensor": 4}, {"fsdp": 1, "tensor": 1}):
            count = axes["fsdp"] * axes["tensor"]
            wanted = state_on(mesh_of(count, **axes)[1])
            found = checkpoints.restore(abstract_of(wanted))
            assert same(found.state, before)
            assert (found.step, found.data_state, found.identity) == (3, {"at": 3}, {"who": "me"})
            assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y.sharding, found.state, wanted))
    part = saving.restore_part(bucket / "c", "params", abstract_of(before)["params"], without=("one",))
    assert part[0] == 3 and same(part[1], {k: v for k, v in before["params"].items() if k != "one"})


def test_only_what_a_device_needs_is_read(store, bucket, small):
    mesh = mesh_of(8, fsdp=8)[1]
    numbers = jnp.arange(8 * 1024, dtype=jnp.float32).reshape(8, -1)
    whole = {"x": jax.device_put(numbers, NamedSharding(mesh, P("fsdp")))}
    with Checkpoints(bucket / "c", SYNC) as checkpoints:
        checkpoints.save(1, whole, {}, {})
    record = reading.read_metadata(bucket / "c" / "1")
    assert record.state["x"].shape == (8, 1024)
    found, files = blocks_of(bucket / "c" / "1")
    reader = blocks.Reader(bucket / "c" / "1", found, files)
    with object_store.proxy(store) as port, object_store.used(store, port):
        store.requests.clear()
        [(_, values)] = reader.read([("x", (slice(2, 3), slice(0, 1024)), (1, 1024))], {"x": np.dtype(np.float32)})
        read = [path for _, method, path, _ in store.requests if method == "GET"]
    assert np.array_equal(values[0], np.arange(2048, 3072, dtype=np.float32))
    assert len(read) == 8  # 4 KB of 32: eight objects of 512 bytes, of 64


def blocks_of(folder):
    from bigjax.checkpoint import objects

    record, files = objects._described(folder)
    chunks = {process: [objects._chunk(found) for found in own] for process, own in record["chunks"].items()}
    return chunks, {name: entry for name, entry in files.items() if "blocks" in entry}


@pytest.mark.parametrize("damage", ["flipped", "short", "missing", "description"])
@pytest.mark.sample(2)
def test_damage_is_found_and_the_one_before_is_used(bucket, small, damage, capsys):
    state = state_on(mesh_of(8, fsdp=8)[1])
    with Checkpoints(bucket / "c", SYNC) as checkpoints:
        checkpoints.save(1, state, {}, {})
        checkpoints.save(2, state, {}, {})
        target = bucket / "c" / "2" / ("checkpoint.json" if damage == "description" else "00000/000001.bin")
        data = bytearray(target.read_bytes())
        data[7] ^= 1
        if damage == "missing":
            target.unlink()
        else:
            target.write_bytes(bytes(data[: 100 if damage == "short" else None]))
        assert same(checkpoints.restore(abstract_of(state)).state, state)
        assert checkpoints.steps() == [1]
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and target.name in said and "set aside as" in said
        assert (bucket / "c" / "2.damaged" / "digests.json").is_file()
        (bucket / "c" / "1" / "00000" / "000000.bin").write_bytes(b"")
        with pytest.raises(UserError, match=r"(?s)can be used.*000000.bin is empty"):
            checkpoints.restore(abstract_of(state))


def test_what_a_kill_leaves_goes_and_lost_digests_are_set_aside(bucket, small, capsys):
    state = state_on(mesh_of(8, fsdp=8)[1])
    with Checkpoints(bucket / "c", SYNC) as checkpoints:
        checkpoints.save(1, state, {}, {})
        checkpoints.save(2, state, {}, {})
    (bucket / "c" / "3" / "saving.json").write_text("{}")
    (bucket / "c" / "3" / "00000" / "000000.bin").write_bytes(b"half")
    (bucket / "c" / "2" / "digests.json").unlink()
    with Checkpoints(bucket / "c", SYNC) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(4, state, {}, {})
    assert sorted(path.name for path in (bucket / "c").iterdir()) == ["1", "2.damaged", "4"]
    assert "step 2: digests.json is missing" in capsys.readouterr().err


def test_nothing_is_complete_before_what_comes_first_and_a_failure_is_told(bucket, small):
    state = state_on(mesh_of(8, fsdp=8)[1])
    with Checkpoints(bucket / "c", SYNC) as checkpoints:

        def first():
            assert checkpoints.steps() == []
            raise OSError(5, "the rows cannot be stored")

        with pytest.raises(OSError, match="the rows"):
            checkpoints.save(1, state, {}, {}, first=first)
        checkpoints.recover()
        checkpoints.save(1, state, {}, {})
        assert checkpoints.steps() == [1]
