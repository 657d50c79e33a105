"""What one device holds of a training step, from the config and the layout alone: sizes, no arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import lcm, prod
from types import SimpleNamespace
from typing import Any

from bigjax import models, sharding
from bigjax.config import BATCH_AXES, Config, auto, pipeline
from bigjax.models.attention.blocked import block_count, query_blocks
from bigjax.models.attention.kernels import SPLASH_BLOCKS
from bigjax.models.attention.ring import MAX_BLOCK
from bigjax.models.moe.routing import capacity
from bigjax.models.parts.layers import GATED
from bigjax.params import ParamSpec, names
from bigjax.sharding import Layout, axes_of, axes_of_entry
from bigjax.tasks import named_task

CUDNN_BLOCK = 128
"""Side of the tiles in which FlashAttention on a GPU skips what lies above the diagonal (Dao 2023, section 3.3)."""

FUSED_ATTENTION = ("splash", "cudnn")
"""Back ends whose scores never leave the chip."""


@dataclass(frozen=True)
class Share:
    """One device's part of one microbatch; counts of rows, heads and features are those on the device.

    Attributes:
      tree: all parameters, as the model declares them.
      specs: every parameter by its name, of a stack those of its blocks. item: bytes of a number in the compute dtype.
      stacks: the stacks of layers that a token goes through, in this order: of an encoder-decoder two.
      ticks, runs: a stack in stages takes `num_layers` of its layers at a time, one of `runs` runs of them, and rows of
        one microbatch of the pipeline, in each of so many ticks, the bubble included; else 1.
      num_layers: of the stack. rows, seq_len: of the tokens that it sees, without what other devices have of a row.
        memory_len: of what it attends to besides.
      loss_len: positions of a row that the output matrix is applied to.
      residual_len: positions of the residual stream, fewer with `mesh.shard_sequence`.
      kv_heads: as projected. attended_kv_heads: as attention sees them, after `match_kv_heads`.
      scores: pairs of query and key that attention computes per head and row, in the mean over the layers; blocks above
        the diagonal are skipped by the back ends that can. layer_scores: those of the layer with the most.
        largest_scores: those that exist at the same time.
      exchange: how the parts of a row attend to each other; empty where `context` leaves rows whole.
    """

    cfg: Config
    layout: Layout
    tree: Any
    specs: Mapping[str, ParamSpec]
    item: int
    num_layers: int
    rows: int
    seq_len: int
    memory_len: int
    loss_len: int
    residual_len: int
    heads: int
    kv_heads: int
    attended_kv_heads: int
    d_ff: int
    vocab: int
    scores: int
    layer_scores: int
    largest_scores: int
    exchange: str = ""
    stacks: "tuple[Share, ...]" = ()
    ticks: int = 1
    runs: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of one microbatch on this device."""
        return self.rows * self.seq_len

    @property
    def memory_tokens(self) -> int:
        """Tokens on this device of what a stack attends to besides its own."""
        return self.rows * self.memory_len

    @property
    def loss_tokens(self) -> int:
        """Positions of one microbatch on this device that the output matrix is applied to."""
        return self.rows * self.loss_len

    @property
    def places(self) -> int:
        """Places in the buffers of the experts on this device, taken or empty; without a capacity, for the worst case.

        Without a capacity every device takes in the tokens of all that share the experts (`models.moe_exchange`).
        """
        moe = self.cfg.model.moe
        group = moe.group_size or self.seq_len
        room = capacity(moe, group)
        if room is None:
            return self.tokens * self.ways(*self.layout.over("experts")) * moe.experts_per_token
        return self.tokens // group * moe.num_experts * room

    @property
    def sparse_layers(self) -> int:
        """How many of the stack's layers have experts."""
        moe = self.cfg.model.moe
        return self.num_layers // moe.every if moe.num_experts else 0

    def tokens_of(self, name: str, spec: ParamSpec) -> float:
        """Return how many tokens each matrix of a stack's parameter multiplies, in one microbatch on this device.

        The keys and values of cross-attention are those of the memory. For an expert those are the places of its
        buffers, empty or not, that all devices along `expert` fill; without a capacity, what is sent to it if all get
        as many.
        """
        if name.endswith(("/cross/k", "/cross/v")):
            return self.memory_tokens
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
    def shard_sequence(self) -> tuple[str, ...]:
        """The mesh axes that split rows between the blocks only."""
        inside = self.layout.over("seq")
        return tuple(axis for axis in self.layout.over("residual_seq") if axis not in inside)

    @property
    def stored_scores(self) -> bool:
        """Whether attention, if there is any, writes its scores to memory."""
        never = self.cfg.model.attention in FUSED_ATTENTION or self.exchange == "ring"
        return self.cfg.model.kind != "rnn" and not never

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
        whole = spec.size // self.ways(*(axis for name in spec.axes for axis in self.layout.activations[name]))
        return whole // self.runs if spec.stacked else whole

    def is_gathered(self, spec: ParamSpec) -> bool:
        """Return whether the mesh splits a parameter where it is stored in a way that it does not where it is used."""
        stored = self.layout.param(spec)
        return stored is not None and not axes_of(stored).isdisjoint(self.layout.params["embed"])


