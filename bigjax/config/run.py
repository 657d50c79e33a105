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
class DataConfig:
    """Where text comes from and how it becomes rows of tokens.

    A source is `shakespeare` (packaged) or `shakespeare-passages` (its plays in passages, each labelled comedy, history
    or tragedy), `text:GLOB`, `jsonl:GLOB`, `csv:GLOB`, `tsv:GLOB`, `parquet:GLOB`, `tfds:NAME[:SPLIT]` or
    `copy:SYMBOLS:LENGTH` (made up). `text_key`, `label_key` and `target_key` (what an encoder-decoder writes) are
    columns; `classes` in order, by default all the labels that are trained on, sorted. For `token_classification` both
    columns of `jsonl:GLOB` are lists, of words and their tags, or `conll:GLOB` has a word and its tag on each line. For
    `question_answering` the columns of `jsonl:GLOB` are `text_key` (the context), `question_key`, `answer_key` and
    `answer_start_key`, a number of characters, and if a line has it `is_impossible`, by which there is no answer; a row
    has as much of the context as goes in, and the next row of it starts `doc_stride` tokens later. `target_len` is the
    length of what an encoder-decoder writes, 0 for other families. `mask_rate` of the tokens are hidden, by
    `span_corruption` in spans of `mean_span`.
    A tokenizer is `bytes`, `bpe:SIZE` (trained on the training documents) or `hf:PATH` of a `tokenizer.json` or of its
    folder. Special tokens that a document spells out are letters like any others, unless `special_tokens` is set; in
    prompts they are special. A share of more than `max_overlap` of the held-out documents that are trained on, too, is
    refused.
    With `order` `contiguous` row b of a batch continues row b of the one before it, and a recurrent model goes on from
    the state it was in (truncated backpropagation through time); the text is read the same way in every epoch.
    """

    sources: tuple[str, ...] = ("shakespeare",)
    weights: tuple[float, ...] = ()
    eval_sources: tuple[str, ...] = ()
    holdout: float = bounded(0.05, minimum=0, below=1)
    text_key: str = "text"
    label_key: str = "label"
    target_key: str = "target"
    question_key: str = "question"
    answer_key: str = "answer"
    answer_start_key: str = "answer_start"
    doc_stride: int = bounded(128, minimum=1)
    classes: tuple[str, ...] = ()
    mask_rate: float = bounded(0.15, above=0, below=1)
    whole_word_masking: bool = False
    mean_span: float = bounded(3.0, minimum=1)
    tokenizer: str = "bytes"
    seq_len: int = bounded(256, minimum=1)
    order: Literal["shuffled", "contiguous"] = "shuffled"
    target_len: int = bounded(0, minimum=0)
    document_mask: bool = True
    special_tokens: bool = False
    cache_dir: str | None = plumbing(None)
    prefetch: int = plumbing(4, minimum=1)
    max_overlap: float = plumbing(0.1, minimum=0, maximum=1)


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and objective of a run.

    `objective` is the name of a task, in `config.named.TASKS`, or `module.path:NAME` of a `bigjax.tasks.Task`.
    With a `ramp_batch_size` the batch starts with so many rows, and grows by as many at a time until after
    `ramp_tokens` tokens it has `global_batch_size`; warmup and decay then count in full batches (`data.batches.ramp`).
    """

    steps: int = bounded(1000, minimum=1)
    seed: int = bounded(0, minimum=0, maximum=2**32 - 1)  # as many as a key of JAX tells apart
    global_batch_size: int = bounded(16, minimum=1)
    ramp_batch_size: int = bounded(0, minimum=0)
    ramp_tokens: int = bounded(0, minimum=0, maximum=2**63 - 1)
    microbatches: int = plumbing(1, minimum=1)
    objective: str = named_field("causal_lm", named.TASKS)
    label_smoothing: float = bounded(0.0, minimum=0, below=1)
    z_loss: float = bounded(0.0, minimum=0)
    loss_chunks: int = plumbing(1, minimum=1)
    eval_every_steps: int = plumbing(0, minimum=0)
    eval_batches: int = bounded(0, minimum=0)


@dataclass(frozen=True)
class LrMultipliers:
    """Factors on the learning rate, by the kind a parameter declares."""

    embedding: float = bounded(1.0, minimum=0)
    head: float = bounded(1.0, minimum=0)
    matrix: float = bounded(1.0, minimum=0)
    norm: float = bounded(1.0, minimum=0)
    bias: float = bounded(1.0, minimum=0)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its schedule and what surrounds them.

    `warmup` and `decay` are lengths of the schedule: below 1 a share of `train.steps`, else whole steps; 1 is one step.
    `linear` and `cosine` decay from the end of the warm-up to the end of the run where `decay` is 0; `wsd` decays over
    its last `decay`. `constant` and `inverse_sqrt` do not read it.
    """

    name: str = named_field("adamw", named.OPTIMIZERS)
    lr: float = bounded(1e-3, above=0)
    schedule: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"] = "cosine"
    warmup: float = bounded(0.0, minimum=0)
    decay: float = bounded(0.0, minimum=0)
    end_lr_ratio: float = bounded(0.1, minimum=0, maximum=1)
    weight_decay: float = bounded(0.1, minimum=0)
    b1: float = bounded(0.9, minimum=0, below=1)
    b2: float = bounded(0.95, minimum=0, below=1)
    eps: float = bounded(1e-8, above=0)
    momentum: float = bounded(0.9, minimum=0, below=1)
    nesterov: bool = False
    muon_lr: float = bounded(0.02, above=0)
    muon_momentum: float = bounded(0.95, minimum=0, below=1)
    grad_clip: float | None = bounded(1.0, above=0)
    ema_decay: float | None = bounded(None, above=0, below=1)
    lr_multipliers: LrMultipliers = field(default_factory=LrMultipliers)


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 on one axis means all that are left.

    Zero in `data` means all that are left, or 1 where another axis has them.

    `shard_sequence` also splits the activations between blocks along the sequence over `tensor`
    (Korthikanti et al. 2022, section 4.2.2). `allow_replicated` names parameters, or axes of parameters, that may
    stay whole on every device.

    `stage` splits the layers of decoders and encoders: each stage has as many successive ones, and the batch goes
    through all of them in `pipeline_microbatches` (GPipe, Huang et al. 2019); 0 takes four times as many as stages, or
    as many as the rows allow. With `pipeline_repeats` above 1 each stage has so many shorter runs of layers, and the
    batch goes round as often (the interleaved, or circular, schedule of Narayanan et al. 2021, section 2.2).
    """

    slice: int = plumbing(1, minimum=-1)
    stage: int = plumbing(1, minimum=-1)
    data: int = plumbing(0, minimum=-1)
    fsdp: int = plumbing(1, minimum=-1)
    expert: int = plumbing(1, minimum=-1)
    context: int = plumbing(1, minimum=-1)
    tensor: int = plumbing(1, minimum=-1)
    shard_sequence: bool = plumbing(False)
    pipeline_microbatches: int = plumbing(0, minimum=0)
    pipeline_repeats: int = plumbing(1, minimum=1)
    allow_replicated: tuple[str, ...] = plumbing(())

    @property
    def sizes(self) -> dict[str, int]:
        """Devices along each axis, slowest link first; -1 on at most one."""
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        return sizes | {"data": self.data or (1 if -1 in sizes.values() else -1)}


@dataclass(frozen=True)
class CheckpointConfig:
    """When a checkpoint is written and which are kept; zero in `keep_every_steps` keeps only the newest."""

    every_steps: int = plumbing(500, minimum=1)
    keep_last: int = plumbing(2, minimum=1)
    keep_every_steps: int = plumbing(0, minimum=0)
    asynchronous: bool = plumbing(True)


@dataclass(frozen=True)
class GuardConfig:
    """What happens to a step whose loss or gradient norm is not finite, or spikes.

    A spike is more than `threshold` median absolute deviations above the median of the last `window` finite steps.
    `stop` ends the run; `skip` drops the update; `rollback` goes back to the newest checkpoint leaving out the batch.
    """

    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    on_spike: Literal["none", "stop", "skip", "rollback"] = "none"
    window: int = bounded(100, minimum=3)
    threshold: float = bounded(10.0, above=0)
    max_consecutive_skips: int = plumbing(10, minimum=1)
    max_rollbacks: int = plumbing(3, minimum=0)


@dataclass(frozen=True)
class LogConfig:
    """What a run reports."""

    every_steps: int = plumbing(10, minimum=1)
    tensorboard: bool = plumbing(True)
    plot: bool = plumbing(True)
    sample_prompt: str = plumbing("")
    sample_tokens: int = plumbing(0, minimum=0)


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
    init_state: str | None = None

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
