"""`config.json` of a Hugging Face folder to a model config and back; does not import JAX."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bigjax.config import ModelConfig, MoeConfig, RopeConfig, replaced, strict
from bigjax.config.paths import nested
from bigjax.errors import ConfigError, brief
from bigjax.interop.hf.architecture import Architecture, HuggingFaceError, Settings, window_fields
from bigjax.interop.hf.bert import BERT
from bigjax.interop.hf.gemma import GEMMA2
from bigjax.interop.hf.gpt2 import GPT2
from bigjax.interop.hf.labels import read_labels
from bigjax.interop.hf.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from bigjax.interop.hf.mixtral import MIXTRAL
from bigjax.interop.hf.t5 import T5
from bigjax.paths import AnyPath, as_path, fetched_folder, is_remote

ARCHITECTURES = (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, MIXTRAL, GEMMA2, *BERT, T5)
"""All that are covered. A model that several can hold is exported as the first of them."""

PREFIX = "hf:"
"""What a Hugging Face folder is marked with where a run folder may stand, too."""

CONFIG, GENERATION, ADAPTER = "config.json", "generation_config.json", "adapter_config.json"
EOS = "eos_token_id"

DESCRIPTIVE = (
    "attn_implementation",
    "auto_map",
    "classifier_dropout",
    "directionality",
    "finetuning_task",
    "gradient_checkpointing",
    "is_llama_config",
    "max_window_layers",
    "n_ctx",
    "num_labels",
    "output_past",
    "output_router_logits",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "prefix",
    "pretraining_tp",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "tf_legacy_loss",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "trust_remote_code",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
)
"""Keys of `config.json` that do not change what the model computes and that transformers does not list; so are those
that start with an underscore, and the ids of special tokens."""

WITH_EFFECT = ("is_encoder_decoder",)
"""Of the keys that every config of transformers has, those that do."""

TRAINING = ("dropout", "init", "init_std", "dtype", "moe.aux_loss", "moe.z_loss", "moe.jitter")
"""Fields of `ModelConfig` that a checkpoint may differ in from the run that starts from it; so may plumbing."""


def folder_of(source: str | AnyPath | None) -> Path | None:
    """Return the folder that `hf:PATH` names, of an object store a copy on the disk; None for anything else."""
    text = str(source)
    if not text.startswith(PREFIX):
        return None
    place = text.removeprefix(PREFIX)
    return _copy(place) if is_remote(place) else Path(place).expanduser()


@functools.cache
def _copy(place: str) -> Path:
    return fetched_folder(place, "*", "additional_chat_templates/*")


class Imported(NamedTuple):
    """What the `config.json` of a folder says."""

    architecture: Architecture
    model: ModelConfig


def import_config(folder: str | Path) -> Imported:
    """Read `config.json`; the compute dtype is bfloat16 if the weights are, else float32.

    Raises:
      HuggingFaceError: there is none, or it has an architecture or an option that is not covered.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise HuggingFaceError(f"there is no folder {folder}")
    if (folder / ADAPTER).exists():
        raise HuggingFaceError(f"{folder / ADAPTER}: a LoRA or other adapter is not covered: merge it into its model")
    place = folder / CONFIG
    values = read_json(place)
    if not isinstance(values, dict) or "model_type" not in values:
        raise HuggingFaceError(f"{place} is not the config of a Hugging Face model: it has no model_type")
    architecture = _architecture(values, str(place))
    return Imported(architecture, _read(architecture, Settings(values, str(place)), values))


def _architecture(values: dict[str, Any], place: str) -> Architecture:
    """Return what `model_type` and `architectures` name; the first of its type if there is only the former."""
    kind, classes = values.pop("model_type"), values.pop("architectures", None) or []
    covered = [each for each in ARCHITECTURES if each.model_type == kind]
    if not covered:
        kinds = ", ".join(dict.fromkeys(each.model_type for each in ARCHITECTURES))
        raise HuggingFaceError(f"{place}: the architecture {brief(kind)} is not covered; covered are {kinds}")
    if not isinstance(classes, list):
        raise HuggingFaceError(f"{place}: architectures={brief(classes)} is not a list of names")
    for name in classes:
        if name not in [each.class_name for each in covered]:
            raise Settings(values, place).uncovered("architectures", name, [each.class_name for each in covered])
    return next((each for each in covered if each.class_name in classes[:1]), covered[0])


def class_names(folder: str | Path) -> tuple[str, ...]:
    """Return the names of the classes that a folder tells apart, in the order of their logits."""
    place = Path(folder).expanduser() / CONFIG
    return read_labels(Settings(read_json(place), str(place)))


def end_ids(folder: str | Path) -> list[int]:
    """Return the tokens that end a text where transformers generates: of `generation_config.json`, else of the config.

    Raises:
      HuggingFaceError: they are neither a number nor a list of numbers.
    """
    place = next(path for name in (GENERATION, CONFIG) if (path := Path(folder).expanduser() / name).is_file())
    values = read_json(place)
    found = values.get(EOS) if isinstance(values, dict) else values
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(id_) is int for id_ in ids):
        raise HuggingFaceError(f"{place}: {EOS}={brief(found)} is neither a token's id nor a list of ids")
    return ids


def read_json(path: str | AnyPath) -> Any:
    """Return the content of a JSON file of the folder."""
    path = as_path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HuggingFaceError(f"{path.parent} has no {path.name}") from None
    except (ValueError, OSError) as error:
        raise HuggingFaceError(f"{path} cannot be read: {error}") from None


