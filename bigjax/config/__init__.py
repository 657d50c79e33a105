"""The configuration of a run: frozen dataclasses that validate each other. Nothing here imports JAX.

Read `run` first, the whole of a run; then `model` and the sections that families add to it. `fields` is how a field is
declared, `strict` how a plain mapping becomes these classes and what the identity of a config is, `checks` what fields
must satisfy together.
"""

from bigjax.config.model import ModelConfig, RopeConfig
from bigjax.config.moe import MoeConfig
from bigjax.config.run import (
    BATCH_AXES,
    MESH_AXES,
    CheckpointConfig,
    Config,
    DataConfig,
    GuardConfig,
    LogConfig,
    LrMultipliers,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    replace,
    replaced,
)
from bigjax.errors import ConfigError

__all__ = [
    "BATCH_AXES",
    "MESH_AXES",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "GuardConfig",
    "LogConfig",
    "LrMultipliers",
    "MeshConfig",
    "ModelConfig",
    "MoeConfig",
    "OptimConfig",
    "RopeConfig",
    "TrainConfig",
    "replace",
    "replaced",
]
