"""A run made small: the same program on tiny arrays, to be run on a handful of devices."""

import dataclasses
from math import ceil, gcd, lcm

from bigjax.config import Config, MeshConfig, ModelConfig, MoeConfig, named
from bigjax.config.mup import BASE_SIZES, MupConfig, base_sizes
from bigjax.data.batches import ramp
from bigjax.tasks import named_task

DEVICES = 8
"""The shrunk run fits every mesh of this many devices with `tensor` 1 or 2, if the run itself fits `tensor` 2."""

MIN_LR = 1e-2
"""A learning rate at which small models learn in a few steps."""

MIN_RELATIVE_LR = 0.1
"""The same for Adafactor, whose steps are relative to the size of a parameter."""

SEQ_LENS = {"auto": 32, "reference": 32, "xla": 32}
"""Positions of a row; kernels that are not listed work in blocks and need 128."""

HEAD_DIMS = {"splash": 128, "cudnn": 64}
"""Head dimensions that a kernel needs; the others take 16."""


def shrink(cfg: Config, steps: int = 20) -> Config:
    """Return `cfg` with small sizes and nothing else changed: the same code runs, on arrays of a few kilobytes.

    No size grows, except that widths, rows and positions become multiples of 8. The rule:

    - Kept as they are: every option (family, positions, norm, activation, biases, kernel, remat, dtype, dropout,
      objective, optimizer, schedule ...), and `mesh.allow_replicated`.
    - At most 2 layers (and 2 that write), or one period of windows and sparse layers. At most 2 kv heads, or 3 if their
      number is odd, so that what `tensor` did not divide it still does not; heads in the same ratio to kv heads, at
      most 4 (3 if the ratio is odd).
    - At most 8 experts; if there were more, a token sees at most 4. Their width keeps its ratio to `d_model`, up to a
      half. At most 4 groups a row.
    - A model without heads is at most 64 wide. For others:
    - Heads of 16, or what the kernel needs; 15 if odd. `d_model` is a multiple of 8, equal to heads x head_dim only
      where it was (else wider by 8). `d_ff` keeps its ratio to `d_model`, up to 4.
    - muP's base shape has half of every width that grew since the config's own (twice, if it fell), and all of others;
      so has its depth.
    - Rows that are written as long as those that are read, or of 24 if they were not.
    - A vocabulary of at most 64 tokens, or 65 if it was odd, and rows of 32 positions, or 128 for kernels that work in
      blocks, divisible by 8 and by the loss chunks (at most 4). Windows, strides and the length that rotary
      positions are stretched from shrink in proportion; a table of positions longer than the rows becomes twice as
      long as them.
    - At most 2 microbatches of 8 rows, and `steps` steps; warmup and decay take the same share of them, at least one
      each. A batch that grows does so from half of the rows, over as many tokens as 3 full ones have.
    - A learning rate below 0.01 becomes 0.01, one of Adafactor below 0.1 becomes 0.1.
    - The mesh is all data parallel, for the caller to choose; the batches are the caller's too (the tokenizer and the
      sources are kept, but their tokens do not fit the small vocabulary); `init_from` and `init_state` are dropped.
    """
    seq_len, chunks = _sequence(cfg)
    model = _model(cfg, seq_len)
    train = dataclasses.replace(
        cfg.train,
        steps=min(cfg.train.steps, steps),
        global_batch_size=DEVICES * min(cfg.train.num_microbatches, 2),
        microbatches=min(cfg.train.num_microbatches, 2),
        ramp_batch_size=DEVICES * min(cfg.train.num_microbatches, 2) // 2 if cfg.train.ramp_batch_size else 0,
        ramp_tokens=3 * seq_len * DEVICES * min(cfg.train.num_microbatches, 2) if cfg.train.ramp_batch_size else 0,
        loss_chunks=chunks,
        eval_every_steps=min(cfg.train.eval_every_steps, 10),
        eval_batches=min(cfg.train.eval_batches, 2),
    )
    optim = dataclasses.replace(
        cfg.optim,
        lr=max(cfg.optim.lr, MIN_RELATIVE_LR if cfg.optim.name == "adafactor" else MIN_LR),
        warmup=_share(cfg.optim.warmup, cfg),
        decay=_share(cfg.optim.decay, cfg),
    )
    return dataclasses.replace(
        cfg,
        model=model,
        data=dataclasses.replace(
            cfg.data,
            seq_len=seq_len,
            target_len=_target_len(cfg, chunks),
            doc_stride=_part(cfg.data.doc_stride, seq_len / cfg.data.seq_len),
        ),
        train=train,
        optim=optim,
        mesh=MeshConfig(allow_replicated=cfg.mesh.allow_replicated),
        init_from=None,
        init_state=None,
    )


def _share(length: float, cfg: Config) -> float:
    """Return a length of the schedule as a share of the run, of which a whole one is the largest there is."""
    return length if length < 1 else min(length / ramp.build(cfg).full_batches(cfg.train.steps), 1 - 2.0**-20)


