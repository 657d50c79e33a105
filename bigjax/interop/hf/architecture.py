"""What a table of one Hugging Face architecture says, and the parts of `config.json` that several of them share.

Nothing here imports JAX, so that a command can show the config of a folder at once.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigjax.config import ModelConfig, RopeConfig
from bigjax.errors import UserError, brief

GATED_ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu"}
"""transformers' name of a gate's activation -> `model.activation`."""

ROPE_KEYS = {
    "default": {},
    "llama3": {"low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"},
    "yarn": {"beta_fast": "beta_fast", "beta_slow": "beta_slow"},
}
"""Covered rope types: their own keys in `config.json` -> fields of `RopeConfig`."""

DERIVED_KEYS = ("beta_fast", "beta_slow")
"""Those of them that have a default."""

SLIDING, FULL = "sliding_attention", "full_attention"


class HuggingFaceError(UserError):
    """A Hugging Face folder cannot be read or written; the message names the file and the field or tensor."""


@dataclass(frozen=True)
class Fused:
    """One of `parts` equal pieces of a tensor, side by side along its output axis."""

    template: str
    part: int
    parts: int


@dataclass(frozen=True)
class Architecture:
    """One row of the table: how a Hugging Face architecture and a bigjax model correspond.

    Attributes:
      model_type, class_name: as in `config.json`.
      tensors: a parameter's name -> the tensor's. `{layers}` stands for the index along the parameter's axis of that
        name; any logical axis may stand there, and is then not part of the tensor.
      gated: what stands in their place where the MLPs have a gate.
      fields: field of `ModelConfig` -> key of `config.json` and the key's default in transformers.
      fixed: fields of `ModelConfig` that are the same in every such model.
      required: keys of `config.json` and the only value of each that is covered, also if absent.
      read: returns the remaining fields of `ModelConfig`. write: returns the keys that `read` reads.
      transposed: whether a matrix is stored (out, in).
      prefix: what the names of a checkpoint of the bare model lack.
      copies: a tensor's name -> the parameter that it may repeat, unless it has one of its own.
      renamed: the end of a tensor's name in old checkpoints -> what it is today.
      unused: a regular expression of tensors that the model does without: buffers, and heads of other tasks.
    """

    model_type: str
    class_name: str
    tensors: Mapping[str, str | Fused]
    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    required: Mapping[str, Any]
    read: Callable[["Settings", dict[str, Any]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    transposed: bool = True
    prefix: str = "model."
    gated: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=lambda: {"lm_head.weight": "embed/tokens"})
    renamed: Mapping[str, str] = field(default_factory=dict)
    unused: str = r".*rotary_emb\.inv_freq"

    def table(self, params: Iterable[str]) -> dict[str, "str | Fused"]:
        """Return `tensors` as they are for a model with these parameters."""
        return {**self.tensors, **(self.gated if any(name.endswith("/mlp/gate") for name in params) else {})}

    def today(self, name: str) -> str:
        """Return what a tensor of an old checkpoint is called today."""
        old = next((end for end in self.renamed if name.endswith(end)), None)
        return name if old is None else name.removesuffix(old) + self.renamed[old]


class Settings:
    """The content of a `config.json`, which remembers what was asked for, and what was not."""

    def __init__(self, values: Mapping[str, Any], place: str):
        self._left = dict(values)
        self.place = place
        self.asked: set[str] = set()

    def take(self, key: str, default: Any = None) -> Any:
        """Return the value of a key; the default where it is absent or null."""
        value = self.optional(key, None)
        return default if value is None else value

    def optional(self, key: str, default: Any) -> Any:
        """Return the value of a key that null switches off; the default only where it is absent."""
        self.asked.add(key)
        return self._left.pop(key, default)

    def rest(self) -> dict[str, Any]:
        """Return what was not taken, without what is switched off or empty."""
        off = lambda value: value is None or value is False or value in ({}, [])  # noqa: E731
        return {key: value for key, value in self._left.items() if not off(value)}

    def uncovered(self, key: str, value: Any, covered: Sequence[Any]) -> HuggingFaceError:
        """Return the error that says an option is not covered."""
        return HuggingFaceError(
            f"{self.place}: {key}={brief(value)} is not covered, only {' or '.join(map(repr, covered))}"
        )


def read_activation(settings: Settings, names: Mapping[str, str], *keys: str) -> str:
    """Return `model.activation` from the first of several keys that is set; absent, the first of `names`."""
    found = {key: value for key in keys if (value := settings.take(key)) is not None}
    key, value = next(iter(found.items()), (keys[0], next(iter(names))))
    if value not in names:
        raise settings.uncovered(key, value, list(names))
    return names[value]


def write_activation(cfg: ModelConfig, names: Mapping[str, str]) -> str:
    """Return transformers' name of `model.activation`; any, if it has none."""
    return next((name for name, ours in names.items() if ours == cfg.activation), next(iter(names)))


def read_dropout(settings: Settings, *keys: str) -> float:
    """Return `model.dropout` from several keys, 0.1 where they are absent, that must have the same value."""
    rates = {key: float(settings.take(key, 0.1)) for key in keys}
    if len(set(rates.values())) > 1:
        raise HuggingFaceError(f"{settings.place}: {rates} differ, which is not covered: model.dropout is one rate")
    return rates[keys[0]]


