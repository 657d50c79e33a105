"""What the fields of a config must satisfy together, whatever the family of its model."""

import difflib
import re
from collections.abc import Iterator
from math import gcd
from typing import Any

from bigjax.config import lengths, named, pipeline, recipes
from bigjax.config import mixture as config_mixture
from bigjax.config import model as config_model
from bigjax.config import mup as config_mup
from bigjax.errors import ConfigError

SAVEABLE = ("qkv", "attn_mixed", "attn_out", "mlp_hidden", "mlp_out")
"""The activations of a block that `model.remat` may name."""


def _objective_problems(cfg: Any) -> Iterator[str]:
    """Yield what the task of a run asks of its model, and what else it asks for."""
    model, name = cfg.model, cfg.train.objective
    try:
        task = named.task(cfg)
    except ConfigError as error:
        yield str(error)
        return
    if not hasattr(task, "families"):
        yield f"train.objective={name!r} is a {type(task).__name__}, not a bigjax.tasks.Task"
        return
    if not {model.kind, model.family} & set(task.families):
        yield (
            f"train.objective={name!r} trains model.family={' or '.join(map(repr, task.families))}, "
            f"not {model.family!r}"
        )
    if task.head is not None and model.head != task.head:
        yield f"train.objective={name!r} needs model.head={task.head!r}, not {model.head!r}"
    if model.head.endswith("classification") != bool(model.num_classes) or model.num_classes == 1:
        yield (
            f"model.num_classes={model.num_classes} does not suit model.head={model.head!r}: classification needs 2 or "
            "more, other heads 0"
        )
    if model.token_types and model.kind != "encoder":
        yield f"model.token_types={model.token_types} is for model.family='encoder', not {model.family!r}"
    if cfg.log.sample_tokens and not task.continues_text:
        yield f"log.sample_tokens={cfg.log.sample_tokens} needs {_those('continues_text')}, not {name!r}"
    if cfg.data.order == "contiguous" and not task.carried_loss:
        yield f"data.order='contiguous' needs {_those('carried_loss')}, not {name!r}"
    yield from task.problems(cfg)


def _those(ability: str) -> str:
    """Return the tasks of bigjax's own that can do something, for a message."""
    able = named.those("train.objective", named.TASKS, lambda task: getattr(task, ability))
    return f"train.objective={' or '.join(map(repr, able))}"


