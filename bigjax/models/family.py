"""What a family of models is: the functions that tasks, generation and checks call, and its own part of a config.

Legend: B batch, S sequence, D model, V vocab, C classes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bigjax import lazy
from bigjax.config import ModelConfig
from bigjax.config.model import transformer_shape
from bigjax.config.sections import NoFields, no_problems
from bigjax.errors import UserError


def nothing_derived(cfg: ModelConfig) -> Mapping[str, Any]:
    """Derive no field from others."""
    del cfg
    return {}


def lacking(name: str) -> Callable[..., Any]:
    """Return what stands for a function that a family has not: it raises UserError when it is called."""

    def fail(*args: Any, **how: Any) -> Any:
        raise UserError(f"the family of this model has no {name}(), which is needed here: give its Family one")

    fail.__dict__["lacking"] = True
    return fail


@dataclass(frozen=True)
class Family:
    """One family. What it does not have is `lacking`, and fails by name when it is called.

    Attributes:
      specs: `(model config)` -> the nested dict of `ParamSpec`: the only place where its parameters exist.
      apply: `(params, tokens or inputs, model config, layout=, key=, ...)` -> hidden states, what it says of itself.
      logits: `(params, hidden states, model config, layout)` -> logits over the vocabulary `(..., V)`, or classes
        `(..., C)`, in float32.
      unembedding: the output matrix `(V, D)` as stored or whole, for a loss in chunks; head_pieces, next_logits: the
        same for generation.
      prefill, decode: read a prompt into a cache, then a token at a time.
      apply_segment, initial_state: go on from a state that the batch before left.
      masked_logits, masked_states, pooled, class_logits: heads over chosen places, whole rows, or every token.
      values: numbers that are no logits, `(B,)` in float32.
      encode: what is read once for all that is written.
      like: the built-in family whose tasks train it, as its functions take the same arguments; by default none other.
      mesh_axes: of the mesh axes that not every family can use, `context` and `stage`, those that its functions can.
      low_precision: whether the matrices of its blocks multiply by `parts.products`, so that `model.matmul` holds.
      fields: a frozen dataclass, its own fields, in the config as `model.NAME` after the family's name.
      derive: `(model config)` -> what it sets in fields of `model` that the user left at 0 or at their default.
      problems: `(whole config)` -> what it asks of a config, one sentence each.
    """

    specs: Callable[[ModelConfig], dict]
    apply: Callable[..., Any]
    logits: Callable[..., Any] = field(default=lacking("logits"))
    unembedding: Callable[..., Any] = field(default=lacking("unembedding"))
    head_pieces: Callable[..., Any] = field(default=lacking("head_pieces"))
    next_logits: Callable[..., Any] = field(default=lacking("next_logits"))
    prefill: Callable[..., Any] = field(default=lacking("prefill"))
    decode: Callable[..., Any] = field(default=lacking("decode"))
    apply_segment: Callable[..., Any] = field(default=lacking("apply_segment"))
    initial_state: Callable[..., Any] = field(default=lacking("initial_state"))
    masked_logits: Callable[..., Any] = field(default=lacking("masked_logits"))
    masked_states: Callable[..., Any] = field(default=lacking("masked_states"))
    pooled: Callable[..., Any] = field(default=lacking("pooled"))
    class_logits: Callable[..., Any] = field(default=lacking("class_logits"))
    encode: Callable[..., Any] = field(default=lacking("encode"))
    values: Callable[..., Any] = field(default=lacking("values"))
    like: str | None = None
    mesh_axes: tuple[str, ...] = ()
    low_precision: bool = False
    fields: type = NoFields
    derive: Callable[[ModelConfig], Mapping[str, Any]] = nothing_derived
    problems: Callable[[Any], Iterator[str]] = no_problems

    def has(self, name: str) -> bool:
        """Return whether the family has a function of this name."""
        return not getattr(getattr(self, name), "lacking", False)


def transformer(module: str, *functions: str, mesh_axes: tuple[str, ...] = ()) -> Family:
    """Return a transformer without fields of its own, whose functions are those of a module, imported when called."""
    found: dict[str, Any] = {name: lazy.function(f"{module}:{name}") for name in functions}
    return Family(**found, derive=transformer_shape, mesh_axes=mesh_axes, low_precision=True)


# Declared here, and not beside their functions, so that most configs are checked before JAX is imported.
DECODER = transformer(
    "bigjax.models.decoder",
    "specs",
    "apply",
    "logits",
    "unembedding",
    "head_pieces",
    "next_logits",
    "prefill",
    "decode",
    mesh_axes=("context", "stage"),
)
ENCODER = transformer(
    "bigjax.models.encoder",
    "specs",
    "apply",
    "logits",
    "unembedding",
    "masked_logits",
    "masked_states",
    "pooled",
    "class_logits",
    mesh_axes=("stage",),
)