def read_rope(settings: Settings, max_seq_len: int, default_theta: float = 10_000.0) -> dict[str, Any]:
    """Return the fields of `RopeConfig`, from the keys of transformers 4 or 5."""
    older, newer = settings.take("rope_scaling"), settings.take("rope_parameters")
    parameters = dict(older or newer or {})  # both may stand there: transformers takes the former then
    theta = settings.take("rope_theta", default_theta)
    original = settings.take("original_max_position_embeddings")  # which is right if it stands outside
    theta = parameters.pop("rope_theta", None) or theta
    kinds = [parameters.pop(key, None) for key in ("rope_type", "type")]
    kind = next(filter(None, kinds), "default")
    if kind not in ROPE_KEYS:
        raise settings.uncovered("rope scaling", kind, list(ROPE_KEYS))
    fields: dict[str, Any] = {"theta": theta}
    if kind != "default":
        if original is not None:
            parameters["original_max_position_embeddings"] = original
        parameters.setdefault("original_max_position_embeddings", max_seq_len)
        fields |= {"scaling": kind} | _scaling(settings, kind, parameters, max_seq_len)
        _check_attention_factor(settings, parameters, fields)
    for key, covered in (("partial_rotary_factor", 1.0), ("truncate", True)):
        if parameters.pop(key, covered) != covered:
            raise HuggingFaceError(f"{settings.place}: {key} of rope scaling {kind!r} is not covered, only {covered!r}")
    unknown = [key for key, value in parameters.items() if value is not None and value is not False]
    if unknown:
        raise HuggingFaceError(f"{settings.place}: {unknown[0]} of rope scaling {kind!r} is not covered")
    return fields


def _scaling(settings: Settings, kind: str, parameters: dict[str, Any], max_seq_len: int) -> dict[str, Any]:
    """Return the fields of a scaling, which transformers does without none of but where it computes one from others."""
    own = {"factor": "factor", "original_max_position_embeddings": "original_max_seq_len"} | ROPE_KEYS[kind]
    found = {ours: parameters.get(key) or None for key, ours in own.items()}
    if kind == "yarn" and "factor" in parameters and found["factor"] is None and found["original_max_seq_len"]:
        found["factor"] = max_seq_len / found["original_max_seq_len"]
    missing = [key for key, ours in own.items() if found[ours] is None and key not in DERIVED_KEYS]
    if missing:
        wrong = "null or 0" if missing[0] in parameters else "absent"
        raise HuggingFaceError(f"{settings.place}: {missing[0]} of rope scaling {kind!r} is {wrong}: it needs a number")
    for key in own:
        parameters.pop(key, None)
    return {name: value for name, value in found.items() if value is not None}


def _check_attention_factor(settings: Settings, parameters: dict[str, Any], fields: dict[str, Any]) -> None:
    """Raise unless the factor on queries and keys is the one that the paper derives from the stretch."""
    given, derived = parameters.pop("attention_factor", None), 0.1 * math.log(fields.get("factor", 1.0)) + 1
    if given is not None and not math.isclose(given, derived, rel_tol=1e-6):
        raise HuggingFaceError(
            f"{settings.place}: attention_factor={given} is not covered, only 0.1 ln(factor) + 1 = {derived}"
        )


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """Return the keys that `read_rope` reads, in the form that transformers 4 and 5 both read."""
    if rope.scaling == "none":
        return {"rope_theta": rope.theta, "rope_scaling": None}
    scaling = {"rope_type": rope.scaling, "factor": rope.factor}
    scaling["original_max_position_embeddings"] = rope.original_max_seq_len
    scaling |= {key: getattr(rope, ours) for key, ours in ROPE_KEYS[rope.scaling].items()}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def window_fields(windows: Sequence[int | None]) -> dict[str, Any]:
    """Return `sliding_window` and `layer_windows` for the windows of all layers, in their shortest form."""
    if len(set(windows)) == 1:
        return {"sliding_window": windows[0], "layer_windows": ()}
    count = len(windows)
    repeats = lambda period: all(window == windows[i % period] for i, window in enumerate(windows))  # noqa: E731
    period = next(size for size in range(1, count + 1) if count % size == 0 and repeats(size))
    return {"sliding_window": None, "layer_windows": tuple(window or 0 for window in windows[:period])}


def read_layer_types(settings: Settings, window: int | None, count: int, default: Sequence[str]) -> dict[str, Any]:
    """Return the windows of `count` layers from `layer_types`, or from its default."""
    kinds = settings.take("layer_types", list(default))
    if len(kinds) != count:
        raise HuggingFaceError(f"{settings.place}: layer_types has {len(kinds)} entries for {count} layers")
    for kind in kinds:
        if kind not in (SLIDING, FULL):
            raise settings.uncovered("layer_types", kind, [SLIDING, FULL])
        if kind == SLIDING and not isinstance(window, int):
            raise HuggingFaceError(f"{settings.place}: layer_types has {SLIDING!r}, but there is no sliding_window")
    return window_fields([window if kind == SLIDING else None for kind in kinds])


def write_layer_types(cfg: ModelConfig) -> list[str]:
    """Return which layers have a window."""
    return [FULL if window is None else SLIDING for window in cfg.windows]


def one_window(cfg: ModelConfig) -> int | None:
    """Return the window that layers have which have one."""
    return next((window for window in cfg.windows if window is not None), None)
