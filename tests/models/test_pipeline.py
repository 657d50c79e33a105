"""Stages of a pipeline compute what one device computes, whatever the schedule, and what cannot be split is refused."""

import re
from functools import cache

import jax
import numpy as np
import pytest

from bigjax import config, models, sharding
from bigjax.config import Config, ConfigError, DataConfig, MeshConfig, ModelConfig, MoeConfig, TrainConfig
from bigjax.config import pipeline as schedule
from bigjax.evaluate.generation import generate
from bigjax.models.parts import pipeline
from bigjax.preflight.equivalence import compare as equivalence
from bigjax.preflight.equivalence import meshes
from bigjax.sharding import ShardingError
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