def problems(cfg: Any) -> Iterator[str]:
    """Yield one sentence for every pair of fields that contradict each other."""
    model, data, train, optim, mesh = cfg.model, cfg.data, cfg.train, cfg.optim, cfg.mesh
    if model.num_kv_heads and model.num_heads % model.num_kv_heads:
        yield (
            f"model.num_heads={model.num_heads} is not a multiple of model.num_kv_heads={model.num_kv_heads}: set "
            f"model.num_kv_heads={gcd(model.num_heads, model.num_kv_heads)}, or 0 for as many as heads"
        )
    if model.positions == "learned" and data.seq_len > model.max_seq_len:
        yield (
            f"data.seq_len={data.seq_len} is longer than the table of learned positions, "
            f"model.max_seq_len={model.max_seq_len}: set model.max_seq_len={data.seq_len} as well"
        )
    if model.positions == "rotary" and model.head_dim % 2:
        yield (
            f"model.head_dim={model.head_dim} is odd, but model.positions='rotary' rotates pairs: set "
            f"{config_model.other_heads(model)}"
        )
    if model.layer_windows and model.num_layers % len(model.layer_windows):
        yield (
            f"model.num_layers={model.num_layers} is not a multiple of the {len(model.layer_windows)} layers that "
            f"model.layer_windows={model.layer_windows} describes: set model.num_layers="
            f"{_near(model.num_layers, len(model.layer_windows))}"
        )
    if model.layer_windows and model.sliding_window is not None:
        yield (
            f"model.sliding_window={model.sliding_window} and model.layer_windows={model.layer_windows} both set the "
            "windows: leave one of them out"
        )
    if model.kind in ("encoder", "encdec") and (windows := model.layer_windows or model.sliding_window):
        yield (
            f"model.family={model.family!r} attends to whole rows, windows only look back: leave out "
            f"sliding_window or layer_windows ({windows})"
        )
    if model.rope.scaling != "none" and model.positions != "rotary":
        yield f"model.rope.scaling={model.rope.scaling!r} needs model.positions='rotary', not {model.positions!r}"
    yield from _rope_problems(model.rope)
    stacks = {"model.num_layers data.seq_len": (model.num_layers, data.seq_len)}
    if model.kind == "encdec":
        stacks["model.encdec.num_decoder_layers data.target_len"] = (model.num_decoder_layers, data.target_len)
    yield from model.moe.clashes(stacks)
    if model.moe.num_experts and model.kind not in ("decoder", "encdec"):
        yield (
            f"model.moe.num_experts={model.moe.num_experts} needs model.family='decoder' or 'encdec', not "
            f"{model.family!r}: its objectives do not add the experts' losses"
        )
    if train.global_batch_size % train.num_microbatches:
        yield (
            f"train.global_batch_size={train.global_batch_size} is not divisible by "
            f"train.microbatches={train.microbatches}: set train.microbatches="
            f"{gcd(train.global_batch_size, train.num_microbatches)}"
        )
    if model.kind != "encdec" and data.seq_len % train.num_loss_chunks:
        yield (
            f"data.seq_len={data.seq_len} is not divisible by train.loss_chunks={train.loss_chunks}: set "
            f"train.loss_chunks={gcd(data.seq_len, train.num_loss_chunks)}"
        )
    if optim.nesterov and optim.name != "sgd":
        yield f"optim.nesterov=True is only read by optim.name='sgd', not {optim.name!r}: set optim.nesterov=False"
    if optim.stochastic_rounding and optim.moments_dtype == "float32":
        yield (
            "optim.stochastic_rounding=True rounds what optim.moments_dtype='float32' keeps whole: set "
            "optim.moments_dtype='bfloat16', or optim.stochastic_rounding=False"
        )
    yield from _ramp_problems(cfg)
    yield from lengths.problems(cfg)
    yield from _start_problems(cfg)
    yield from _remat_problems(model.remat)
    yield from _objective_problems(cfg)
    yield from config_mixture.problems(cfg)
    yield from _writing_problems(cfg)
    yield from config_mup.problems(cfg)
    yield from recipes.problems(cfg)
    yield from model.named_family.problems(cfg)
    if len(set(data.classes)) < len(data.classes) or not all(name.strip() for name in data.classes):
        yield f"data.classes={data.classes} must be names, each only once"
    if not data.sources:
        yield "data.sources is empty: name at least one source, such as 'shakespeare'"
    rest = [f"mesh.{axis}" for axis, size in mesh.sizes.items() if size == -1]
    if len(rest) > 1:
        yield f"{rest[0]} and {rest[1]} are both -1 (all the remaining devices): set {rest[0]}=1 or {rest[1]}=1"
    for axis, size in mesh.sizes.items():
        if size == 0:
            yield f"mesh.{axis}=0 is no size: use 1 to leave the axis out or -1 for all the remaining devices"
    if mesh.splits_sequence and mesh.tensor == 1:
        yield (
            "mesh.shard_sequence=True splits the sequence over mesh.tensor, which is 1: set mesh.tensor=2, or "
            "mesh.shard_sequence=False"
        )
    if mesh.context_exchange != "auto" and mesh.context == 1:
        yield (
            f"mesh.context_exchange={mesh.context_exchange!r} is between the parts of a row, but mesh.context=1 leaves "
            "rows whole: set mesh.context=2, or mesh.context_exchange='auto'"
        )
    if mesh.context != 1 and mesh.stage != 1:
        yield (
            f"mesh.stage={mesh.stage} and mesh.context={mesh.context} do not go together: set mesh.stage=1, or "
            "mesh.context=1"
        )
    yield from pipeline.problems(mesh)