def share(cfg: Config, mesh_sizes: Mapping[str, int]) -> Share:
    """Resolve `cfg` on a mesh with these sizes of the seven axes; fields that are `auto` are those of a CPU.

    Raises:
      ShardingError: as `sharding.fit`.
    """
    cfg = auto.plain(cfg)
    model, train, data = cfg.model, cfg.train, cfg.data
    tree = models.build(model).specs
    mesh: Any = SimpleNamespace(shape=mesh_sizes)
    layout = sharding.fit(cfg, mesh, tree)
    specs = names(tree)

    def local(size: int, axis: str) -> int:
        return size // prod(mesh_sizes[mesh_axis] for mesh_axis in layout.over(axis))

    split_alike = layout.over("heads") == layout.over("kv_heads")
    repeated = model.num_kv_heads if split_alike else lcm(model.num_kv_heads, mesh_sizes["tensor"])
    read = "encoder/blocks/" if model.kind == "encdec" else "blocks/"
    ways = layout.ways("seq")
    exchange = layout.exchange if ways > 1 else ""
    pairs = {window: _pairs(cfg, data.seq_len, window, exchange) for window in set(model.windows)}
    whole = Share(
        cfg=cfg,
        layout=layout,
        tree=tree,
        specs=specs,
        item=2 if model.dtype == "bfloat16" else 4,
        num_layers=model.num_layers,
        rows=train.global_batch_size // train.num_microbatches // prod(mesh_sizes[axis] for axis in BATCH_AXES),
        seq_len=data.seq_len // ways,
        memory_len=0,
        loss_len=(named_task(cfg).head_positions(cfg) or data.seq_len // ways) if model.head.startswith("lm") else 0,
        residual_len=local(data.seq_len, "residual_seq"),
        heads=local(model.num_heads, "heads"),
        kv_heads=local(model.num_kv_heads, "kv_heads"),
        attended_kv_heads=local(repeated, "heads"),
        d_ff=local(model.d_ff, "mlp"),
        vocab=local(model.vocab_size, "vocab"),
        scores=sum(sum(pairs[window]) for window in model.windows) // model.num_layers // ways,
        layer_scores=max(map(sum, pairs.values())) // ways,
        largest_scores=max(map(max, pairs.values())) // ways,
        exchange=exchange,
    )
    stack = replace(whole, specs=_below(read, specs))
    if layout.stages > 1:
        stack = _in_stages(stack)
    if model.kind != "encdec":
        return replace(whole, stacks=(stack,))
    target, cross = data.target_len, data.target_len * data.seq_len
    writing = replace(
        stack,
        specs=_below("decoder/blocks/", specs),
        num_layers=model.num_decoder_layers,
        seq_len=target,
        memory_len=data.seq_len,
        residual_len=local(target, "residual_seq"),
        scores=target * target + cross,
        layer_scores=target * target + cross,
        largest_scores=max(target * target, cross),
    )
    return replace(whole, loss_len=target, stacks=(stack, writing))


def _in_stages(stack: Share) -> Share:
    """Return what a stage does of a stack in a tick, and how often."""
    stages, repeats = stack.layout.stages, stack.layout.pipeline_repeats
    own = pipeline.microbatches_a_stage(stack.layout.pipeline_microbatches, stages, stack.rows)
    ticks, runs = pipeline.ticks(stages, stages * own, repeats), stages * repeats
    return replace(stack, rows=stack.rows // own, num_layers=stack.num_layers // runs, ticks=ticks, runs=runs)


def _below(prefix: str, specs: Mapping[str, ParamSpec]) -> dict[str, ParamSpec]:
    return {name: spec for name, spec in specs.items() if name.startswith(prefix)}


def _pairs(cfg: Config, seq_len: int, window: int | None, exchange: str = "") -> list[int]:
    """Return how many scores of one head and row each block of queries of a layer with that window computes.

    Where `context` splits rows, this is the work of all devices together.
    """
    backend = "ring" if exchange == "ring" else cfg.model.attention
    if backend in ("reference", "xla") or cfg.model.kind != "decoder":
        return [seq_len * seq_len]
    if backend == "blocked":
        count = block_count(seq_len)
    else:
        sizes = {"splash": SPLASH_BLOCKS, "ring": (MAX_BLOCK,)}.get(backend, (CUDNN_BLOCK,))
        count = seq_len // next((size for size in sizes if seq_len % size == 0), seq_len)
    blocks = query_blocks(seq_len, count, window)
    return [(end - start) * (end - first) for first, start, end in blocks]
