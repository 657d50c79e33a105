"""Stages of a pipeline compute what one device computes, whatever the schedule, and what cannot be split is refused."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import config, models, params, sharding
from bigjax.checkpoint.saving import Checkpoints
from bigjax.config import Config, ConfigError, DataConfig, MeshConfig, ModelConfig, MoeConfig, TrainConfig
from bigjax.config import pipeline as schedule
from bigjax.evaluate.generation import generate
from bigjax.models.parts import pipeline
from bigjax.preflight.equivalence import compare as equivalence
from bigjax.preflight.equivalence import meshes
from bigjax.sharding import ShardingError
from bigjax.train import optimizers, step
from tests.conftest import mesh_of
from tests.on_meshes import abstract_mesh

MODELS = {
    "dense": {"positions": "rotary", "dropout": 0.1},
    "untied, full remat": {"tie_embeddings": False, "remat": "full", "layer_windows": (8, 0), "norm": "rmsnorm"},
    "sparse": {
        "moe": MoeConfig(num_experts=4, every=2, capacity_factor=1.0, aux_loss=0.1, z_loss=0.1, jitter=0.1),
        "dropout": 0.1,
    },
    "dropless": {"positions": "rotary", "moe": MoeConfig(num_experts=4, capacity_factor=None, aux_loss=0.1)},
}
"""Rows are packed: `random_batch` makes documents, kept apart."""


def run_of(name: str, **train) -> Config:
    sizes = {"vocab_size": 32, "num_layers": 8, "d_model": 16, "num_heads": 2, "head_dim": 8, "d_ff": 32}
    return Config(
        model=ModelConfig(**sizes, max_seq_len=16, **MODELS[name]),
        data=DataConfig(seq_len=16),
        train=TrainConfig(steps=10, **{"global_batch_size": 16, **train}),
    )


@cache
def reference(name: str, **train) -> equivalence.Reference:
    return equivalence.reference(run_of(name, **train))


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("dense", "stage=4,tensor=2,pipeline_repeats=2"),
        ("sparse", "stage=2,fsdp=2,expert=2,pipeline_repeats=2"),
        ("untied, full remat", "stage=2,fsdp=2,tensor=2,pipeline_repeats=2,shard_sequence"),
        ("dropless", "stage=2,expert=2,tensor=2"),
        ("dense", "stage=2"),
        ("dense", "stage=4,data=2"),
        ("dense", "stage=8"),
        ("dense", "stage=2,pipeline_repeats=4,pipeline_microbatches=2"),
        ("untied, full remat", "stage=4,fsdp=2"),
        ("sparse", "stage=4,expert=2"),
    ],
)
def test_stages_compute_what_one_device_computes(name, mesh):
    found = equivalence.compare(reference(name), meshes.parse(mesh))
    assert found.status == "same", found
    assert 1e-4 < found.largest_ratio < 0.5


def planted(monkeypatch, name: str, broken) -> equivalence.Check:
    monkeypatch.setattr(pipeline, name, broken)
    return equivalence.compare(reference("sparse"), meshes.parse("stage=2"))


def first(found: equivalence.Check) -> str:
    assert found.status == "differs", found
    return found.differences[0].what


@pytest.mark.exhaustive
def test_the_losses_of_a_bubble_are_found(monkeypatch):
    # What sparse layers say of the bubble, instead of what they say of their work.
    sound = pipeline._said
    early = lambda x, **how: sound(jnp.roll(x, 1, axis=0), **how)  # noqa: E731
    assert first(planted(monkeypatch, "_said", early)) == "mean loss"


@pytest.mark.exhaustive
def test_a_key_that_microbatches_share_is_found(monkeypatch):
    # Every microbatch draws the numbers of the first one's rows.
    sound = pipeline._of_each_stage

    def reused(x_M, nth_P):
        return sound(x_M, jnp.zeros_like(nth_P) if x_M.ndim == 2 else nth_P)

    assert first(planted(monkeypatch, "_of_each_stage", reused)) == "mean loss"


@pytest.mark.exhaustive
def test_the_output_of_a_bubble_is_found(monkeypatch):
    # The stream ends a tick early: one of its microbatches is what the last stage made in its bubble.
    sound = pipeline._rows

    def shifted(x, layout, axis=0):
        return sound(x if axis else jnp.roll(x, 1, axis=1), layout, axis)

    assert first(planted(monkeypatch, "_rows", shifted)) == "mean loss"


def layout_of(fields: dict, mesh: dict, num_devices: int = 8) -> sharding.Layout:
    model = {"vocab_size": 32, "d_model": 16, "num_heads": 2, "max_seq_len": 16, **fields}
    cfg = Config(
        model=ModelConfig(**model),
        data=DataConfig(seq_len=16, target_len=16 if fields.get("family") == "encdec" else 0),
        train=TrainConfig(
            global_batch_size=16, objective="seq2seq" if fields.get("family") == "encdec" else "causal_lm"
        ),
        mesh=MeshConfig(**mesh),
    )
    return sharding.fit(cfg, abstract_mesh(cfg.mesh, num_devices), models.build(cfg.model).specs)


@pytest.mark.parametrize(
    ("fields", "mesh", "message"),
    [
        ({"num_layers": 6}, {"stage": 4}, "is not divisible by mesh.stage=4: set model.num_layers=8, or mesh.stage=3"),
        (
            {"num_layers": 4},
            {"stage": 2, "pipeline_repeats": 4},
            "model.num_layers=4 is not divisible by mesh.stage=2 * mesh.pipeline_repeats=4 = 8: set model.num_layers=8",
        ),
        (
            {"num_layers": 4, "layer_windows": (8, 0)},
            {"stage": 4},
            "mesh.stage=4 times the 2 layers after which their kinds repeat: set model.num_layers=8, or mesh.stage=2",
        ),
        (
            {"num_layers": 4},
            {"stage": 2, "pipeline_microbatches": 16, "fsdp": 2, "data": 2},
            "gives 16 rows, not divisible by mesh.pipeline_microbatches=16 * mesh.data=2 * mesh.fsdp=2",
        ),
        ({"num_layers": 4, "layers": "unroll"}, {"stage": 2}, "set model.layers='scan'"),
        (
            {"num_layers": 2, "family": "encdec", "positions": "none"},
            {"stage": 2},
            "mesh.stage=2: not yet for this model; set mesh.stage=1",
        ),
        ({"num_layers": 2, "family": "rnn"}, {"stage": 2}, "mesh.stage=2: not yet for this model; set mesh.stage=1"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(fields, mesh, message):
    if fields.get("family") == "rnn":
        fields = {**fields, "num_heads": 4, "max_seq_len": 1024}
    with pytest.raises(ShardingError) as error:
        layout_of(fields, mesh)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"pipeline_repeats": 2}, "mesh.pipeline_repeats=2 is for a pipeline of stages, but mesh.stage=1"),
        ({"pipeline_microbatches": 4}, "set mesh.stage=2, or mesh.pipeline_microbatches=0"),
        ({"stage": 4, "pipeline_microbatches": 6}, "set mesh.pipeline_microbatches=4 or 8, or 0 for as many as"),
    ],
)
def test_a_schedule_that_no_stages_have(mesh, message):
    with pytest.raises(ConfigError) as error:
        Config(mesh=MeshConfig(**mesh))
    assert message in str(error.value)


def test_parameters_keep_their_form_and_lie_at_their_stages():
    layout = layout_of({"num_layers": 4}, {"stage": 2, "fsdp": 2, "tensor": 2})
    q = models.build(ModelConfig(vocab_size=32, num_layers=4, d_model=16, num_heads=2)).specs["blocks"]["attn"]["q"]
    assert q.shape[0] == 4 and layout.param(q) == jax.P("stage", "fsdp", "tensor", None)
    assert layout.act("batch", "seq", "embed") == jax.P(("stage", "fsdp"), None, None)
    assert layout.of_stage().act("batch", "seq", "embed") == jax.P("fsdp", None, None)


@pytest.mark.parametrize(
    ("stages", "microbatches", "repeats", "share"),
    # Huang et al. 2019, section 2.3: (K - 1) / (M + K - 1); v repeats divide it by about v (Narayanan et al. 2021).
    [(4, 16, 1, 3 / 19), (4, 4, 1, 3 / 7), (4, 4, 2, 3 / 11), (8, 32, 4, 7 / 135), (1, 1, 1, 0)],
)
def test_the_bubble(stages, microbatches, repeats, share):
    ticks = schedule.ticks(stages, microbatches, repeats)
    assert (ticks - repeats * microbatches) / ticks == share


@pytest.mark.parametrize(("asked", "stages", "rows", "own"), [(0, 2, 8, 4), (0, 2, 6, 3), (0, 4, 1, 1), (8, 4, 6, 2)])
def test_as_many_microbatches_as_the_rows_allow(asked, stages, rows, own):
    assert schedule.microbatches_a_stage(asked, stages, rows) == own


@pytest.mark.exhaustive
def test_a_model_in_stages_writes_what_one_device_writes():
    cfg = config.replace(run_of("dense"), model={"dropout": 0.0}).model
    model = models.build(cfg)
    weights = model.init(jax.random.key(0))
    prompts = [[1, 2, 3], [4, 5], [6], [7, 8]]
    expected = generate(model, weights, prompts, max_new_tokens=5, temperature=0)
    _, mesh = mesh_of(stage=4, fsdp=2)
    with jax.set_mesh(mesh):
        placed = model.place(jax.device_get(weights))
        assert jax.typeof(placed["blocks"]["attn"]["q"]).sharding.spec[0] == "stage"
        assert generate(model, placed, prompts, max_new_tokens=5, temperature=0) == expected
        tokens = np.arange(64).reshape(8, 8) % 32
        logits = jax.jit(model.apply)(placed, tokens)
    np.testing.assert_allclose(logits, jax.jit(model.apply)(weights, tokens), atol=2e-5)


def test_a_checkpoint_of_stages_is_restored_on_other_meshes_and_back(tmp_path):
    cfg = run_of("dense")
    model, tx = models.build(cfg.model), optimizers.build(cfg.optim, models.build(cfg.model).specs, 10)

    def abstract(**axes):
        mesh_cfg, mesh = mesh_of(**axes)
        layout = sharding.layout(mesh_cfg, mesh, model.specs, model.family.mesh_axes)
        return mesh, layout, step.abstract_state(cfg, model, tx, layout, mesh)

    def saved(number: int, mesh, state) -> None:
        with jax.set_mesh(mesh), Checkpoints(tmp_path / str(number), cfg.checkpoint) as checkpoints:
            checkpoints.save(1, state, {}, {})

    mesh, layout, _ = abstract(stage=4, fsdp=2)
    with jax.set_mesh(mesh):
        state = step.jit_init_state(cfg, model, tx, layout)()
    saved(0, mesh, state)
    expected = params.names(jax.device_get(state.params))
    others = {"fsdp": 2, "tensor": 2, "data": 2}, {"stage": 2, "tensor": 2, "data": 2}, {"stage": 4, "fsdp": 2}
    for number, axes in enumerate(others):
        mesh, _, shapes = abstract(**axes)
        with jax.set_mesh(mesh), Checkpoints(tmp_path / str(number), cfg.checkpoint) as checkpoints:
            found = checkpoints.restore(shapes).state
        saved(number + 1, mesh, found)
        for name, w in params.names(found.params).items():
            assert w.sharding == params.names(shapes.params)[name].sharding
            np.testing.assert_array_equal(w, expected[name], err_msg=name)