def _sequence(cfg: Config) -> tuple[int, int]:
    """Return the length of a row and the number of chunks of the loss."""
    if named_task(cfg).unit == "rows":
        return cfg.data.seq_len, cfg.train.num_loss_chunks
    chunks = min(cfg.train.num_loss_chunks, 4)
    target = min(cfg.data.seq_len, SEQ_LENS.get(cfg.model.attention, 128))
    step = lcm(128 if target == 128 else DEVICES, chunks)
    return step * ceil(target / step), chunks


def _target_len(cfg: Config, chunks: int) -> int:
    """Return the length of a row that is written, which is not that of one that is read where it was not."""
    if not cfg.data.target_len:
        return 0
    step = lcm(DEVICES, chunks)
    return step * ceil(min(cfg.data.target_len, 32 if cfg.data.target_len == cfg.data.seq_len else 24) / step)


def _model(cfg: Config, seq_len: int) -> ModelConfig:
    model = cfg.model
    if not model.head_dim:
        return dataclasses.replace(
            model,
            vocab_size=_small(model.vocab_size, 64),
            num_layers=min(model.num_layers, 2),
            d_model=_multiple(min(model.d_model, 64)),
        )
    ratio = model.num_heads // model.num_kv_heads
    kv_heads = _small(model.num_kv_heads, 2)
    heads = kv_heads * _small(ratio, 4, below=True)
    head_dim = min(model.head_dim, HEAD_DIMS.get(model.attention, 16 - model.head_dim % 2))
    inner, was_inner = heads * head_dim, model.num_heads * model.head_dim
    d_model = _multiple(inner)
    if model.d_model != was_inner and d_model == inner:
        d_model += 8
    share = seq_len / cfg.data.seq_len
    rope = model.rope
    if rope.scaling != "none":
        rope = dataclasses.replace(rope, original_max_seq_len=_part(rope.original_max_seq_len, share))
    small = dataclasses.replace(
        model,
        vocab_size=_small(model.vocab_size, 64),
        num_layers=min(model.num_layers, (least := model.period * ceil(2 / model.period))),
        d_model=d_model,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=_multiple(round(d_model * min(model.d_ff / model.d_model, 4))) + model.d_ff % 2,
        max_seq_len=seq_len * min(ceil(model.max_seq_len / cfg.data.seq_len), 2),
        rope=rope,
        sliding_window=None if model.sliding_window is None else _part(model.sliding_window, share),
        moe=_moe(cfg, d_model, seq_len),
        layer_windows=tuple(_part(window, share) for window in model.layer_windows),
    )
    if model.kind == "encdec":
        written = min(model.num_decoder_layers, least)
        own = dataclasses.replace(model.own, num_decoder_layers=written)
        small = dataclasses.replace(small, **{named.section(model.family): own})
    return small if model.parametrization == "standard" else dataclasses.replace(small, mup=_mup_base(model, small))


def _mup_base(model: ModelConfig, small: ModelConfig) -> MupConfig:
    """Return the base shape of a small model, in whole numbers: of odd sizes nothing grew."""
    before, sizes = base_sizes(model), {}
    for name in filter(before.__contains__, BASE_SIZES):
        old, new, size = before[name], getattr(model, name), getattr(small, name)
        sizes[name] = size if old == new else 2 * size if old > new else size // 2 if size % 2 == 0 else size
    if model.head_dim and sizes["num_heads"] % sizes["num_kv_heads"]:
        sizes["num_heads"], sizes["num_kv_heads"] = small.num_heads, small.num_kv_heads
    if model.mup.base_num_layers:
        grown = model.num_layers / model.mup.base_num_layers
        depth = small.num_layers
        sizes["num_layers"] = depth if grown == 1 else 2 * depth if grown < 1 else max(depth // 2, 1)
    bases = {f"base_{name}": size for name, size in sizes.items()}
    return dataclasses.replace(model.mup, **bases)


def _moe(cfg: Config, d_model: int, seq_len: int) -> MoeConfig:
    model, moe = cfg.model, cfg.model.moe
    if not moe.num_experts:
        return moe
    return dataclasses.replace(
        moe,
        num_experts=min(moe.num_experts, DEVICES),
        top_k=min(moe.top_k, 4) if moe.num_experts > DEVICES else moe.top_k,
        group_size=seq_len // gcd(cfg.data.seq_len // moe.group_size, 4) if moe.group_size else 0,
        d_ff=_multiple(round(d_model * min((moe.d_ff or model.d_ff) / model.d_model, 0.5))),
    )


def _small(size: int, target: int, below: bool = False) -> int:
    """Return `size` if it is no larger than an even `target`, else `target`, or its odd neighbour if `size` is odd."""
    return size if size <= target else target + (size % 2) * (-1 if below else 1)


def _multiple(size: int) -> int:
    """Return the nearest multiple of 8 above 0."""
    return max(8 * round(size / 8), 8)


def _part(count: int, share: float) -> int:
    """Return that share of `count`, at least 1 unless `count` is 0."""
    return max(round(count * share), min(count, 1))
