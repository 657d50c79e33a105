"""An analytic model of one training step on a mesh, for comparing thousands of layouts: nothing is traced.

It works from the declared parameters and the config. `benchmarks/analytic_memory.py` measures how far its memory is
from what the TPU compiler allocates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from bigjax.config import Config
from bigjax.params import ParamSpec
from bigjax.preflight.plan.analytic import flops as analytic_flops
from bigjax.preflight.plan.analytic import memory as analytic_memory
from bigjax.preflight.plan.analytic import traffic as analytic_traffic
from bigjax.preflight.plan.analytic.share import Share, share
from bigjax.preflight.plan.traffic import Collective
from bigjax.train.flops import run_flops_per_token


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


def estimate(cfg: Config, mesh_sizes: Mapping[str, int]) -> Estimate:
    """Return what one training step of `cfg` needs on each device of a mesh with these sizes of all seven axes.

    `mesh_sizes` decide, not the sizes in `cfg.mesh`. The memory was validated for TPUs; other devices get the same
    numbers.

    Raises:
      ShardingError: the mesh does not fit the model or the batch.
    """
    mine = share(cfg, mesh_sizes)
    peak = analytic_memory.peak(mine)
    params, optimizer = analytic_memory.params_bytes(mine), analytic_memory.optimizer_bytes(mine)
    tokens = cfg.train.global_batch_size * cfg.data.seq_len
    model_flops = run_flops_per_token(cfg, mine.tree) * tokens
    saved = cfg.train.num_microbatches * analytic_memory.saved_bytes(mine)
    return Estimate(
        params_bytes=params,
        optimizer_bytes=optimizer,
        gradient_bytes=peak.gradients,
        activation_bytes=peak.activations,
        temporary_bytes=peak.temporaries,
        peak=peak.moment,
        model_flops=model_flops / prod(mesh_sizes.values()),
        compiled_flops=analytic_flops.compiled_flops(mine),
        hbm_bytes=_moved_bytes(mine, params, optimizer),
        hbm_bytes_min=float(2 * params + optimizer + saved),
        collectives=analytic_traffic.collectives(mine),
    )


def _moved_bytes(share: Share, params: int, optimizer: int) -> float:
    """Return the bytes that one step reads and writes, were nothing but element-wise work to stay on the chip.

    A matrix product reads two arrays and writes one; there are three forward and backward, and a fourth where the
    forward one is repeated. Scores and logits go through memory three times in each direction: written, normalised,
    multiplied. The optimizer reads gradients, and reads and writes parameters and its own state.
    """
    model, item, micro = share.cfg.model, share.item, share.cfg.train.num_microbatches
    again = model.remat not in ("none", "dots")
    blocks = 0.0
    for stack in share.stacks:
        elements = sum(_elements(name, spec, stack) for name, spec in stack.specs.items() if spec.kind == "matrix")
        scores = stack.rows * stack.heads * stack.scores * stack.num_layers if stack.stored_scores else 0
        residual = 8 * stack.num_layers * stack.rows * stack.residual_len * model.d_model * item
        blocks += stack.ticks * ((3 + again) * item * elements + (6 + 3 * again) * 4 * scores + residual)
    output = share.vocab * model.d_model if share.loss_len else 0
    loss = 6 * 4 * share.loss_tokens * share.vocab + 3 * item * output
    saved = 2 * analytic_memory.saved_bytes(share)
    accumulated = 3 * params if micro > 1 else params
    return micro * (blocks + loss + saved + accumulated) + 3.0 * params + 2 * optimizer


def _elements(name: str, spec: ParamSpec, stack: Share) -> float:
    """Return the elements that the products of a parameter's layers with the activations read and write."""
    contracted = prod(size for size, axis in zip(spec.shape, spec.axes, strict=True) if axis in spec.contracts)
    split = stack.ways(*(m for axis in spec.contracts for m in stack.layout.activations[axis]))
    held, inputs = stack.used(spec), contracted // split
    copies = prod(spec.shape[: spec.copies]) // stack.runs
    if "experts" in spec.axes:
        copies //= stack.ways(*stack.layout.over("experts"))
    matrix = held // copies
    # A recurrent matrix is read again at every step.
    reads = stack.seq_len if name.endswith("/recurrent") else 1
    return reads * held + copies * stack.tokens_of(name, spec) * (inputs + matrix / inputs)