def _writing_problems(cfg: Any) -> Iterator[str]:
    """Yield what positions ask of the width, and what only a model that reads one row and writes another has."""
    model, target_len = cfg.model, cfg.data.target_len
    if model.positions == "sinusoidal" and model.d_model % 2:
        yield (
            f"model.d_model={model.d_model} is odd, but model.positions='sinusoidal' pairs a sine with each cosine: "
            f"set model.d_model={model.d_model + 1}"
        )
    if model.kind != "encdec" and target_len:
        yield f"data.target_len={target_len} is for model.family='encdec', not {model.family!r}: set it to 0"
    if model.kind != "encdec" and model.positions == "relative":
        yield f"model.positions='relative' is for model.family='encdec', not {model.family!r}: take another"


def _near(count: int, step: int) -> str:
    """Return the multiples of `step` next to a count, as a sentence offers them."""
    below = count // step * step
    return f"{below} or {below + step}" if below else f"{step}"


def _rope_problems(rope: Any) -> Iterator[str]:
    """Yield what leaves no range of frequencies between those that are kept and those that are stretched."""
    for scaling, low, high in (("llama3", "low_freq_factor", "high_freq_factor"), ("yarn", "beta_slow", "beta_fast")):
        if rope.scaling == scaling and getattr(rope, low) >= getattr(rope, high):
            yield (
                f"model.rope.{low}={getattr(rope, low)} is not below model.rope.{high}={getattr(rope, high)}, as "
                f"model.rope.scaling={scaling!r} needs"
            )


def _ramp_problems(cfg: Any) -> Iterator[str]:
    train, first, tokens = cfg.train, cfg.train.ramp_batch_size, cfg.train.ramp_tokens
    if bool(first) != bool(tokens):
        yield f"train.ramp_batch_size={first} and train.ramp_tokens={tokens}: a ramp needs both, above 0"
    if first and first >= train.global_batch_size:
        yield (
            f"train.ramp_batch_size={first} is not below train.global_batch_size={train.global_batch_size}: set it to "
            "less, or train.ramp_batch_size=0 and train.ramp_tokens=0 for a batch that does not grow"
        )
    if tokens and tokens < cfg.data.seq_len:
        yield f"train.ramp_tokens={tokens} is less than a row: set it to data.seq_len={cfg.data.seq_len} or more"
    if tokens // cfg.data.seq_len >= 2**31:  # the schedule counts them in 32 bits
        yield f"train.ramp_tokens={tokens} is 2^31 rows or more of data.seq_len={cfg.data.seq_len}"
    if first and cfg.data.order == "contiguous":
        yield f"train.ramp_batch_size={first} needs data.order='shuffled': in a contiguous one batches go on row by row"


def _start_problems(cfg: Any) -> Iterator[str]:
    if cfg.init_state is None:
        return
    if cfg.init_from is not None:
        yield (
            f"init_from={cfg.init_from!r} and init_state={cfg.init_state!r} both say where to start: set one "
            "of them to None"
        )
    match = re.fullmatch(r"(.+)@(\d+)", cfg.init_state)
    if not match:
        yield f"init_state={cfg.init_state!r} does not name a run and a step: set it as in init_state=runs/NAME@1000"
    elif int(match[2]) >= cfg.train.steps:
        yield (
            f"init_state={cfg.init_state!r} leaves nothing of train.steps={cfg.train.steps}, which counts that run's "
            f"steps, too: set train.steps to more than {int(match[2])}"
        )


def _remat_problems(remat: str) -> Iterator[str]:
    kind, _, listed = remat.partition(":")
    if remat in ("auto", "none", "dots", "full"):
        return
    if kind not in ("save", "offload"):
        yield f"model.remat={remat!r} is not 'auto', 'none', 'dots', 'full', 'save:NAMES' or 'offload:NAMES'"
    for name in sorted({*listed.split(",")} - {*SAVEABLE}) if kind in ("save", "offload") else ():
        near = difflib.get_close_matches(name, SAVEABLE, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        yield f"model.remat={remat!r} names {name!r}, which is not one of {', '.join(SAVEABLE)}{hint}"
