"""Fields that are `auto`: what devices make of them, and that a value that is given stays."""

import importlib
import re
import types
from pathlib import Path

import jax
import pytest

from bigjax import config
from bigjax.config import Config, auto, strict
from bigjax.errors import UserError
from bigjax.models.attention import backends
from bigjax.preflight.plan import candidates, defaults, devices
from experiments import cli, config_source

ROOT = Path(__file__).parents[2]
FAMILIES = ("llama", "gpt", "gemma", "mistral", "qwen", "mixtral", "gshard", "bert", "t5")
SMALLEST = re.compile(r"(\S+) on (v\w+:[\dx]+)")


def smallest(name: str) -> dict[str, str]:
    """Return the smallest slice that the docstring of a config file names for each of its arguments."""
    said = importlib.import_module(f"configs.{name}").__doc__ or ""
    _, _, sentence = " ".join(said.split()).partition("As shipped it fits")
    return dict(SMALLEST.findall(sentence.partition(", by the analytic model")[0]))


def named() -> list:
    """Return every config and its slice; by default only the first of each file is tried."""
    cases = []
    for name in FAMILIES:
        for nth, (argument, where) in enumerate(smallest(name).items()):
            marks = [pytest.mark.exhaustive] if nth or name in ("gshard", "mixtral", "t5") else []
            cases.append(pytest.param(f"{name}:{argument}", where, marks=marks))
    return cases


def test_every_named_family_names_its_slices():
    assert all(smallest(name) for name in FAMILIES)


@pytest.mark.parametrize(("source", "where"), named())
def test_a_named_config_fits_its_slice_and_is_near_the_best_plan(source, where):
    topology = devices.parse(where)
    cfg, chosen = defaults.resolved(config_source.load_config(source), topology)
    assert set(auto.PLAIN) <= set(chosen) and not auto.unresolved(cfg)
    plan = candidates.candidate(cfg, {}, topology)
    limit = defaults.ROOM * topology.chip.hbm_bytes
    assert plan.needed_bytes_per_chip <= limit
    fitting = [one for one in candidates.variants(cfg, topology) if one.needed_bytes_per_chip <= limit]
    assert plan.rank[0] <= 1.05 * min(one.rank[0] for one in fitting)  # by what a search sorts


def test_on_a_cpu_all_is_plain():
    cfg, chosen = defaults.resolved(config_source.load_config("gpt:d12"), devices.parse("cpu:8"))
    assert chosen == auto.PLAIN and cfg == auto.plain(cfg)
    assert (cfg.model.attention, cfg.model.remat, cfg.train.loss_chunks) == ("reference", "none", 1)
    assert defaults.notes(chosen) == ()
    assert (
        config_source.load_config("gpt:d12").mesh.sizes["data"] == -1
    )  # all devices, unless the config says otherwise


GIVEN = {
    "model.attention": "blocked",
    "model.remat": "full",
    "train.microbatches": 8,
    "train.loss_chunks": 2,
    "mesh.fsdp": 2,
    "mesh.shard_sequence": False,
}


@pytest.mark.parametrize("path", GIVEN)
def test_what_is_given_stays(path):
    cfg = candidates.apply(config_source.load_config("gpt:d12"), {path: GIVEN[path]})
    found, chosen = defaults.resolved(cfg, devices.parse("v5e:2x2"))
    section, _, name = path.partition(".")
    assert getattr(getattr(found, section), name) == GIVEN[path] and path not in chosen
    assert set(auto.PLAIN) - {path} <= set(chosen)


def test_a_mesh_that_is_given_in_part_keeps_its_axes():
    cfg = config.replace(config_source.load_config("gpt:d12"), mesh={"tensor": 2})
    found, chosen = defaults.resolved(cfg, devices.parse("v5e:4x4"))
    assert found.mesh.tensor == 2 and found.mesh.sizes["fsdp"] in (1, 2, 4, 8)
    assert chosen["mesh.shard_sequence"] is True
    found, chosen = defaults.resolved(config.replace(cfg, mesh={"tensor": 2, "data": 8}), devices.parse("v5e:4x4"))
    assert chosen["mesh.fsdp"] == 1


@pytest.mark.parametrize(
    ("changes", "where", "attention", "chunks"),
    [
        ({}, "v5e:2x2", "splash", 8),
        ({}, "h100:1x4", "cudnn", 8),
        ({"model.dtype": "float32"}, "h100:1x4", "blocked", 8),
        ({"data.seq_len": 1000}, "v5e:2x2", "blocked", 8),  # no multiple of 128
        ({"model.dropout": 0.1}, "v5e:2x2", "reference", 8),
        ({"data.seq_len": 900}, "v5e:2x2", "blocked", 1),  # no multiple of 8
    ],
    ids=str,
)
def test_attention_and_loss_are_what_the_platform_and_the_layers_allow(changes, where, attention, chunks):
    cfg = candidates.apply(config_source.load_config("gpt:d12"), changes)
    found, _ = defaults.resolved(cfg, devices.parse(where))
    assert (found.model.attention, found.train.loss_chunks) == (attention, chunks)


