"""What a model keeps of the Hugging Face folder that its weights come from, through any number of runs.

A run folder has `config.json` and `generation_config.json` of that folder as they were; what belongs to the tokenizer
lies beside the run's own. An export takes from them what bigjax does not model: it is carried along, not made anew.
Does not import JAX.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigjax.config import Config, ModelConfig
from bigjax.errors import UserError
from bigjax.interop.hf.architecture import Architecture, HuggingFaceError
from bigjax.interop.hf.config import CONFIG, GENERATION, asked_keys, folder_of, import_config, read_json
from bigjax.interop.hf.labels import LABELS, same_head
from bigjax.paths import AnyPath, as_path, fetched_folder, on_disk
from bigjax.run.folder import RunFolder

FOLDER = "origin"
"""Where a run folder keeps the files."""

RESTATED = ("architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "auto_map")
"""Keys that are said anew of every folder, or are of code that is not carried along."""


def origin_of(source: str | AnyPath | None) -> Path | None:
    """Return the folder with the Hugging Face files of a run, of `hf:PATH`, or of such a folder; None if it has none.

    A run that kept none has those of what it started from.
    """
    if source is None:
        return None
    if folder := folder_of(source):
        return folder if folder.is_dir() else None
    folder = as_path(source).expanduser()
    if (folder / FOLDER).is_dir():
        return fetched_folder(folder / FOLDER, "*")
    values = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if isinstance(values, dict) and "config" in values:
        return origin_of(start_of(RunFolder(folder).load_config()))
    return fetched_folder(folder, "*") if "model_type" in values or (folder / GENERATION).is_file() else None


def start_of(cfg: Config) -> str | None:
    """Return where the weights of a run start from: the run that it branches off, or what `init_from` names."""
    return cfg.init_state.rpartition("@")[0] if cfg.init_state else cfg.init_from


def keep(source: str | AnyPath | None, run: str | AnyPath) -> None:
    """Copy the files of what a run starts from into its folder, unless they are there.

    Raises:
      UserError: they cannot be written, as on a full disk.
    """
    place, origin = as_path(run) / FOLDER, origin_of(source)
    if origin is None or place.exists():
        return
    try:
        with on_disk(place) as there:
            made = there.with_suffix(".tmp")
            made.mkdir(parents=True, exist_ok=True)
            for name in (CONFIG, GENERATION):
                if (origin / name).is_file():
                    shutil.copyfile(origin / name, made / name)
            made.rename(there)
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror or error}") from error


def carried(origin: str | Path | None, architecture: Architecture, model: ModelConfig) -> dict[str, Any]:
    """Return what the `config.json` of an origin says that the architecture of an exported model does not ask for.

    With a head for the same task that is the table of its classes, too.
    """
    origin = None if origin is None else Path(origin)
    values = config_of(origin)
    asked = asked_keys(architecture, model)
    if values and origin and same_head(import_config(origin).model, model):
        asked -= {LABELS}
    dropped = {*asked, *RESTATED}
    found = {key: value for key, value in values.items() if key not in dropped and not key.startswith("_")}
    return found if LABELS in found else {key: value for key, value in found.items() if key != "label2id"}


def config_of(origin: str | Path | None) -> Mapping[str, Any]:
    """Return the `config.json` of an origin; nothing if there is none."""
    origin = None if origin is None else Path(origin)
    if origin is None or not (origin / CONFIG).is_file():
        return {}
    values = read_json(origin / CONFIG)
    if not isinstance(values, dict):
        raise HuggingFaceError(f"{origin / CONFIG} is not the config of a Hugging Face model")
    return values
