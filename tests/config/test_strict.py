"""bigjax.config.strict: strict conversion, the identity of a config, and the ConfigDict that flags override."""

import dataclasses
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
from ml_collections import ConfigDict

from bigjax.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RopeConfig,
    TrainConfig,
    replace,
    strict,
)
from bigjax.config.strict import ConfigError, bounded, plumbing
from bigjax.errors import UserError

EVERYTHING = Config(
    model=ModelConfig(d_model=96, num_heads=6, num_kv_heads=2, positions="rotary", rope=RopeConfig(scaling="yarn")),
    data=DataConfig(sources=("text:a/*.txt", "shakespeare"), weights=(1.0, 2.5), cache_dir="/tmp/c"),
    train=TrainConfig(steps=10, global_batch_size=8, microbatches=2),
    optim=OptimConfig(lr=3e-4, grad_clip=None, ema_decay=0.999),
    mesh=MeshConfig(data=2, allow_replicated=("embed",)),
    init_from="runs/a",
)


def problems(**sections) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        strict.from_dict(Config, sections)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("cfg", [Config(), EVERYTHING], ids=["defaults", "everything"])
def test_round_trips(cfg):
    assert strict.from_dict(Config, json.loads(json.dumps(strict.to_dict(cfg)))) == cfg
    assert strict.from_dict(Config, strict.to_config_dict(cfg)) == cfg


def test_fields_left_out_take_their_default():
    assert strict.from_dict(Config, {}) == Config()
    assert strict.from_dict(Config, {"optim": {"lr": 2}}) == replace(Config(), optim={"lr": 2.0})


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("optim", "lr", "abc", "optim.lr='abc' is a str, expected a float above 0"),
        ("optim", "b1", True, "optim.b1=True is a bool, expected a float at least 0 and below 1"),
        ("train", "seed", True, "train.seed=True is a bool, expected an int at least 0 and at most 4294967295"),
        ("train", "steps", 1000.0, "train.steps=1000.0 is a float, expected an int at least 1"),
        ("model", "qk_norm", 1, "model.qk_norm=1 is an int, expected a bool"),
        ("data", "tokenizer", 3, "data.tokenizer=3 is an int, expected a str"),
        ("data", "sources", "shakespeare", "data.sources='shakespeare' is a str, expected a tuple of str"),
        ("data", "sources", ["a", 1], "data.sources[1]=1 is an int, expected a str"),
        ("data", "weights", (1, None), "data.weights[1]=None is not allowed, expected a float"),
        ("data", "weights", (True,), "data.weights[0]=True is a bool, expected a float"),
        ("optim", "lr", None, "optim.lr=None is not allowed, expected a float above 0"),
        ("optim", "lr", 0, "optim.lr=0.0 is out of bounds, expected a float above 0"),
        ("optim", "b2", 1.0, "optim.b2=1.0 is out of bounds, expected a float at least 0 and below 1"),
        (
            "optim",
            "end_lr_ratio",
            1.5,
            "optim.end_lr_ratio=1.5 is out of bounds, expected a float at least 0 and at most 1",
        ),
        ("optim", "grad_clip", -1.0, "optim.grad_clip=-1.0 is out of bounds, expected a float above 0 or None"),
        ("model", "sliding_window", 0, "model.sliding_window=0 is out of bounds, expected an int at least 1 or None"),
        ("mesh", "data", -2, "mesh.data=-2 is out of bounds, expected an int at least -1"),
        ("optim", "lr", math.nan, "optim.lr=nan is not finite, expected a float above 0"),
        ("optim", "lr", 10**400, "optim.lr=inf is not finite, expected a float above 0"),
        ("optim", "lr", 1e39, "optim.lr=1e+39 does not fit into 32 bits, expected a float above 0"),
        ("optim", "eps", 1e-60, "optim.eps=1e-60 does not fit into 32 bits, expected a float above 0"),
        ("train", "steps", 2**31, "train.steps=2147483648 does not fit into 32 bits, expected an int at least 1"),
        (
            "model",
            "layer_windows",
            [0, 2**31],
            "model.layer_windows[1]=2147483648 does not fit into 32 bits, expected an int at least 0",
        ),
        ("optim", "momentum_", 1, "optim.momentum_ is not a field of the config: did you mean optim.momentum?"),
        (
            "optim",
            "schedule",
            "cosin",
            "optim.schedule='cosin' is not one of 'constant', 'linear', 'cosine', 'wsd', 'inverse_sqrt': "
            "did you mean 'cosine'?",
        ),
        ("model", "norm", "none", "model.norm='none' is not one of 'layernorm', 'rmsnorm', 'rmsnorm_unit_offset'"),
        ("model", "rope", 3, "model.rope=3 is an int, expected a mapping of fields"),
        ("model", "rope", {"thta": 3}, "model.rope.thta is not a field of the config: did you mean model.rope.theta?"),
        (
            "model",
            "d_model",
            130,
            "model.d_model=130 is not divisible by model.num_heads=4: set model.num_heads=1, or model.head_dim",
        ),
    ],
)
def test_a_wrong_field_is_named(section, name, value, message):
    assert problems(**{section: {name: value}}) == [message]


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("optim.learning_rate", "optim.lr"),
        ("train.lr", "optim.lr"),
        ("lr", "optim.lr"),
        ("optimizer", "optim"),
        ("optim.wd", "optim.weight_decay"),
        ("train.batch_size", "train.global_batch_size"),
        ("model.n_layers", "model.num_layers"),
        ("model.theta", "model.rope.theta"),
        ("mesh.tensor_parallel", "mesh.tensor"),
        ("model.n_head", "model.num_heads"),
        ("checkpoint.every", "checkpoint.every_steps or model.moe.every"),
    ],
)
def test_an_unknown_field_gets_the_nearest_name_of_any_section(path, nearest):
    nested = 1
    for name in reversed(path.split(".")):
        nested = {name: nested}
    assert problems(**nested) == [f"{path} is not a field of the config: did you mean {nearest}?"]