def test_a_batch_that_no_mesh_divides_is_named():
    changes = {"train.global_batch_size": 3, "mesh.data": 4}
    cfg = candidates.apply(config_source.load_config("bert:base"), changes)
    with pytest.raises(UserError, match=r"train.global_batch_size=3"):
        defaults.resolved(cfg, devices.parse("v5e:2x2"))


def test_devices_without_figures_get_what_needs_none():
    unknown = types.SimpleNamespace(platform="tpu", device_kind="TPU v99")
    cfg, chosen = defaults.here(config_source.load_config("gpt:d12"), [unknown])
    assert chosen == auto.PLAIN | {"model.attention": "splash"}
    assert defaults.notes(chosen) == ("auto: model.attention=splash",) and cfg.model.attention == "splash"


def test_what_is_only_used_need_not_suit_the_batch():
    chips = [types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite") for _ in range(8)]
    cfg = candidates.apply(config_source.load_config("bert:base"), {"train.global_batch_size": 3})
    with pytest.raises(UserError, match=r"train.global_batch_size=3"):
        defaults.here(cfg, chips)
    used = defaults.for_use(cfg, chips)
    assert used == candidates.apply(auto.plain(cfg), {"model.attention": "auto"})
    assert defaults.for_use(config_source.load_config("gpt:d12"), chips).model.attention == "splash"


def test_the_model_alone_takes_the_attention_of_its_platform():
    asked = {"segments": True, "window": None, "softcap": None, "dropout": 0.0, "dtype": "bfloat16"}
    assert backends.first_able("tpu", 1024, 128, **asked) == "splash"
    assert backends.first_able("tpu", 1000, 128, **asked) == "blocked"
    assert backends.first_able("gpu", 1024, 128, **asked) == "cudnn"
    assert backends.first_able("gpu", 1024, 100, **asked) == "blocked"
    assert backends.first_able("tpu", 1024, 128, **asked, causal=False) == "splash"
    assert backends.first_able("tpu", 1024, 128, **asked | {"dropout": 0.1}) == "reference"
    assert (
        backends.first_able("cpu", 1024, 128, **asked) == backends.first_able(None, 1024, 128, **asked) == "reference"
    )
    assert jax.default_backend() == "cpu"


@pytest.mark.parametrize(
    ("flag", "section", "name", "value"),
    [
        ("--config.train.loss_chunks=auto", "train", "loss_chunks", "auto"),
        ("--config.train.loss_chunks=8", "train", "loss_chunks", 8),
        ("--config.train.microbatches=2", "train", "microbatches", 2),
        ("--config.mesh.fsdp=-1", "mesh", "fsdp", -1),
        ("--config.mesh.fsdp=auto", "mesh", "fsdp", "auto"),
        ("--config.mesh.shard_sequence=auto", "mesh", "shard_sequence", "auto"),
        ("--noconfig.mesh.shard_sequence", "mesh", "shard_sequence", False),
        ("--config.mesh.shard_sequence=False", "mesh", "shard_sequence", False),
        ("--config.model.attention=auto", "model", "attention", "auto"),
        ("--config.model.remat=auto", "model", "remat", "auto"),
    ],
)
def test_flags_set_both_types(flag, section, name, value):
    found = []
    cli.main(lambda flags: found.append(cli.load_config(flags.config)), doc="", argv=["x", "--config=gpt:d12", flag])
    assert getattr(getattr(found[0], section), name) == value


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.train.loss_chunks=some", "train.loss_chunks='some' is a str, expected an int at least 1 or 'auto'"),
        (
            "--config.train.microbatches=0",
            "train.microbatches=0 is out of bounds, expected an int at least 1 or 'auto'",
        ),
        ("--config.mesh.shard_sequence=3", "mesh.shard_sequence=3 is an int, expected a bool or 'auto'"),
    ],
)
def test_other_values_are_refused_with_both_types(flag, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(lambda flags: cli.load_config(flags.config) and 0, doc="", argv=["x", "--config=gpt:d12", flag])
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_a_switch_may_stand_alone():
    found = []
    argv = ["x", "--config=gpt:d12", "--config.mesh.shard_sequence", "--config.mesh.tensor=2"]
    cli.main(lambda flags: found.append(cli.load_config(flags.config)), doc="", argv=argv)
    assert found[0].mesh.shard_sequence is True and found[0].mesh.splits_sequence


def test_resolving_is_no_other_run():
    cfg = config_source.load_config("gpt:d12")
    assert strict.fingerprint(auto.plain(cfg)) == strict.fingerprint(cfg)
    assert strict.from_dict(Config, strict.to_config_dict(cfg)) == cfg
