"""What eight devices compute and exchange, read off the compiled program."""

import re
from functools import cache
from math import prod

import jax
import numpy as np
import optax
import pytest

from bigjax import models, sharding
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.models.parts import blocks
from bigjax.params import ParamSpec
from bigjax.tasks import losses
from bigjax.train import reduction, step
from tests.conftest import mesh_of
from tests.on_meshes import COMPILE_QUICKLY, MESHES, ONE_DEVICE, program, random_batch

ROWS, LENGTH, WIDTH, VOCAB = 16, 48, 64, 520
CFG = Config(
    model=ModelConfig(
        vocab_size=VOCAB,
        num_layers=2,
        d_model=WIDTH,
        num_heads=4,
        max_seq_len=LENGTH,
        tie_embeddings=False,
        layers="unroll",
    ),
    data=DataConfig(seq_len=LENGTH),
    train=TrainConfig(global_batch_size=ROWS, steps=5),
)
"""Sizes that tell the axes of a shape apart; unrolled, so that the compiler's count of operations sees every layer."""


def operations(text: str, name: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return the computation and the shape of every result of the instructions called `name` in an HLO text."""
    found, computation = [], ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = "ENTRY" if header[1] else header[2]
        elif match := re.match(rf"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) {name}(?:-start)?\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            found += [(computation, tuple(int(size) for size in shape.split(",") if size)) for shape in shapes]
    return found


@cache
def compiled(mesh_name: str):
    """Return the program and the executable of a training step without an optimizer."""
    run = program(CFG, mesh_name, optax.identity())
    with jax.set_mesh(run.mesh):
        state = step.abstract_state(CFG, run.model, run.tx, run.layout, run.mesh)
        return run, run.step.lower(state, run.place(CFG)).compile()


def flops(mesh_name: str) -> float:
    """Return the operations of one device."""
    return compiled(mesh_name)[1].cost_analysis()["flops"]


def test_the_instructions_of_a_program_are_found():
    text = """
%body.1 (p: f32[2]) -> f32[2] {
  %all-reduce.3 = f32[520,64]{1,0} all-reduce(%x), replica_groups={}
}
ENTRY %main.2 (p: f32[2]) -> f32[2] {
  %all-reduce.5 = (f32[8]{0}, f32[]) all-reduce(%x, %y), replica_groups={}
  ROOT %ag = bf16[4,8]{1,0} all-gather(%z), dimensions={0}
}
"""
    assert operations(text, "all-reduce") == [("body.1", (520, 64)), ("ENTRY", (8,)), ("ENTRY", ())]
    assert operations(text, "all-gather") == [("ENTRY", (4, 8))]


@pytest.mark.parametrize("mesh_name", [name for name in MESHES if name != ONE_DEVICE])
def test_eight_devices_share_the_work(mesh_name):
    # Of 6 * 768 operations with each parameter (one multiplication and addition per token, forward and twice backward),
    # 576 are a device's. Whole parameters cost each device about 10 more (sums and norms of gradients), 2 %, and so do
    # the norms and residual sums that `tensor` repeats on features it does not split.
    assert flops(mesh_name) == pytest.approx(flops(ONE_DEVICE) / 8, rel=0.04)


@pytest.mark.parametrize("mesh_name", ["data 8", "fsdp 8"])
def test_each_device_gets_an_eighth_of_the_rows(mesh_name):
    run, _ = compiled(mesh_name)
    for name, x in run.place(CFG).items():
        shards = x.addressable_shards
        assert {shard.data.shape for shard in shards} == {(ROWS // 8, LENGTH)}
        rows = np.concatenate([shard.data for shard in sorted(shards, key=lambda shard: shard.index[0].start)])
        np.testing.assert_array_equal(rows, random_batch(CFG)[name])


def stored(mesh_name: str) -> list[dict[jax.Device, int]]:
    """Return the bytes of every parameter of two axes and more on each device, as really laid out."""
    run = compiled(mesh_name)[0]
    with jax.set_mesh(run.mesh):
        init = jax.jit(
            lambda: step.init_state(CFG, run.model, run.tx, run.layout).params, compiler_options=COMPILE_QUICKLY
        )
        arrays = jax.tree.leaves(init())
    specs = jax.tree.leaves(run.model.specs)
    return [
        {shard.device: shard.data.nbytes for shard in array.addressable_shards}
        for spec, array in zip(specs, arrays, strict=True)
        if spec.kind not in sharding.VECTOR_KINDS
    ]


def test_fsdp_stores_an_eighth_of_every_matrix_on_each_device():
    matrices = [spec for spec in jax.tree.leaves(models.build(CFG.model).specs) if spec.kind not in ("norm", "bias")]
    held = stored("fsdp 8")
    assert len(held) == len(matrices) == 9
    for spec, devices in zip(matrices, held, strict=True):
        assert list(devices.values()) == [4 * spec.size // 8] * 8
        assert len(devices) == 8


def test_fsdp_gathers_every_matrix_before_use():
    text = compiled("fsdp 8")[1].as_text()
    gathered = [shape for _, shape in operations(text, "all-gather")]
    block = [(WIDTH, 4, 16)] * 3 + [(4, 16, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
    for shape in [(VOCAB, WIDTH), *block]:
        assert any(prod(found) == prod(shape) for found in gathered), f"{shape} is not among {gathered}"


def test_tensor_parallelism_splits_heads_hidden_units_and_vocabulary():
    run, executable = compiled("fsdp 4, tensor 2, sequence")
    local = jax.tree.map(lambda spec: run.layout.act(*spec.axes), run.model.specs)
    assert local["blocks"]["attn"]["q"] == jax.P(None, None, "tensor", None)
    assert local["blocks"]["mlp"]["up"] == jax.P(None, None, "tensor")
    shapes = {shape for name in ("dot", "fusion", "custom-call") for _, shape in operations(executable.as_text(), name)}
    tokens = ROWS // 4 * LENGTH
    for columns, whole in ((2 * WIDTH, 4 * WIDTH), (VOCAB // 2, VOCAB)):
        assert any(shape[-1:] == (columns,) and prod(shape) == tokens * columns for shape in shapes)
        assert not any(shape[-1:] == (whole,) and prod(shape) >= tokens * whole for shape in shapes)


@pytest.mark.parametrize("mesh_name", [name for name in MESHES if name != ONE_DEVICE])
def test_logits_and_hidden_units_are_never_gathered(mesh_name):
    text = compiled(mesh_name)[1].as_text()
    exchanged = [shape for name in ("all-gather", "all-to-all") for _, shape in operations(text, name)]
    for columns in (VOCAB, VOCAB // 2, 4 * WIDTH, 2 * WIDTH):
        assert not [shape for shape in exchanged if LENGTH in shape and columns in shape]
    # No batch of hidden states either: with the sequence split, each device gathers its own rows only.
    rows = ROWS // (8 // MESHES[mesh_name].get("tensor", 1))
    assert not [shape for shape in exchanged if LENGTH in shape and prod(shape) > rows * LENGTH * WIDTH]


@pytest.mark.parametrize("chunks", [2, 4])
def test_the_chunked_loss_sums_the_gradient_of_the_output_matrix_once(chunks):
    mesh_cfg, mesh = mesh_of(data=8)
    model = models.build(CFG.model)
    layout = sharding.layout(mesh_cfg, mesh, model.specs)
    batch = random_batch(CFG)

    def total(x, w, targets, weights):
        return losses.chunked_cross_entropy(x, w, targets, weights, chunks=chunks, layout=layout).total

    with jax.set_mesh(mesh):
        hidden = np.zeros((ROWS, LENGTH, WIDTH), np.float32)
        placed = sharding.put_batch({"x": hidden, "t": batch["targets"], "w": batch["weights"]}, mesh, ROWS)
        matrix = jax.device_put(np.zeros((VOCAB, WIDTH), np.float32), jax.NamedSharding(mesh, jax.P()))
        gradient = jax.jit(jax.grad(total, argnums=(0, 1)), compiler_options=COMPILE_QUICKLY)
        text = gradient.lower(placed["x"], matrix, placed["t"], placed["w"]).compile().as_text()
    sums = [where for where, shape in operations(text, "all-reduce") if shape == (VOCAB, WIDTH)]
    assert sums == ["ENTRY"]
    assert " while(" in text
    logits = [
        shape for _, shape in operations(text, "fusion") + operations(text, "dot") if VOCAB in shape and len(shape) > 2
    ]
    assert not [shape for shape in logits if prod(shape) > ROWS // 8 * LENGTH // chunks * VOCAB]


@pytest.mark.parametrize(
    ("axes", "exchanged"),
    [
        ({"fsdp": 8}, True),
        ({"data": 2, "fsdp": 4}, True),
        ({"fsdp": 4, "tensor": 2}, True),
        ({"slice": 2, "fsdp": 2, "tensor": 2, "shard_sequence": True}, True),
        ({"fsdp": 2, "tensor": 4}, False),
    ],
)
def test_a_split_table_is_looked_up_without_gathering_it_where_that_sends_less(axes, exchanged):
    """The rows and the gradient are those of one table; what is sent is tokens, not rows of the table."""
    rows, length, width, vocab = 8, 6, 16, 64
    mesh_cfg, mesh = mesh_of(8, **axes)
    specs = {"tokens": ParamSpec((vocab, width), ("vocab", "embed"), "embedding", jax.nn.initializers.zeros)}
    layout, cfg = sharding.layout(mesh_cfg, mesh, specs), ModelConfig(positions="rotary")
    rng = np.random.default_rng(0)
    table, tokens = rng.standard_normal((vocab, width)).astype(np.float32), rng.integers(0, vocab, (rows, length))
    weights = rng.standard_normal((rows, length, width)).astype(np.float32)
    expected = np.zeros_like(table)
    np.add.at(expected, tokens, weights)
    with jax.set_mesh(mesh):
        stored = jax.device_put(table, jax.NamedSharding(mesh, layout.param(specs["tokens"])))
        batch = sharding.put_batch({"tokens": tokens}, mesh, rows)
        where = jax.NamedSharding(mesh, layout.act("batch", "residual_seq", "embed"))

        def look_up(stored):
            tables = blocks.tables(stored, specs, cfg, layout)
            return blocks.look_up(tables, batch["tokens"], None, cfg, layout)

        def both(table):
            found, pull = jax.vjp(look_up, reduction.mark({"tokens": table}, specs, layout))
            return found, reduction.total(pull(jax.device_put(weights, where))[0])["tokens"]

        run = jax.jit(both, compiler_options=COMPILE_QUICKLY)
        found, gradient = run(stored)
        text = run.lower(stored).compile().as_text()
    np.testing.assert_array_equal(found, table[tokens])
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5)  # at most 48 summands of size 1
    assert gradient.sharding == stored.sharding
    whole = [shape for _, shape in operations(text, "all-gather") if shape[-1:] == (width,) and shape[0] >= vocab // 4]
    assert bool(operations(text, "all-to-all")) == exchanged and bool(whole) != exchanged
