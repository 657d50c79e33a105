"""Checkpoints come back bit for bit on any mesh, survive a kill, and name what does not fit."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from bigjax.checkpoint.reading import CheckpointMismatch
from bigjax.checkpoint.saving import Checkpoints, restore_part
from bigjax.config import CheckpointConfig
from bigjax.errors import UserError

SYNC = CheckpointConfig(every_steps=2, keep_last=2, asynchronous=False)
DATA, IDENTITY = {"example": 2**40, "rows": [1, 2.5, None, "a"]}, {"fingerprint": "abc"}


class Moments(NamedTuple):
    count: Any
    mu: Any


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    ema: Any = None


def mesh_of(**sizes: int) -> jax.sharding.Mesh:
    count = int(np.prod(list(sizes.values())))
    types = (AxisType.Explicit,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=jax.devices()[:count])


def make_state(mesh: jax.sharding.Mesh, spec: jax.P, seed: int = 0) -> State:
    rng = np.random.default_rng(seed)

    def put(x: np.ndarray, spec: jax.P = spec) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, spec))

    whole = NamedSharding(mesh, jax.P())
    weights = rng.standard_normal((8, 16)).astype(np.float32)
    weights[0, :3] = np.nan, -0.0, np.inf
    params = {
        "w": put(weights),
        "half": put(rng.standard_normal((8, 16)).astype(jnp.bfloat16)),
        "odd/name.x": put(rng.integers(-100, 100, (3,), dtype=np.int8), jax.P()),
        "keys": jax.device_put(jax.random.split(jax.random.key(seed), 3), whole),
        "raw": jax.device_put(jax.random.PRNGKey(seed), whole),
    }
    moments = Moments(put(np.int32(7), jax.P()), [put(rng.standard_normal((16, 8)).astype(np.float32)), None])
    return State(put(np.int32(3), jax.P()), params, (moments, ()))


def abstract(state: Any, sharding: NamedSharding | None = None) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state)


def is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def bits(tree: Any) -> list[tuple[str, bytes]]:
    leaves = [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]
    return [(str(x.dtype), np.asarray(x).tobytes()) for x in leaves]


def shardings(tree: Any) -> list[jax.sharding.Sharding]:
    """What jit compares; those of key arrays come back equivalent but spelled P(None,) for P()."""
    return [x.sharding for x in jax.tree.leaves(tree) if not is_key(x)]


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return mesh_of(data=4, tensor=2)


@pytest.fixture(scope="module")
def state(mesh) -> State:
    return make_state(mesh, jax.P("data", "tensor"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, SYNC) as checkpoints:
        checkpoints.save(3, state, DATA, IDENTITY)
    return folder


def test_restores_every_bit_with_its_data_and_identity(saved, state):
    restored = Checkpoints(saved, SYNC).restore(abstract(state))
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert bits(restored.state) == bits(state)
    assert shardings(restored.state) == shardings(state)
    assert (restored.step, restored.data_state, restored.identity) == (3, DATA, IDENTITY)
    assert type(restored.state.opt_state[0]) is Moments


@pytest.mark.parametrize("sizes", [{"data": 1}, {"data": 8}, {"fsdp": 2, "tensor": 2}], ids=str)
def test_restores_on_another_mesh(saved, state, sizes):
    other = make_state(mesh_of(**sizes), jax.P(tuple(sizes)))
    restored = Checkpoints(saved, SYNC).restore(abstract(other)).state
    assert bits(restored) == bits(state)
    assert shardings(restored) == shardings(other)


def test_says_nothing(tmp_path, state, caplog, capfd):
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1)) as checkpoints:
        checkpoints.save(1, state, DATA, IDENTITY)
        checkpoints.save(2, state, DATA, IDENTITY)
        checkpoints.restore(abstract(make_state(mesh_of(data=8), jax.P("data"))))
    restore_part(tmp_path, "params", abstract(state.params))
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []
    assert capfd.readouterr() == ("", "")


def test_parameters_alone_come_from_another_run(saved, state):
    assert bits(restore_part(saved, "params", abstract(state.params))[1]) == bits(state.params)
    with pytest.raises(CheckpointMismatch, match=r"raw .*: checkpoint has it, config wants none"):
        restore_part(saved, "params", abstract({name: x for name, x in state.params.items() if name != "raw"}))


def test_mismatch_names_what_differs(saved, state):
    wanted = abstract(state)
    params = dict(wanted.params) | {"w": jax.ShapeDtypeStruct((8, 32), jnp.float32), "new": wanted.params["w"]}
    params["half"] = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    params["keys"] = jax.ShapeDtypeStruct((4,), wanted.params["keys"].dtype)
    del params["raw"]
    with pytest.raises(CheckpointMismatch) as error:
        Checkpoints(saved, SYNC).restore(wanted.replace(params=params, ema=wanted.params))
    assert str(error.value).splitlines() == [
        f"the checkpoint {saved}/3 does not hold what this config needs:",
        "  params/half: checkpoint has bfloat16[8,16], config wants float32[8,16]",
        "  params/keys: checkpoint has uint32[3,2], config wants uint32[4,2]",
        "  params/w: checkpoint has float32[8,16], config wants float32[8,32]",
        "  params/new (float32[8,16]): config wants it, checkpoint has none",
        "  ema (5 arrays): config wants it, checkpoint has none",
        "  params/raw (uint32[2]): checkpoint has it, config wants none",
    ]


def test_mismatch_list_is_cut(saved, state):
    wanted = abstract(state)
    many = {f"p{i}": wanted.params["w"] for i in range(30)} | wanted.params
    with pytest.raises(CheckpointMismatch, match=r"and 10 more$") as error:
        Checkpoints(saved, SYNC).restore(wanted.replace(params=many))
    assert len(str(error.value).splitlines()) == 22


def test_policies(tmp_path):
    state = {"x": jnp.arange(3)}
    cfg = CheckpointConfig(every_steps=2, keep_last=2, keep_every_steps=4)
    with Checkpoints(tmp_path, cfg) as checkpoints:
        assert [step for step in range(9) if checkpoints.should_save(step)] == [2, 4, 6, 8]
        assert checkpoints.latest() is None
        for step in (2, 4, 6, 8, 10, 12, 14, 15):
            checkpoints.save(step, state, {"at": step}, {})
    assert checkpoints.steps() == [4, 8, 12, 14, 15]
    # A later session, which saved none of these itself, prunes by the same rule; a step that exists stays as it is.
    with Checkpoints(tmp_path, cfg) as checkpoints:
        checkpoints.save(15, state, {"at": 0}, {})
        checkpoints.save(17, state, {"at": 17}, {})
        assert checkpoints.restore(abstract(state), 15).data_state == {"at": 15}
    assert checkpoints.steps() == [4, 8, 12, 15, 17]


def test_keeps_only_the_newest(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"x": jnp.arange(3)}, {}, {})
    assert checkpoints.steps() == [3]


def test_nothing_to_restore(tmp_path, saved, state):
    with pytest.raises(UserError, match=f"no complete checkpoint in {tmp_path}"):
        Checkpoints(tmp_path, SYNC).restore(abstract(state))
    with pytest.raises(UserError, match=r"no complete checkpoint of step 4 in .*, only of \[3\]"):
        Checkpoints(saved, SYNC).restore(abstract(state), 4)
    with pytest.raises(UserError, match="no complete checkpoint"):
        restore_part(tmp_path / "nowhere", "params", abstract(state.params))
    assert Checkpoints(tmp_path / "nowhere", SYNC).steps() == []
    assert list(tmp_path.iterdir()) == []


def test_half_written_is_ignored_and_removed_by_the_next_save(tmp_path):
    state = {"x": jnp.arange(3)}
    with Checkpoints(tmp_path, SYNC) as checkpoints:
        checkpoints.save(2, state, {}, {})
    half = tmp_path / "4.orbax-checkpoint-tmp"
    (tmp_path / "2").rename(half)
    with Checkpoints(tmp_path, SYNC) as checkpoints:
        assert checkpoints.latest() is None
        assert half.exists()
        checkpoints.save(6, state, {}, {})
    assert checkpoints.steps() == [6]
    assert not half.exists()


@pytest.mark.parametrize("spec", [jax.P("data"), jax.P()], ids=["sharded", "replicated"])
def test_donating_the_state_does_not_reach_a_save_in_progress(tmp_path, mesh, spec):
    sharding = NamedSharding(mesh, spec)
    init = jax.jit(lambda: [jnp.full((256, 1024), i, jnp.float32) for i in range(8)], out_shardings=[sharding] * 8)
    step = jax.jit(lambda state: [x - 100 for x in state], donate_argnums=0)
    state = init()
    wanted = abstract(state)
    step(init())  # compiles, so that the step below overlaps with the writing
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, state, {}, {})
        for _ in range(5):
            state = step(state)
        jax.block_until_ready(state)
        restored = checkpoints.restore(wanted).state
    assert [np.unique(x).tolist() for x in restored] == [[i] for i in range(8)]


def test_error_while_writing_is_raised(tmp_path, monkeypatch):
    from orbax.checkpoint.checkpoint_manager import CheckpointManager

    def fail(self, *args):
        raise OSError("disk full")

    monkeypatch.setattr(CheckpointManager, "_finalize", fail)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, {"x": jnp.arange(3)}, {}, {})
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(2, {"x": jnp.arange(3)}, {}, {})
    with pytest.raises(OSError, match="disk full"):
        checkpoints.close()


KILLED = """
import sys, os, signal
import jax, jax.numpy as jnp
from pathlib import Path
from bigjax.checkpoint.saving import Checkpoints
from bigjax.config import CheckpointConfig

