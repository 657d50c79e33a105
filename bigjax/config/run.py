"""The configuration of a run: frozen dataclasses, and what their fields must satisfy together.

A field is *maths* (it changes the numbers a run produces) unless it is declared with `plumbing(...)`
(paths, logging, cadence, memory and device layout). The fingerprint of a run covers maths fields only.
`bigjax.config.strict` turns plain mappings into these classes; nothing here imports JAX.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from bigjax.config import checks as config_checks
from bigjax.config import named, sections
from bigjax.config.data import DataConfig
from bigjax.config.fields import fields, named_field
from bigjax.config.model import ModelConfig
from bigjax.config.model import RopeConfig as RopeConfig  # a config file finds every section here
from bigjax.config.moe import MoeConfig as MoeConfig
from bigjax.config.mup import MupConfig
from bigjax.config.strict import ConfigError, bounded, plumbing

MESH_AXES = ("slice", "stage", "data", "fsdp", "expert", "context", "tensor")
"""Every mesh axis, slowest link first."""

BATCH_AXES = ("slice", "stage", "data", "fsdp", "expert")
"""The mesh axes over which the batch is split, over `stage` only before and after the layers that stages share."""


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and objective of a run.

    `objective` is the name of a task, in `config.named.TASKS`, or `module.path:NAME` of a `bigjax.tasks.Task`.
    With a `ramp_batch_size` the batch starts with so many rows, and grows by as many at a time until after
    `ramp_tokens` tokens it has `global_batch_size`; warmup and decay then count in full batches (`data.batches.ramp`).
    """

    steps: int = bounded(1000, minimum=1)
    """Optimizer steps of the run."""
    seed: int = bounded(0, minimum=0, maximum=2**32 - 1)  # as many as a key of JAX tells apart
    """The seed of initial values, of the order of rows and of dropout."""
    global_batch_size: int = bounded(16, minimum=1)
    """Rows in a batch, over all devices and processes."""
    ramp_batch_size: int = bounded(0, minimum=0)
    """Rows in the first batches, and by how many they grow; 0 means that the batch does not grow."""
    ramp_tokens: int = bounded(0, minimum=0, maximum=2**63 - 1)
    """Tokens after which the batch has its full size."""
    microbatches: int | Literal["auto"] = plumbing("auto", minimum=1)
    """Into how many parts a batch is split, one after the other; gradients are summed. `auto` takes the fewest with
    which the step fits the chip."""
    objective: str = named_field("causal_lm", named.TASKS)
    """The task, or one of your own."""
    label_smoothing: float = bounded(0.0, minimum=0, below=1)
    """The share of probability that the target spreads over all classes (Szegedy et al. 2016, section 7)."""
    z_loss: float = bounded(0.0, minimum=0)
    """The weight of log(Z)^2, which keeps the logits from drifting (Chowdhery et al. 2022, section 5)."""
    loss_chunks: int | Literal["auto"] = plumbing("auto", minimum=1)
    """Into how many parts a row's logits are split, so that they are never all in memory. `auto` splits them on
    accelerators."""
    eval_every_steps: int = plumbing(0, minimum=0)
    """Steps between evaluations; 0 means only after the last step."""
    eval_batches: int = bounded(0, minimum=0)
    """Batches of an evaluation; 0 means all of the held-out text."""

    @property
    def num_microbatches(self) -> int:
        """`microbatches`, 1 where no devices have resolved `auto`."""
        return 1 if self.microbatches == "auto" else self.microbatches

    @property
    def num_loss_chunks(self) -> int:
        """`loss_chunks`, 1 where no devices have resolved `auto`."""
        return 1 if self.loss_chunks == "auto" else self.loss_chunks


