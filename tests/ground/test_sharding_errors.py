"""Every way in which a mesh does not fit fails before the first step, by name, with the numbers that clash."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.nn.initializers import zeros

from bigjax import config, models, sharding
from bigjax.config import MESH_AXES, Config, ConfigError, DataConfig, MeshConfig, ModelConfig, TrainConfig
from bigjax.params import ParamSpec
from bigjax.sharding import ShardingError
from bigjax.train import step
from tests.conftest import mesh_of
from tests.on_meshes import abstract_mesh


def layout_of(specs, num_devices: int = 64, **axes) -> sharding.Layout:
    cfg = MeshConfig(**axes)
    return sharding.layout(cfg, abstract_mesh(cfg, num_devices), specs)


def fails(message: str):
    return pytest.raises(ShardingError, match=re.escape(message))


def model_specs(**fields):
    return models.build(ModelConfig(vocab_size=64, num_layers=2, max_seq_len=32, **fields)).specs


def test_sizes_that_do_not_multiply_to_the_devices():
    message = "mesh.data=3 * mesh.fsdp=2 = 6, but there are 8 devices; set one axis to -1 to use the rest"
    with fails(message):
        sharding.mesh_shape(MeshConfig(data=3, fsdp=2), 8)
    with fails("every axis of the mesh is 1, but there are 8 devices; set one axis to -1"):
        sharding.mesh_shape(MeshConfig(data=1), 8)
    with fails(message):
        mesh_of(data=3, fsdp=2)


def test_the_rest_of_the_devices():
    assert sharding.mesh_shape(MeshConfig(data=-1, tensor=4), 64)["data"] == 16
    assert sharding.mesh_shape(MeshConfig(data=2, fsdp=-1), 2)["fsdp"] == 1
    with fails("mesh.fsdp=3 does not divide the 8 devices at hand"):
        sharding.mesh_shape(MeshConfig(data=-1, fsdp=3), 8)
    with fails("mesh.fsdp=3 does not divide the 1 device at hand"):
        sharding.mesh_shape(MeshConfig(data=-1, fsdp=3), 1)
    with fails("mesh.fsdp=3, but there are 2 devices"):
        sharding.mesh_shape(MeshConfig(data=1, fsdp=3), 2)
    with fails("mesh.fsdp=3 * mesh.tensor=2 = 6 does not divide the 8 devices at hand"):
        sharding.mesh_shape(MeshConfig(data=-1, fsdp=3, tensor=2), 8)
    with pytest.raises(ConfigError, match=r"mesh\.data and mesh\.fsdp are both -1"):
        Config(mesh=MeshConfig(data=-1, fsdp=-1))


@pytest.mark.parametrize("axis", ["fsdp", "tensor", "expert", "slice"])
def test_the_default_of_data_gives_way_to_an_axis_that_takes_the_rest(axis):
    cfg = config.replace(Config(), mesh={axis: -1}).mesh
    assert sharding.mesh_shape(cfg, 8) == dict.fromkeys(MESH_AXES, 1) | {axis: 8}
    assert sharding.mesh_shape(MeshConfig(**{axis: 2}), 8) == dict.fromkeys(MESH_AXES, 1) | {axis: 2, "data": 4}
    assert cfg.sizes["data"] == 1 and MeshConfig().sizes["data"] == -1


@pytest.mark.parametrize("axis", ["stage", "expert", "context"])
def test_axes_that_the_model_does_not_know(axis):
    with fails(f"mesh.{axis}=2: not yet for this model; set mesh.{axis}=1"):
        layout_of(model_specs(d_model=64), data=-1, **{axis: 2})
    cfg = MeshConfig(data=-1, **{axis: 2})
    layout = sharding.layout(cfg, abstract_mesh(cfg, 64), model_specs(d_model=64), supported=(axis,))
    assert layout.sizes[axis] == 2


@pytest.mark.parametrize(
    ("fields", "axes", "tensor", "axis", "size", "by"),
    [
        (
            {"d_model": 64, "num_heads": 6, "num_kv_heads": 2, "head_dim": 8},
            {"tensor": 4},
            "blocks/attn/k",
            "kv_heads",
            2,
            "mesh.tensor=4",
        ),
        ({"d_model": 64, "num_kv_heads": 2}, {"tensor": 4}, "blocks/attn/k", "kv_heads", 2, "mesh.tensor=4"),
        ({"d_model": 64, "d_ff": 99}, {"tensor": 2}, "blocks/mlp/down", "mlp", 99, "mesh.tensor=2"),
        ({"d_model": 60}, {"fsdp": 8}, "blocks/attn/k", "embed", 60, "mesh.fsdp=8"),
    ],
)
def test_an_axis_that_does_not_divide_a_dimension(fields, axes, tensor, axis, size, by):
    specs = model_specs(**fields)
    with pytest.raises(ShardingError) as error:
        layout_of(specs, **axes)
    problem = (
        f"axis {axis} of size {size} is not divisible by {by}; change the mesh or the size, or leave it whole with "
    )
    assert problem + f"mesh.allow_replicated=('{axis}',)" in str(error.value)
    assert str(error.value).startswith(f"{tensor}: ")


def test_an_axis_may_stay_whole_by_name():
    specs = model_specs(d_model=64, num_heads=1)
    resolved = layout_of(specs, tensor=2, allow_replicated=("heads", "kv_heads"))
    assert resolved.param(specs["blocks"]["attn"]["q"]) == jax.P(None, None, None, None)
    assert resolved.param(specs["blocks"]["mlp"]["up"]) == jax.P(None, None, "tensor")
    assert resolved.act("batch", "seq", "heads", "head_dim") == jax.P("data", None, None, None)
    assert len(resolved.notes) == 2
    assert all("stays whole on every device along it" in note for note in resolved.notes)
    # The permission is not a request.
    assert layout_of(model_specs(d_model=64), tensor=2, allow_replicated=("heads",)).params["heads"] == ("tensor",)
    with fails(
        "mesh.allow_replicated names 'blocks/attn/w', which is neither an axis nor a parameter of this model; "
        "did you mean 'blocks/attn/v'?"
    ):
        layout_of(specs, tensor=2, allow_replicated=("heads", "kv_heads", "blocks/attn/w"))
    for order in (("nought", "all"), ("all", "nought")):  # the same one of several mistakes, whatever hashes say
        with fails("mesh.allow_replicated names 'all', which is neither"):
            layout_of(specs, tensor=2, allow_replicated=order)


def test_a_vocabulary_that_does_not_divide_stays_whole_and_is_noted():
    specs = models.build(ModelConfig(vocab_size=50257)).specs
    resolved = layout_of(specs, tensor=2)
    assert resolved.param(specs["embed"]["tokens"]) == jax.P(None, None)
    assert resolved.notes == (
        "embed/tokens: axis vocab of size 50257 is not divisible by mesh.tensor=2: "
        "vocab stays whole on every device along it",
    )


def test_a_large_parameter_must_not_be_whole_on_every_device():
    # 2^18 float32 numbers are 1 MiB.
    large = {"table": ParamSpec((2**18 + 1, 1), ("positions", "head_dim"), "embedding", zeros)}
    with fails("table (1.0 MiB) would be whole on every device although mesh.fsdp=4; give one of its axes"):
        layout_of(large, fsdp=4)
    layout_of(large, fsdp=4, allow_replicated=("table",))
    layout_of(large, fsdp=1)
    layout_of({"table": ParamSpec((2**18, 1), ("positions", "head_dim"), "embedding", zeros)}, fsdp=4)


def test_an_axis_left_whole_can_leave_a_large_parameter_whole():
    specs = models.build(ModelConfig(d_model=1028, num_heads=4)).specs
    with fails("blocks/attn/k (16.1 MiB) would be whole on every device although mesh.fsdp=8"):
        layout_of(specs, fsdp=8, allow_replicated=("embed",))


def stacked(*sizes: int, axes: tuple[str, ...], kind="bias") -> ParamSpec:
    return ParamSpec(sizes, ("layers", *axes), kind, zeros)


def test_the_vectors_of_many_layers_are_split_over_fsdp_once_they_are_large():
    specs = {
        "norm": stacked(96, 12288, axes=("vector",), kind="norm"),
        "hidden": stacked(96, 49152, axes=("mlp",)),
        "heads": stacked(96, 96, 128, axes=("heads", "head_dim")),
        "small": stacked(12, 768, axes=("vector",)),
    }
    resolved = layout_of(specs, fsdp=16, tensor=4)
    assert resolved.param(specs["norm"]) == jax.P(None, "fsdp")
    assert resolved.param(specs["hidden"]) == jax.P(None, ("tensor", "fsdp"))
    assert resolved.param(specs["heads"]) == jax.P(None, "tensor", "fsdp")
    assert resolved.param(specs["small"]) == jax.P(None, None)
    assert resolved.act("vector") == jax.P(None)
    assert resolved.act("mlp") == jax.P("tensor")
    assert resolved.notes == ()


def test_vectors_that_fsdp_does_not_divide_stay_whole_and_are_noted():
    specs = {"bias": stacked(96, 96, 120, axes=("heads", "head_dim"))}
    resolved = layout_of(specs, fsdp=64)
    assert resolved.param(specs["bias"]) == jax.P(None, None, None)
    note = "bias (96, 96, 120) stays whole on every device although mesh.fsdp=64, which divides none of its axes"
    assert resolved.notes == (note,)


def test_a_parameter_cannot_use_a_mesh_axis_twice():
    square = {"square": ParamSpec((64, 64), ("mlp", "heads"), "matrix", zeros, ("mlp",))}
    with fails("logical axes ('mlp', 'heads') would use a mesh axis twice: ['tensor', 'tensor']"):
        layout_of(square, tensor=2)


def test_an_axis_without_a_rule_is_named():
    with fails("table: there is no rule for axis 'colour'; the axes with rules are embed, mlp"):
        layout_of({"table": ParamSpec((4,), ("colour",), "bias", zeros)})


def test_a_batch_that_does_not_divide():
    resolved = layout_of({}, slice=2, data=4, fsdp=8)
    sharding.check_batch(128, 2, resolved)
    message = "train.global_batch_size=128 in train.microbatches=4 gives 32 rows, not divisible by "
    with fails(message + "mesh.slice=2 * mesh.data=4 * mesh.fsdp=8 = 64"):
        sharding.check_batch(128, 4, resolved)
    # What nobody has set is named as what it is: all that is left of the devices.
    rest = "(-1: all the remaining devices)"
    for axes, num_devices, over, near in (
        ({}, 3, f"mesh.data=3 {rest}", 9),
        ({"fsdp": 2}, 6, f"mesh.data=3 {rest} * mesh.fsdp=2 = 6", 6),
        ({"data": 1, "fsdp": -1}, 5, f"mesh.fsdp=5 {rest}", 10),
    ):
        resolved = layout_of({}, num_devices, **axes)
        with fails(f"train.global_batch_size=8 in train.microbatches=1 gives 8 rows, not divisible by {over}: set "):
            sharding.check_batch(8, 1, resolved)
        with fails(f"set train.global_batch_size={near}"):
            sharding.check_batch(8, 1, resolved)
        sharding.check_batch(near, 1, resolved)


def test_a_sequence_that_does_not_divide():
    with fails("data.seq_len=30 is not divisible by mesh.tensor=4 (mesh.shard_sequence=True)"):
        sharding.check_sequence(30, layout_of({}, tensor=4, shard_sequence=True))
    sharding.check_sequence(30, layout_of({}, tensor=4))
    with pytest.raises(
        ConfigError, match=r"mesh\.shard_sequence=True splits the sequence over mesh\.tensor, which is 1"
    ):
        Config(mesh=MeshConfig(shard_sequence=True))


class Scattered:
    """A sharding that gives this process rows 0-1 and 4-5, as an order of devices along the network might."""

    def addressable_devices_indices_map(self, shape):
        return {0: (slice(0, 2),), 1: (slice(4, 6),), 2: (slice(4, 6),)}


def test_rows_of_a_process_that_are_not_one_block(monkeypatch):
    _, mesh = mesh_of(data=4, tensor=2)
    assert sharding.local_rows(mesh, 8) == slice(0, 8)
    monkeypatch.setattr("bigjax.mesh.batch_sharding", lambda mesh, ndim: Scattered())
    with fails("this process holds rows up to 2 and from 4 of a batch, but not those in between"):
        sharding.local_rows(mesh, 8)


@pytest.mark.parametrize("make", [step.make_train_step, step.make_eval_step])
def test_a_batch_left_whole_fails_while_tracing(make):
    mesh_cfg, mesh = mesh_of(data=2, fsdp=4)
    cfg = Config(
        model=ModelConfig(vocab_size=64, num_layers=1, d_model=32, max_seq_len=16),
        data=DataConfig(seq_len=16),
        train=TrainConfig(global_batch_size=8),
        mesh=mesh_cfg,
    )
    model, tx = models.build(cfg.model), optax.identity()
    layout = sharding.layout(mesh_cfg, mesh, model.specs)
    with jax.set_mesh(mesh):
        state = step.abstract_state(cfg, model, tx, layout, mesh)
        batch = {name: jnp.zeros((8, 16), jnp.int32) for name in ("tokens", "targets", "weights")}
        whole = r"batch array (\w+) \(8, 16\) is split over \(.*\), not over \('data', 'fsdp'\)"
        for wrong in (jax.P(), jax.P("data"), jax.P(None, ("data", "fsdp"))):
            placed = {name: jax.device_put(x, jax.NamedSharding(mesh, wrong)) for name, x in batch.items()}
            with pytest.raises(ValueError, match=whole):
                if make is step.make_train_step:
                    jax.eval_shape(make(cfg, model, tx, layout), state, placed)
                else:
                    jax.eval_shape(make(cfg, model, layout), state.params, placed)