checkpoints = Checkpoints(Path(sys.argv[1]), CheckpointConfig())
state = [jnp.full((1024, 1024), 1.0) for _ in range(32)]
checkpoints.save(1, state, {"at": 1}, {})
checkpoints.wait()
checkpoints.save(2, [x + 1 for x in state], {"at": 2}, {})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_during_a_save_leaves_whole_checkpoints_only(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    child = subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=environment, check=False)
    assert child.returncode == -signal.SIGKILL
    wanted = [jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=jnp.zeros(()).sharding)] * 32
    checkpoints = Checkpoints(tmp_path, SYNC)
    # The second save is all but certainly cut short; if the kill came late, it has to be whole.
    assert checkpoints.steps()[0] == 1
    for step in checkpoints.steps():
        restored = checkpoints.restore(wanted, step)
        assert restored.data_state == {"at": step}
        assert all(np.all(np.asarray(x) == step) for x in restored.state)


@flax.struct.dataclass
class LaterState(State):
    watch: Any = None


def test_a_field_that_is_new_and_not_used_does_not_matter(saved, state):
    wanted = abstract(state)
    later = LaterState(wanted.step, wanted.params, wanted.opt_state)
    restored = Checkpoints(saved, SYNC).restore(later).state
    assert restored.watch is None
    assert bits(restored) == bits(state)
    with pytest.raises(CheckpointMismatch, match=r"watch \(int32\[\]\): config wants it, checkpoint has none"):
        Checkpoints(saved, SYNC).restore(later.replace(watch=wanted.step))
