"""An analytic model of one training step on a mesh, for comparing thousands of layouts: nothing is traced.

It works from the declared parameters and the config. `benchmarks/analytic_memory.py` measures how far its memory is
from what the TPU compiler allocates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from bigjax.config import Config
from bigjax.errors import UserError
from bigjax.preflight import analytic_flops, analytic_memory, analytic_traffic
from bigjax.preflight.analytic_share import Share, share
from bigjax.preflight.traffic import Collective
from bigjax.science.flops import model_flops_per_token


@dataclass(frozen=True)
class Estimate:
    """One training step on one device.

    Attributes:
      params_bytes, optimizer_bytes: the state, exact but for counters; averaged parameters count as optimizer state.
      gradient_bytes, activation_bytes, temporary_bytes: what else is alive at the moment of the peak: gradients in
        float32, activations saved for the backward pass, and all the rest.
      peak: that moment: `loss`, `backward` (of one layer), `accumulate` (gradients of microbatches) or `update`.
      model_flops: FLOPs of the model by the convention of `science.flops`, an even share for each device.
      compiled_flops: FLOPs of the matrix products executed, with what is recomputed and what causality throws away.
      hbm_bytes: bytes read and written, were every matrix product's operands and results to pass through memory once.
      hbm_bytes_min: a lower bound: the state, the gradients and the saved activations, each moved once.
      collectives: what the device sends, as `preflight.traffic` counts it.
    """

    params_bytes: int
    optimizer_bytes: int
    gradient_bytes: int
    activation_bytes: int
    temporary_bytes: int
    peak: str
    model_flops: float
    compiled_flops: float
    hbm_bytes: float
    hbm_bytes_min: float
    collectives: list[Collective]

    @property
    def total_bytes(self) -> int:
        """Memory that the step needs."""
        held = self.params_bytes + self.optimizer_bytes
        return held + self.gradient_bytes + self.activation_bytes + self.temporary_bytes


def covers(cfg: Config) -> bool:
    """Return whether `estimate` knows the model's family."""
    return cfg.model.family != "encdec"


def estimate(cfg: Config, mesh_sizes: Mapping[str, int]) -> Estimate:
    """Return what one training step of `cfg` needs on each device of a mesh with these sizes of all seven axes.

    `mesh_sizes` decide, not the sizes in `cfg.mesh`. The memory was validated for TPUs; other devices get the same
    numbers.

    Raises:
      ShardingError: the mesh does not fit the model or the batch.
      UserError: the model is an encoder-decoder.
    """
    if not covers(cfg):
        raise UserError(
            "the analytic model does not cover model.family='encdec': plan without --analytic and --search, so that "
            "the compiler says what it needs"
        )
    mine = share(cfg, mesh_sizes)
    peak = analytic_memory.peak(mine)
    params, optimizer = analytic_memory.params_bytes(mine), analytic_memory.optimizer_bytes(mine)
    tokens = cfg.train.global_batch_size * cfg.data.seq_len
    saved = cfg.train.microbatches * analytic_memory.saved_bytes(mine)
    return Estimate(
        params_bytes=params,
        optimizer_bytes=optimizer,
        gradient_bytes=peak.gradients,
        activation_bytes=peak.activations,
        temporary_bytes=peak.temporaries,
        peak=peak.moment,
        model_flops=model_flops_per_token(cfg.model, mine.specs, cfg.data.seq_len) * tokens / prod(mesh_sizes.values()),
        compiled_flops=analytic_flops.compiled_flops(mine),
        hbm_bytes=_moved_bytes(mine, params, optimizer),
        hbm_bytes_min=float(2 * params + optimizer + saved),
        collectives=analytic_traffic.collectives(mine),
    )


def state_only(cfg: Config, mesh_sizes: Mapping[str, int]) -> Estimate:
    """Return what is known of every family: the state, which a step moves. The rest, 0 here, the compiler says."""
    mine = share(cfg, mesh_sizes)
    params, optimizer = analytic_memory.params_bytes(mine), analytic_memory.optimizer_bytes(mine)
    return Estimate(params, optimizer, 0, 0, 0, "update", 0.0, 0.0, 0.0, float(2 * params + optimizer), [])


def _moved_bytes(share: Share, params: int, optimizer: int) -> float:
    """Return the bytes that one step reads and writes, were nothing but element-wise work to stay on the chip.

    A matrix product reads two arrays and writes one; there are three forward and backward, and a fourth where the
    forward one is repeated. Scores and logits go through memory three times in each direction: written, normalised,
    multiplied. The optimizer reads gradients, and reads and writes parameters and its own state.
    """
    model, item, tokens = share.cfg.model, share.item, share.tokens
    elements = 0.0
    for spec in share.specs.values():
        if spec.kind == "matrix":
            layers, used = spec.shape[0], share.used(spec)
            contracted = prod(size for size, axis in zip(spec.shape, spec.axes, strict=True) if axis in spec.contracts)
            split = share.ways(*(m for axis in spec.contracts for m in share.layout.activations[axis]))
            inputs = contracted // split
            elements += used + layers * tokens * (inputs + used / layers / inputs)
    again = share.cfg.model.remat not in ("none", "dots")
    scores = share.rows * share.heads * share.scores * model.num_layers if share.stored_scores else 0
    blocks = (3 + again) * item * elements + (6 + 3 * again) * 4 * scores
    stream = 8 * model.num_layers * share.rows * share.residual_len * model.d_model * item
    loss = 6 * 4 * tokens * share.vocab + 3 * item * share.vocab * model.d_model
    saved = 2 * analytic_memory.saved_bytes(share)
    accumulated = 3 * params if share.cfg.train.microbatches > 1 else params
    per_microbatch = blocks + stream + loss + saved + accumulated
    return share.cfg.train.microbatches * per_microbatch + 3.0 * params + 2 * optimizer