def asked_keys(architecture: Architecture, model: ModelConfig) -> set[str]:
    """Return the keys of `config.json` that an architecture's model is read from."""
    settings = Settings(_write(architecture, model), CONFIG)
    _read(architecture, settings, {})
    return settings.asked


def _read(architecture: Architecture, settings: Settings, values: Mapping[str, Any]) -> ModelConfig:
    place = settings.place
    for key, covered in architecture.required.items():
        if (value := settings.take(key, covered)) != covered:
            raise settings.uncovered(key, value, [covered])
    fields: dict[str, Any] = dict(architecture.fixed)
    fields |= {name: _field(settings, name, *said) for name, said in architecture.fields.items()}
    stored = [values.get(key) for key in ("dtype", "torch_dtype")]
    fields["dtype"] = "bfloat16" if "bfloat16" in stored else "float32"
    try:
        fields |= architecture.read(settings, fields)
        unknown = [key for key in settings.rest() if not _without_effect(key)]
        model = strict.from_dict(ModelConfig, nested(fields))
    except ConfigError as error:
        raise HuggingFaceError(f"{place} describes no model that can be built:\n{error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise HuggingFaceError(f"{place} has a value of a wrong type: {error}") from error
    if unknown:
        raise HuggingFaceError(f"{place}: {brief(unknown[0])[1:-1]}={brief(values[unknown[0]])} is not covered")
    return model


def _field(settings: Settings, name: str, key: str, default: Any) -> Any:
    """Return the value of a field: its default where the key is absent, and where null, as for transformers, no other.

    Null is what is derived from others, for us 0; of the rest, transformers has no value for null either.
    """
    value = settings.optional(key, default)
    if value is None and (name == "num_kv_heads" or (default == 0 and default is not False)):
        return 0
    if value is None:
        raise HuggingFaceError(f"{settings.place}: {key} is null: it needs a value, as {default!r}")
    return value


def _without_effect(key: str) -> bool:
    return key in DESCRIPTIVE or key.startswith("_") or key.endswith("_token_id") or key in _of_any_model()


@functools.cache
def _of_any_model() -> frozenset[str]:
    """Return the keys by which transformers drives generation, and those that its configs have whatever the model."""
    from transformers import GenerationConfig, PreTrainedConfig  # which takes a while, and most folders do not need it

    return frozenset(GenerationConfig().to_dict()) | frozenset(PreTrainedConfig().to_dict()) - {*WITH_EFFECT}


def export_config(model: ModelConfig, first: Architecture | None = None) -> tuple[Architecture, dict[str, Any]]:
    """Return the architecture that holds `model`, `first` if it does, and its `config.json`.

    Raises:
      HuggingFaceError: none does; naming the fields in which the nearest differs.
    """
    if model.kind == "rnn":
        raise HuggingFaceError("model.family='rnn': transformers has no such model")
    nearest: tuple[list[str], Architecture] | None = None
    for architecture in (*([first] if first else []), *ARCHITECTURES):
        values = _write(architecture, model)
        differing = disagreements(_read(architecture, Settings(values, CONFIG), values), model)
        if not differing:
            named = {"architectures": [architecture.class_name], "model_type": architecture.model_type}
            return architecture, named | values
        if nearest is None or len(differing) < len(nearest[0]):
            nearest = differing, architecture
    assert nearest is not None
    raise HuggingFaceError(
        f"no covered Hugging Face architecture holds this model; the nearest, {nearest[1].class_name}, differs in\n"
        + "\n".join(nearest[0])
    )


def _write(architecture: Architecture, model: ModelConfig) -> dict[str, Any]:
    values = dict(architecture.required)
    here = {leaf.path: leaf.value for leaf in strict.leaves(model)}
    values |= {key: here[path] for path, (key, _) in architecture.fields.items() if path in here}
    return values | architecture.write(model)


def disagreements(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
    """Return a line for each field that makes the two different architectures."""
    differences = strict.diff(_canonical(theirs), _canonical(ours))
    return [
        f"  model.{found.path}: {brief(found.a)} there, {brief(found.b)} here"
        for found in differences
        if not found.plumbing and found.path not in TRAINING
    ]


def _canonical(model: ModelConfig) -> ModelConfig:
    """Return `model` with the fields that have no effect at their defaults, and windows in their shortest form."""
    rope = RopeConfig() if model.positions != "rotary" else model.rope
    if rope.scaling == "none":
        rope = RopeConfig(theta=rope.theta)
    # A table of positions is as long as it is; other positions have no end.
    length = ModelConfig().max_seq_len if model.positions == "relative" else model.max_seq_len
    scale = None if model.attn_scale == model.head_dim**-0.5 else model.attn_scale
    moe = MoeConfig()
    if model.moe.num_experts:
        width = 0 if model.moe.d_ff == model.d_ff else model.moe.d_ff
        moe = dataclasses.replace(model.moe, top_k=model.moe.experts_per_token, d_ff=width)
    if model.family == "encdec":
        model = replaced(model, {"encdec.num_decoder_layers": model.num_decoder_layers})
    fields = {"rope": rope, "attn_scale": scale, "moe": moe, "max_seq_len": length, **window_fields(model.windows)}
    return dataclasses.replace(model, **fields)
