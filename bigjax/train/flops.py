"""How much work a step is, and how much the devices could do."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.config import Config, ModelConfig
from bigjax.params import count, names
from bigjax.run import chips
from bigjax.tasks import named_task

LOOKED_UP = ("embedding", "norm", "bias")
"""The kinds of parameters that no matrix product uses."""


def run_flops_per_token(cfg: Config, specs: Any) -> float:
    """Return `model_flops_per_token` of a run: of its rows, and with its head where the objective applies it."""
    data = cfg.data
    applied = named_task(cfg).head_positions(cfg)
    return model_flops_per_token(cfg.model, specs, data.seq_len, data.target_len, head_positions=applied)


def model_flops_per_token(
    cfg: ModelConfig, specs: Any, seq_len: int, target_len: int = 0, head_positions: int | None = None
) -> float:
    """Return the FLOPs of one token's forward and backward pass.

    Convention (Chowdhery et al. 2022, appendix B): 6 for every parameter that a matrix product uses, the output matrix
    included and look-ups left out, plus `12 * heads * head_dim` for every key of every layer; causality is not
    deducted, a sliding window is. Recomputation is not counted. Of the experts those count that the router chooses for
    a token. An encoder's head counts at `head_positions` of each row, the tokens to predict or the one position that is
    classified, its pooler and what follows that at one, and every token has its share of that; choosing them is a
    look-up. None is all. For an encoder-decoder the tokens are those it reads, and each comes with its share of the
    `target_len` tokens that are written for `seq_len` read.
    """
    if cfg.kind == "encdec":
        return _flops_per_row(cfg, specs, seq_len, target_len) / seq_len
    below = {name: spec for name, spec in specs.items() if name != "head"}
    matmul_params = count(below, LOOKED_UP, experts=cfg.moe.experts_per_token)
    head = specs.get("head", {})
    after_pooler = ("pooler", "classes") if "pooler" in head else ()
    once = count({name: head[name] for name in after_pooler if name in head}, LOOKED_UP)
    head_params = count(head, LOOKED_UP) - once
    if cfg.tie_embeddings and cfg.head.startswith("lm"):
        head_params += cfg.vocab_size * cfg.d_model
    share, of_row = (1.0, 1.0) if head_positions is None else (head_positions / seq_len, 1 / seq_len)
    keys = sum(min(seq_len, window or seq_len) for window in cfg.windows)
    products = matmul_params + share * head_params + of_row * once
    return 6.0 * products + 12.0 * cfg.num_heads * cfg.head_dim * keys


def _flops_per_row(cfg: ModelConfig, specs: Any, seq_len: int, target_len: int) -> float:
    """Return the FLOPs of reading one row, keys and values of cross-attention included, and writing another."""
    used = {name: count(spec, experts=cfg.moe.experts_per_token) for name, spec in names(specs).items()}
    matrices = {name: used[name] for name, spec in names(specs).items() if spec.kind in ("matrix", "head")}
    memory = ("decoder/blocks/cross/k", "decoder/blocks/cross/v")
    reading = sum(size for name, size in matrices.items() if name.startswith("encoder/") or name in memory)
    writing = sum(matrices.values()) - reading + (cfg.vocab_size * cfg.d_model if cfg.tie_embeddings else 0)
    queries_and_keys = cfg.num_layers * seq_len**2 + cfg.num_decoder_layers * target_len * (target_len + seq_len)
    products = reading * seq_len + writing * target_len
    return 6.0 * products + 12.0 * cfg.num_heads * cfg.head_dim * queries_and_keys


def peak_flops(devices: list[Any]) -> float | None:
    """Return the dense bfloat16 FLOP/s that all `devices` together could reach; None for an unknown chip.

    Virtual CPU devices share one processor, whose float32 matrix-product rate is measured here in about 0.1 s: less
    than it could reach while anything else runs.
    """
    if devices[0].platform == "cpu":
        return _measured_matmul_flops() * len({device.process_index for device in devices})
    chip = chips.chip_of_device_kind(devices[0].device_kind, same_peak=True)
    return chip.peak("bfloat16") / chip.devices_per_chip * len(devices) if chip else None


def _measured_matmul_flops(size: int = 1024, repeats: int = 6) -> float:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        x = jnp.ones((size, size), jnp.float32)
        product = jax.jit(jnp.matmul)
        product(x, x).block_until_ready()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            product(x, x).block_until_ready()
            seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)