def test_an_unknown_field_with_no_near_name_gets_the_list():
    (message,) = problems(log={"zzz": 1})
    assert message.endswith("log has every_steps, tensorboard, plot, sample_prompt, sample_tokens")


def test_all_problems_are_reported_at_once():
    found = problems(optim={"lr": "a", "b1": 2.0}, train={"lr": 3}, data={"sources": [1, "a", 2]})
    assert [line.split("=")[0].split(" ")[0] for line in found] == [
        "optim.lr",
        "optim.b1",
        "train.lr",
        "data.sources[0]",
        "data.sources[2]",
    ]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"num_layers": 3, "layer_windows": [8, 0]},
            "model.num_layers=3 is not a multiple of the 2 layers that model.layer_windows=(8, 0) describes: set "
            "model.num_layers=2 or 4",
        ),
        (
            {"sliding_window": 8, "layer_windows": [8, 0]},
            "model.sliding_window=8 and model.layer_windows=(8, 0) both set the windows: leave one of them out",
        ),
        ({"layer_windows": [8, -1]}, "model.layer_windows[1]=-1 is out of bounds, expected an int at least 0"),
    ],
    ids=str,
)
def test_windows_of_layers_must_fit_the_model(model, message):
    assert problems(model=model) == [message]


def test_an_encoder_has_no_windows():
    # They count back from each query: of the back ends, some would have seen all that comes after it, others nothing.
    said = problems(model={"family": "encoder", "sliding_window": 8}, train={"objective": "masked_lm"})
    assert said == [
        "model.family='encoder' attends to whole rows, windows only look back: leave out sliding_window or "
        "layer_windows (8)"
    ]


def test_windows_of_layers_repeat():
    assert ModelConfig(num_layers=4, layer_windows=(8, 0)).windows == (8, None, 8, None)
    assert ModelConfig(num_layers=2, sliding_window=8).windows == (8, 8)
    assert ModelConfig(num_layers=2).windows == (None, None)


def test_a_clash_between_fields_is_a_config_error():
    assert problems(train={"microbatches": 3}) == [
        "train.global_batch_size=16 is not divisible by train.microbatches=3: set train.microbatches=1"
    ]
    assert problems(optim={"nesterov": True}) == [
        "optim.nesterov=True is only read by optim.name='sgd', not 'adamw': set optim.nesterov=False"
    ]
    assert problems(model={"token_types": 2, "mup": {"depth_alpha": 0.5}}) == [
        "model.token_types=2 is for model.family='encoder', not 'decoder'",
        "model.mup.depth_alpha=0.5 is only read by model.parametrization='mup'",
    ]


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"theta": 1}, "model.rope.theta=1.0 is out of bounds, expected a float above 1"),
        (
            {"scaling": "llama3", "low_freq_factor": 4},
            "model.rope.low_freq_factor=4.0 is not below model.rope.high_freq_factor=4.0, as "
            "model.rope.scaling='llama3' needs",
        ),
        (
            {"scaling": "yarn", "beta_fast": 1, "beta_slow": 32},
            "model.rope.beta_slow=32.0 is not below model.rope.beta_fast=1.0, as model.rope.scaling='yarn' needs",
        ),
    ],
    ids=str,
)
def test_scaled_frequencies_must_have_a_range_in_between(rope, message):
    assert problems(model={"positions": "rotary", "rope": rope}) == [message]


def test_config_error_is_a_user_error_and_a_value_error():
    assert issubclass(ConfigError, UserError)
    assert issubclass(ConfigError, ValueError)
    assert ConfigError.exit_code == 2


def test_to_dict_is_json_ready():
    as_dict = strict.to_dict(replace(EVERYTHING, optim={"lr": 1}))
    assert as_dict["data"]["sources"] == ["text:a/*.txt", "shakespeare"]
    assert type(as_dict["optim"]["lr"]) is float
    assert as_dict["optim"]["grad_clip"] is None
    assert as_dict["init_from"] == "runs/a"


