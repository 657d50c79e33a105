"""A trained run, ready to be used: what the commands that read a run folder share."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from bigjax import models, sharding
from bigjax.checkpoint import reading as checkpoint_reading
from bigjax.checkpoint import saving as checkpoint
from bigjax.config import Config, ModelConfig, replace, strict
from bigjax.data import Processor, TextData, load_tokenizer
from bigjax.errors import UserError
from bigjax.interop.hf import config as hf_config
from bigjax.interop.hf import labels as hf_labels
from bigjax.models import Model
from bigjax.params import names
from bigjax.paths import AnyPath, as_path
from bigjax.preflight.plan import defaults
from bigjax.run.folder import RunFolder
from bigjax.sharding import Layout
from bigjax.tasks import named_task
from bigjax.train import optimizers as optim
from bigjax.train import step

from . import config_source


@dataclass(frozen=True)
class Trained:
    """A run's config, its model on this machine's mesh, and the weights of its newest checkpoint."""

    cfg: Config
    folder: RunFolder
    mesh: jax.sharding.Mesh
    model: Model
    layout: Layout
    step: int
    weights: Any


def load(workdir: str, cfg: Config) -> Trained:
    """Load the newest checkpoint in `workdir` onto the devices at hand: the averaged weights if the run keeps them.

    `workdir` may be `hf:PATH` of a Hugging Face folder, too, whose weights are those of step 0. `cfg` is the recorded
    config, whose plumbing, such as the mesh, may have been changed.

    Raises:
      UserError: there is no complete checkpoint, the mesh does not fit the devices, or the tokenizer was changed.
    """
    folder = RunFolder(folder_of(workdir))
    if (own := strict.from_dict(Config, config_source.load(workdir)).data.tokenizer) != cfg.data.tokenizer:
        raise UserError(f"data.tokenizer={cfg.data.tokenizer!r}, but {workdir} has one of its own, {own!r}")
    cfg = defaults.for_use(cfg, jax.devices())
    mesh = sharding.make_mesh(cfg.mesh)
    model = models.build(cfg.model)
    layout = sharding.layout(cfg.mesh, mesh, model.specs, model.family.mesh_axes)
    tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
    abstract = step.abstract_state(cfg, model, tx, layout, mesh)
    if foreign := hf_config.folder_of(workdir):
        from bigjax.interop import hf

        weights = hf.load_params(foreign, cfg.model, abstract.params)
        if cfg.data.classes:
            hf_labels.check_order(workdir, hf_config.class_names(foreign), cfg.data.classes, chosen=True)
        return Trained(cfg, folder, mesh, model, layout, 0, weights)
    part = "params" if abstract.ema is None else "ema"
    found, weights = checkpoint.restore_part(folder.checkpoints, part, getattr(abstract, part))
    if cfg.model.num_classes and not cfg.data.classes:  # those that training found
        cfg = replace(cfg, data={"classes": _classes(folder, found)})
    return Trained(cfg, folder, mesh, model, layout, found, weights)


def _classes(folder: RunFolder, step: int) -> tuple[str, ...]:
    return tuple(checkpoint_reading.read_data_state(folder.checkpoints, step).get("classes", ()))


def folder_of(workdir: str) -> AnyPath:
    """Return the path of a run folder, or of the Hugging Face folder that `hf:PATH` names."""
    return hf_config.folder_of(workdir) or as_path(workdir)


def initial_params(cfg: Config, abstract: dict, text: TextData) -> dict:
    """Return the parameters that `cfg.init_from` names, of a run folder or `hf:PATH`, placed as `abstract` says.

    Where they had a head for another task, what this one cannot use of it is left out.

    Raises:
      UserError: there are none, or they are of another model, or were trained with another tokenizer, or with the
        classes of `text` in another order.
    """
    tokenizer = text.tokenizer
    folder, foreign = folder_of(str(cfg.init_from)), hf_config.folder_of(cfg.init_from)
    before = hf_config.import_config(foreign).model if foreign else RunFolder(folder).load_config().model
    if not foreign or (folder / "tokenizer.json").is_file():
        _check_processor(cfg, folder, tokenizer)
    if foreign is not None:
        from bigjax.interop import hf

        if cfg.model.num_classes and before.num_classes:
            _check_classes(cfg, before, hf_config.class_names(foreign), text)
        loaded = hf.load_params(foreign, cfg.model, abstract, new_head=True)
        anew = [name for name in names(abstract) if name not in names(loaded)]
        if anew and jax.process_index() == 0:
            print(f"note: {folder} is trained up to its head: {', '.join(anew)} start anew", file=sys.stderr)
        if (moe := before.moe).num_experts and jax.process_index() == 0:
            said = f"one that adds those of the layers, with model.moe.aux_loss={moe.aux_loss:g} for the same"
            print(f"note: {folder} balances experts by one loss of all layers, bigjax by {said}", file=sys.stderr)
        return loaded
    without = () if hf_labels.same_head(before, cfg.model) else ("head",)
    found, params = checkpoint.restore_part(RunFolder(folder).checkpoints, "params", abstract, without)
    if cfg.model.num_classes:
        _check_classes(cfg, before, _classes(RunFolder(folder), found), text)
    return params


def _check_classes(cfg: Config, there: ModelConfig, classes: Sequence[str], text: TextData) -> None:
    """Raise UserError where a head is kept whose classes are in another order than those of the data."""
    if hf_labels.same_head(there, cfg.model):
        ours = text.train.sources[0].identity["classes"]
        hf_labels.check_order(str(cfg.init_from), classes, ours, chosen=bool(cfg.data.classes))


def _check_processor(cfg: Config, folder: AnyPath, tokenizer: Processor) -> None:
    if named_task(cfg).unit == "rows":
        if named_task(cfg).load_processor(folder).digest != tokenizer.digest:
            raise UserError(f"init_from={cfg.init_from!r} was trained on records of another scale: take its own data")
        return
    if load_tokenizer(folder).digest != tokenizer.digest:
        raise UserError(
            f"init_from={cfg.init_from!r} was trained with another tokenizer than data.tokenizer="
            f"{cfg.data.tokenizer!r}: use its own with data.tokenizer='hf:{folder / 'tokenizer.json'}'"
        )
