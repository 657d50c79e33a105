"""What one device holds of a decoder's training step, from the config and the layout alone: sizes, no arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm, prod
from types import SimpleNamespace
from typing import Any

from bigjax import models, sharding
from bigjax.config import BATCH_AXES, Config
from bigjax.models.attention_blocked import block_count, query_blocks
from bigjax.models.attention_kernels import SPLASH_BLOCKS
from bigjax.models.layers import GATED
from bigjax.models.moe_routing import capacity
from bigjax.params import ParamSpec, names
from bigjax.sharding import Layout, axes_of_entry

CUDNN_BLOCK = 128
"""Side of the tiles in which FlashAttention on a GPU skips what lies above the diagonal (Dao 2023, section 3.3)."""

FUSED_ATTENTION = ("splash", "cudnn")
"""Back ends whose scores never leave the chip."""


@dataclass(frozen=True)
class Share:
    """One device's part of one microbatch; counts of rows, heads and features are those on the device.

    Attributes:
      specs: every parameter by its name. item: bytes of a number in the compute dtype.
      rows, seq_len: of tokens. residual_len: positions of the residual stream, fewer with `mesh.shard_sequence`.
      kv_heads: as projected. attended_kv_heads: as attention sees them, after `match_kv_heads`.
      scores: pairs of query and key that attention computes per head and row, in the mean over the layers; blocks above
        the diagonal are skipped by the back ends that can. layer_scores: those of the layer with the most.
        largest_scores: those that exist at the same time.
    """

    cfg: Config
    layout: Layout
    specs: Mapping[str, ParamSpec]
    item: int
    rows: int
    seq_len: int
    residual_len: int
    heads: int
    kv_heads: int
    attended_kv_heads: int
    d_ff: int
    vocab: int
    scores: int
    layer_scores: int
    largest_scores: int

    @property
    def tokens(self) -> int:
        """Tokens of one microbatch on this device."""
        return self.rows * self.seq_len

    def tokens_of(self, spec: ParamSpec) -> float:
        """Return how many tokens each matrix of a parameter multiplies, in one microbatch on this device.

        For an expert those are the places of its buffers, empty or not, that all devices along `expert` fill; without a
        capacity, what is sent to it if all get as many.
        """
        if "experts" not in spec.axes:
            return self.tokens
        moe = self.cfg.model.moe
        sent_from = self.ways(*self.layout.over("experts"))
        group = moe.group_size or self.seq_len
        places = capacity(moe, group)
        if places is None:
            return self.tokens * sent_from * moe.experts_per_token / moe.num_experts
        return self.tokens * sent_from // group * places

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.cfg.model.activation in GATED

    @property
    def normed_outputs(self) -> bool:
        """Whether the derivative of a norm needs what attention and the MLP add to the residual stream."""
        return self.cfg.model.norm_placement != "pre"

    @property
    def stored_scores(self) -> bool:
        """Whether attention writes its scores to memory."""
        return self.cfg.model.attention not in FUSED_ATTENTION

    def ways(self, *mesh_axes: str) -> int:
        """Return the number of devices along the given mesh axes."""
        return prod(self.layout.sizes[axis] for axis in mesh_axes)

    def stored(self, spec: ParamSpec) -> int:
        """Return the elements of a parameter that this device stores."""
        return prod(self.stored_shape(spec))

    def stored_shape(self, spec: ParamSpec) -> tuple[int, ...]:
        """Return the shape of the part of a parameter that this device stores."""
        entries = [axes_of_entry(entry) for entry in self.layout.param(spec) or ()]
        return tuple(size // self.ways(*entry) for size, entry in zip(spec.shape, entries, strict=True))

    def used(self, spec: ParamSpec) -> int:
        """Return the elements of a parameter on this device while it is used, gathered from `fsdp`."""
        return spec.size // self.ways(*(axis for name in spec.axes for axis in self.layout.activations[name]))


def share(cfg: Config, mesh_sizes: Mapping[str, int]) -> Share:
    """Resolve `cfg` on a mesh with these sizes of the seven axes.

    Raises:
      ShardingError: as `sharding.fit`.
    """
    model, train = cfg.model, cfg.train
    tree = models.build(model).specs
    mesh: Any = SimpleNamespace(shape=mesh_sizes)
    layout = sharding.fit(cfg, mesh, tree)

    def local(size: int, axis: str) -> int:
        return size // prod(mesh_sizes[mesh_axis] for mesh_axis in layout.over(axis))

    split_alike = layout.over("heads") == layout.over("kv_heads")
    repeated = model.num_kv_heads if split_alike else lcm(model.num_kv_heads, mesh_sizes["tensor"])
    pairs = {window: _pairs(cfg, window) for window in set(model.windows)}
    return Share(
        cfg=cfg,
        layout=layout,
        specs=names(tree),
        item=2 if model.dtype == "bfloat16" else 4,
        rows=train.global_batch_size // train.microbatches // prod(mesh_sizes[axis] for axis in BATCH_AXES),
        seq_len=cfg.data.seq_len,
        residual_len=local(cfg.data.seq_len, "residual_seq"),
        heads=local(model.num_heads, "heads"),
        kv_heads=local(model.num_kv_heads, "kv_heads"),
        attended_kv_heads=local(repeated, "heads"),
        d_ff=local(model.d_ff, "mlp"),
        vocab=local(model.vocab_size, "vocab"),
        scores=sum(sum(pairs[window]) for window in model.windows) // model.num_layers,
        layer_scores=max(map(sum, pairs.values())),
        largest_scores=max(map(max, pairs.values())),
    )


def _pairs(cfg: Config, window: int | None) -> list[int]:
    """Return how many scores of one head and row each block of queries of a layer with that window computes."""
    seq_len, backend = cfg.data.seq_len, cfg.model.attention
    if backend in ("reference", "xla"):
        return [seq_len * seq_len]
    if backend == "blocked":
        count = block_count(seq_len)
    else:
        sizes = SPLASH_BLOCKS if backend == "splash" else (CUDNN_BLOCK,)
        count = seq_len // next((size for size in sizes if seq_len % size == 0), seq_len)
    blocks = query_blocks(seq_len, count, window)
    return [(end - start) * (end - first) for first, start, end in blocks]