def test_maths_leaves_plumbing_out():
    fields = strict.maths(Config())
    assert set(fields) == {"model", "data", "train", "optim", "guard", "init_from", "init_state"}
    assert "attention" not in fields["model"]
    assert "microbatches" not in fields["train"]
    assert fields["optim"]["lr"] == 1e-3


def test_fingerprint_sees_maths_fields_only():
    cfg = Config()
    assert strict.fingerprint(replace(cfg, mesh={"tensor": 2}, train={"microbatches": 4})) == strict.fingerprint(cfg)
    assert strict.fingerprint(replace(cfg, train={"seed": 1})) != strict.fingerprint(cfg)


def test_fingerprint_does_not_depend_on_how_a_number_is_written():
    ways = [replace(Config(), optim={"lr": 1, "weight_decay": x}) for x in (0, 0.0, -0.0)]
    ways.append(replace(Config(), optim={"lr": 1.0, "weight_decay": 0.0}))
    assert len({strict.fingerprint(cfg) for cfg in ways}) == 1
    assert strict.fingerprint(replace(Config(), model={"d_ff": 1024})) == strict.fingerprint(Config())


@dataclass(frozen=True)
class _Inner:
    rate: float = bounded(0.1, above=0)
    names: tuple[str, ...] = ("é",)
    path: str | None = plumbing(None)


@dataclass(frozen=True)
class _Outer:
    inner: _Inner = field(default_factory=_Inner)
    kind: Literal["a", "b"] = "a"
    limit: float | None = None


def test_fingerprint_is_the_hash_of_canonical_json():
    # printf %s '{"inner":{"names":["\u00e8","b"],"rate":0.2},"kind":"b"}' | sha256sum
    assert strict.fingerprint(_Outer(_Inner(0.2, ("è", "b"), "elsewhere"), "b")) == "aae984617895d143"


def test_fingerprint_leaves_out_what_is_at_its_default():
    # printf %s '{}' | sha256sum
    assert strict.fingerprint(_Outer()) == strict.fingerprint(_Outer(_Inner(path="elsewhere"))) == "44136fa355b3678a"


def test_fingerprint_is_the_same_in_another_process():
    code = "from bigjax.config import Config, strict; print(strict.fingerprint(Config()))"
    command = [sys.executable, "-W", "error", "-R", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == strict.fingerprint(
        Config()
    )


def test_diff_names_each_field_and_its_kind():
    changed = replace(Config(), optim={"lr": 0.5, "grad_clip": None}, mesh={"tensor": 2})
    assert strict.diff(Config(), changed) == [
        ("optim.lr", 1e-3, 0.5, False),
        ("optim.grad_clip", 1.0, None, False),
        ("mesh.tensor", 1, 2, True),
    ]
    assert strict.diff(Config(), replace(Config(), optim={"lr": 0.001})) == []
    with pytest.raises(TypeError, match="cannot compare a Config with a _Outer"):
        strict.diff(Config(), _Outer())


def test_config_dict_is_locked_and_typed():
    config = strict.to_config_dict(Config())
    assert isinstance(config, ConfigDict)
    with pytest.raises(AttributeError):
        config.optim.lrr = 1.0
    with pytest.raises(TypeError):
        config.train.steps = 1.5
    config.optim.lr = 1
    assert type(config.optim.lr) is float
    assert config.data.sources == ("shakespeare",)


def test_config_dict_fields_that_may_be_none_keep_their_type():
    config = strict.to_config_dict(Config())
    config.optim.ema_decay = 0.99
    config.model.sliding_window = 128
    config.optim.grad_clip = None
    cfg = strict.from_dict(Config, config)
    assert (cfg.optim.ema_decay, cfg.model.sliding_window, cfg.optim.grad_clip) == (0.99, 128, None)
    with pytest.raises(TypeError):
        config.data.cache_dir = 3


def test_derived_fields_follow_what_they_are_derived_from():
    config = strict.to_config_dict(Config(model=ModelConfig(d_model=256, num_heads=4, num_kv_heads=4, d_ff=1024)))
    config.model.d_model, config.model.num_heads = 512, 16
    model = strict.from_dict(Config, config).model
    assert (model.head_dim, model.num_kv_heads, model.d_ff) == (32, 16, 2048)


def test_fields_that_differ_from_the_derivation_stay_put():
    config = strict.to_config_dict(Config(model=ModelConfig(d_model=256, num_heads=4, num_kv_heads=2, d_ff=700)))
    config.model.d_model = 512
    model = strict.from_dict(Config, config).model
    assert (model.num_kv_heads, model.d_ff) == (2, 700)


def test_every_default_satisfies_its_own_declaration():
    for section in dataclasses.fields(Config):
        value = getattr(Config(), section.name)
        if dataclasses.is_dataclass(value):
            assert strict.from_dict(type(value), strict.to_dict(value)) == value