@dataclass(frozen=True)
class LrMultipliers:
    """Factors on the learning rate, by the kind a parameter declares."""

    embedding: float = bounded(1.0, minimum=0)
    """On tables of tokens, positions and segments."""
    head: float = bounded(1.0, minimum=0)
    """On output matrices."""
    matrix: float = bounded(1.0, minimum=0)
    """On the matrices of blocks."""
    norm: float = bounded(1.0, minimum=0)
    """On the scales of norms."""
    bias: float = bounded(1.0, minimum=0)
    """On biases."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its schedule and what surrounds them.

    `warmup` and `decay` are lengths of the schedule: below 1 a share of `train.steps`, else whole steps; 1 is one step.
    `linear` and `cosine` decay from the end of the warm-up to the end of the run where `decay` is 0; `wsd` decays over
    its last `decay`. `constant` and `inverse_sqrt` do not read it.
    """

    name: str = named_field("adamw", named.OPTIMIZERS)
    """The optimizer, or one of your own."""
    lr: float = bounded(1e-3, above=0)
    """The highest learning rate."""
    schedule: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"] = "cosine"
    """The shape of the learning rate over the steps."""
    warmup: float = bounded(0.0, minimum=0)
    """The length of the linear warm-up."""
    decay: float = bounded(0.0, minimum=0)
    """The length of the decay."""
    end_lr_ratio: float = bounded(0.1, minimum=0, maximum=1)
    """The learning rate after the decay, as a share of `lr`."""
    weight_decay: float = bounded(0.1, minimum=0)
    """The factor of weight decay. It spares norms and biases."""
    b1: float = bounded(0.9, minimum=0, below=1)
    """The decay of Adam's mean of gradients."""
    b2: float = bounded(0.95, minimum=0, below=1)
    """The decay of Adam's mean of squared gradients."""
    eps: float = bounded(1e-8, above=0)
    """What Adam adds to the root of the mean of squares."""
    momentum: float = bounded(0.9, minimum=0, below=1)
    """The momentum of `sgd`."""
    nesterov: bool = False
    """Whether the momentum of `sgd` is Nesterov's."""
    muon_lr: float = bounded(0.02, above=0)
    """The learning rate of the matrices that Muon updates; `lr` is that of all else."""
    muon_momentum: float = bounded(0.95, minimum=0, below=1)
    """The momentum of Muon."""
    grad_clip: float | None = bounded(1.0, above=0)
    """The largest norm of all gradients together; what is longer is scaled down to it. None means no bound."""
    ema_decay: float | None = bounded(None, above=0, below=1)
    """The decay of the running mean of parameters that is evaluated; None means there is none."""
    lr_multipliers: LrMultipliers = field(default_factory=LrMultipliers)


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 on one axis means all that are left.

    Zero in `data` means all that are left, or 1 where another axis has them.

    `shard_sequence` also splits the activations between blocks along the sequence over `tensor`
    (Korthikanti et al. 2022, section 4.2.2). `allow_replicated` names parameters, or axes of parameters, that may
    stay whole on every device.

    `context` splits rows themselves, for decoders.
    `stage` splits the layers of decoders and encoders: each stage has as many successive ones, and the batch goes
    through all of them in `pipeline_microbatches` (GPipe, Huang et al. 2019); 0 takes four times as many as stages, or
    as many as the rows allow. With `pipeline_repeats` above 1 each stage has so many shorter runs of layers, and the
    batch goes round as often (the interleaved, or circular, schedule of Narayanan et al. 2021, section 2.2).
    """

    slice: int = plumbing(1, minimum=-1)
    """TPU slices, or other groups of devices with slow links between them."""
    stage: int = plumbing(1, minimum=-1)
    """Stages of a pipeline, each with its share of the layers."""
    data: int = plumbing(0, minimum=-1)
    """Copies of the model, each of which sees other rows; 0 means all devices that are left."""
    fsdp: int | Literal["auto"] = plumbing("auto", minimum=-1)
    """Devices that split both the rows and the parameters (fully sharded data parallelism). `auto` is 1 on CPUs, and on
    accelerators, where `data` is not given either, the best split of the devices that are left between the two."""
    expert: int = plumbing(1, minimum=-1)
    """Devices that split the experts of sparse layers, and the rows."""
    context: int = plumbing(1, minimum=-1)
    """Devices that split the length of a row, and the parameters as `fsdp` does."""
    tensor: int = plumbing(1, minimum=-1)
    """Devices that split single matrices (tensor parallelism, Shoeybi et al. 2019)."""
    shard_sequence: bool | Literal["auto"] = plumbing("auto")
    """Whether activations between blocks are split along the sequence over `tensor`. `auto` splits them on accelerators
    where `tensor` is above 1."""
    context_exchange: Literal["auto", "all_to_all", "gather", "ring"] = plumbing("auto")
    """How the parts of a row that `context` splits attend to each other (`bigjax.config.exchange`)."""
    pipeline_microbatches: int = plumbing(0, minimum=0)
    """Parts of a batch that are in the stages at the same time; 0 means 4 a stage, or as many as the rows allow."""
    pipeline_repeats: int = plumbing(1, minimum=1)
    """How often a batch goes round all stages: 1 is GPipe, more are the circular schedule with a smaller bubble."""
    allow_replicated: tuple[str, ...] = plumbing(())
    """Parameters, or axes of parameters, that may stay whole on every device."""

    @property
    def sizes(self) -> dict[str, int]:
        """Devices along each axis, slowest link first; -1 on at most one."""
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        sizes["fsdp"] = 1 if self.fsdp == "auto" else self.fsdp
        return sizes | {"data": self.data or (1 if -1 in sizes.values() else -1)}

    @property
    def splits_sequence(self) -> bool:
        """`shard_sequence`, False where no devices have resolved `auto`."""
        return self.shard_sequence is True


@dataclass(frozen=True)
class CheckpointConfig:
    """When a checkpoint is written and which are kept; zero in `keep_every_steps` keeps only the newest."""

    every_steps: int = plumbing(500, minimum=1)
    """Steps between checkpoints. There is always one after the last step."""
    keep_last: int = plumbing(2, minimum=1)
    """How many of the newest checkpoints are kept."""
    keep_every_steps: int = plumbing(0, minimum=0)
    """Checkpoints at multiples of this are kept for good; 0 means none."""
    asynchronous: bool = plumbing(True)
    """Whether training goes on while a checkpoint is written."""


@dataclass(frozen=True)
class GuardConfig:
    """What happens to a step whose loss or gradient norm is not finite, or spikes.

    A spike is more than `threshold` median absolute deviations above the median of the last `window` finite steps.
    `stop` ends the run; `skip` drops the update; `rollback` goes back to the newest checkpoint leaving out the batch.
    """

    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """What happens to a step whose loss or gradient norm is not finite."""
    on_spike: Literal["none", "stop", "skip", "rollback"] = "none"
    """What happens to a step that spikes."""
    window: int = bounded(100, minimum=3)
    """How many of the last finite steps a spike is measured against."""
    threshold: float = bounded(10.0, above=0)
    """How many median absolute deviations above the median a spike lies."""
    max_consecutive_skips: int = plumbing(10, minimum=1)
    """So many steps skipped one after the other end the run."""
    max_rollbacks: int = plumbing(3, minimum=0)
    """So many rollbacks are made in a run; the next one ends it."""


@dataclass(frozen=True)
class LogConfig:
    """What a run reports."""

    every_steps: int = plumbing(10, minimum=1)
    """Steps between rows of `metrics.jsonl` and lines on the screen."""
    tensorboard: bool = plumbing(True)
    """Whether events for TensorBoard are written."""
    plot: bool = plumbing(True)
    """Whether `loss.png` is drawn."""
    sample_prompt: str = plumbing("")
    """What the sample at the end of a run starts with."""
    sample_tokens: int = plumbing(0, minimum=0)
    """The length of that sample, in tokens; 0 means none."""


@dataclass(frozen=True)
class Config:
    """One run.

    It starts from the parameters of `init_from`, a run folder or `hf:PATH`, or as `init_state`, RUN@STEP, from the
    whole state of a run after a step: parameters, optimizer, averages, data position and random numbers. Then
    `train.steps` counts that run's steps, too, and model, data, seed and batch must be its own: see
    `bigjax.train.continuation`.
    """

    RENAMED: ClassVar[dict[str, str]] = {
        f"optim.{name}_steps": f"optim.{name}: set optim.{name} to the same number, which still means steps, or to a "
        "share of the run, below 1"
        for name in ("warmup", "decay")
    } | {
        f"model.{old}": f"model.{new}"
        for old, new in (
            *((f"mup_{name}", f"mup.{name}") for name in fields(MupConfig)),
            *((name, f"encdec.{name}") for name in ("num_decoder_layers", "scale_logits")),
            *((name, f"encdec.{name}") for name in ("relative_buckets", "relative_max_distance")),
            *((name, f"rnn.{name}") for name in ("cell", "dropout_kind")),
            *((f"{name}_dropout", f"rnn.{name}_dropout") for name in ("word", "input", "recurrent", "output")),
        )
    }
    """What fields of earlier versions are now."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    init_from: str | None = None
    """The run folder or `hf:PATH` whose parameters the run starts from; None means that they are drawn."""
    init_state: str | None = None
    """RUN@STEP, the state that the run goes on from; None means that it starts afresh."""

    def __new__(cls, *args: Any, **values: Any) -> "Config":
        """Return a run of the class that has the sections of its family and task."""
        given = dict(zip((each.name for each in dataclasses.fields(cls)), args, strict=False)) | values
        model = type(given["model"]) if "model" in given else ModelConfig
        objective = given["train"].objective if "train" in given else TrainConfig.objective
        chosen = _with_sections(model, objective)
        return sections.create(Config, chosen, cls, given)

    def __reduce__(self) -> Any:
        return sections.rebuild, (Config, sections.given(self))

    @classmethod
    def schema_of(cls, mapping: Mapping[str, Any]) -> "type[Config]":
        """Return the class of the run that a mapping of fields describes, with the sections of its family and task.

        What is wrong with their names is said where the fields are converted.
        """
        model = ModelConfig.schema_of(mapping["model"]) if "model" in mapping else ModelConfig
        try:
            return _with_sections(model, mapping["train"]["objective"])
        except (KeyError, TypeError, ConfigError):
            return _with_sections(model, "causal_lm")

    @classmethod
    def elsewhere(cls, path: str) -> str | None:
        """Return the sentence on a field that there is for another family, None if `path` is no such field."""
        section, _, rest = path.partition(".")
        other, _, name = rest.partition(".")
        if section != "model" or other not in named.FAMILIES or other in fields(ModelConfig):
            return None
        own = named.load("model.family", other, named.FAMILIES).fields
        if name and name not in fields(own):
            has = ", ".join(fields(own)) or "no fields of its own"
            return f"{path} is not a field of model.family={other!r}, which has {has}"
        return f"{path} is for model.family={other!r}: set model.family={other!r}, or leave it out"

    @property
    def carries_state(self) -> bool:
        """Whether the model goes on, in every batch, from the state in which the one before left it."""
        return self.model.kind == "rnn" and self.data.order == "contiguous"

    def __post_init__(self):
        problems = list(config_checks.problems(self))
        if problems:
            raise ConfigError("\n".join(problems))


def _with_sections(model: type, objective: str) -> Any:
    task = named.load("train.objective", objective, named.TASKS)
    own = (("task", task.fields),) if hasattr(task, "fields") else ()  # else `checks` says that it is no task
    return sections.extended(Config, (("model", model), *own))


def replace(cfg: Config, **changes: Mapping[str, Any]) -> Config:
    """Return `cfg` with fields changed, e.g. `replace(cfg, optim={"lr": 1e-3}, model={"rnn.cell": "gru"})`."""
    flat = {f"{section}.{path}": value for section, paths in changes.items() for path, value in paths.items()}
    return replaced(cfg, flat)


def replaced(section: Any, changes: Mapping[str, Any]) -> Any:
    """Return a section with fields changed by their paths in it; all at once, as they must suit each other."""
    inner: dict[str, dict[str, Any]] = {}
    values = {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            values[name] = value
    values |= {name: replaced(getattr(section, name), paths) for name, paths in inner.items()}
    return dataclasses.replace(section, **values)
