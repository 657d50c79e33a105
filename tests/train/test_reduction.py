"""Gradients are summed over devices once a step: counted in the compiled program, against a closed form."""

from math import prod

import jax
import pytest

from bigjax import models, params, sharding
from bigjax.config import Config, DataConfig, MeshConfig, ModelConfig, MoeConfig, OptimConfig, TrainConfig
from bigjax.config.mup import MupConfig
from bigjax.preflight.plan.compiled import compile_and_read
from bigjax.tasks import random_batch
from bigjax.train import optimizers, reduction, step

MICROBATCHES = 4


def compiled(mesh: MeshConfig, loss_chunks: int = 1, **model):
    """Return the layout, the model and what the compiled step of four microbatches sends over each set of axes."""
    sizes = {"vocab_size": 64, "num_layers": 3, "d_model": 64, "num_heads": 4, "d_ff": 128, "max_seq_len": 16}
    how = {"positions": "rotary", "norm": "rmsnorm", "bias": "none", "tie_embeddings": False, "layers": "scan"}
    cfg = Config(
        model=ModelConfig(**sizes, **how, **model),
        data=DataConfig(tokenizer="bytes", seq_len=16),
        train=TrainConfig(
            steps=10, global_batch_size=8 * MICROBATCHES, microbatches=MICROBATCHES, loss_chunks=loss_chunks
        ),
        optim=OptimConfig(name="sgd", lr=1e-2, schedule="constant", momentum=0.0, weight_decay=0.0),
        mesh=mesh,
    )
    devices = sharding.make_mesh(cfg.mesh, jax.devices())
    built = models.build(cfg.model)
    layout = sharding.fit(cfg, devices, built.specs)
    with jax.set_mesh(devices):
        tx = optimizers.build(cfg.optim, built.specs, cfg.train.steps)
        state = step.abstract_state(cfg, built, tx, layout, devices)
        batch = sharding.put_batch(random_batch(cfg), devices, cfg.train.global_batch_size)
        _, found = compile_and_read(
            step.jit_train_step(cfg, built, tx, layout).lower(state, batch), dict(devices.shape)
        )
    return layout, built, found.collectives


def summed(layout, specs, axis: str) -> float:
    """Return the bytes of gradients that a device sends along `axis`: of marked parameters once, of others every time.

    An all-reduce of n bytes by k devices sends 2 n (k - 1) / k of each (Patarasu & Yuan 2009, section 3).
    """
    total = 0.0
    for spec in jax.tree.leaves(specs):
        marked = (
            spec.kind in ("matrix", "head", "embedding") and "experts" not in spec.axes and "gates" not in spec.axes
        )
        where = layout.param(spec)
        parts = prod(layout.sizes[name] for name in sharding.axes_of(where))
        total += 4 * spec.size / parts * (1 if marked else MICROBATCHES)
    ways = layout.sizes[axis]
    return 2 * total * (ways - 1) / ways


@pytest.mark.parametrize(
    ("mesh", "axis", "how"),
    [
        (MeshConfig(data=8), "data", {}),
        (MeshConfig(data=8), "data", {"loss_chunks": 2}),
        (MeshConfig(data=8), "data", {"loss_chunks": 2, "parametrization": "mup", "mup": MupConfig(base_d_model=48)}),
        (MeshConfig(data=2, fsdp=4), "data", {}),
        (MeshConfig(data=2, fsdp=4), "data", {"loss_chunks": 2}),
        (MeshConfig(data=1, slice=2, fsdp=4), "slice", {}),
        (MeshConfig(data=4, tensor=2), "data", {}),
    ],
    ids=["data", "in chunks", "muP in chunks", "data x fsdp", "fsdp in chunks", "slice x fsdp", "data x tensor"],
)
def test_a_step_of_four_microbatches_sums_matrices_once(mesh, axis, how):
    layout, model, collectives = compiled(mesh, **how)
    sent = sum(one.bytes_per_chip for one in collectives if axis in one.mesh_axes and one.kind == "all-reduce")
    alone = sum(one.bytes_per_chip for one in collectives if one.mesh_axes == (axis,) and one.kind == "all-reduce")
    vectors = [spec for spec in jax.tree.leaves(model.specs) if spec.kind == "norm"]
    # Vectors are summed over all axes of the rows together; losses and norms are a few numbers.
    of_vectors = 2 * MICROBATCHES * 4 * sum(spec.size for spec in vectors)
    expected = summed(layout, model.specs, axis)
    assert 0.9 * (expected - of_vectors) <= alone <= sent <= 1.1 * expected + of_vectors


def test_what_a_sparse_layer_computes_with_is_not_marked():
    cfg = ModelConfig(num_layers=2, moe=MoeConfig(num_experts=4, router="topk", top_k=2), tie_embeddings=False)
    mesh = sharding.make_mesh(MeshConfig(data=2, expert=4), jax.devices())
    model = models.build(cfg)
    layout = sharding.layout(MeshConfig(data=2, expert=4), mesh, model.specs)

    def names_of_marked(values):
        marked = reduction.mark(values, model.specs, layout)
        return [name for name, w in params.names(marked).items() if jax.typeof(w).sharding.spec.reduced]

    found = []
    with jax.set_mesh(mesh):
        stored = jax.tree.map(
            lambda spec: jax.ShapeDtypeStruct(
                spec.shape, "float32", sharding=jax.NamedSharding(mesh, layout.param(spec))
            ),
            model.specs,
        )
        jax.eval_shape(lambda values: found.extend(names_of_marked(values)), stored)
    assert "blocks/attn/q" in found and "embed/tokens" in found and "head/tokens" in found
    assert not [name for name in found if "/moe/" in name or "norm" in name]
