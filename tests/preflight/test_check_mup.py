"""The coordinate check: flat under muP for every family and optimizer, and not when one rule is broken."""

import json

import pytest

from bigjax.config import Config, replace, strict
from bigjax.models.parts import mup
from bigjax.preflight import widths
from experiments.config_source import load

WIDTHS = (64, 256)
FAMILIES = {
    "decoder": "configs/quickstart.py",
    "encoder": "configs/bert.py:base",
    "classes": "configs/finetune_classification.py",
    "encoder-decoder": "configs/transformer.py",
    "experts": "configs/moe_tiny.py",
}


def config(family: str, optimizer: str = "adam") -> Config:
    """Return the config of a family, trained by an optimizer, without multipliers of its own, which muP refuses."""
    cfg = strict.from_dict(Config, load(FAMILIES[family]))
    return replace(cfg, model={"scale_embeddings": False}, optim={"name": optimizer, "weight_decay": 0.0})


def uneven(cfg: Config) -> dict[str, list[str]]:
    """Return what is not flat under muP."""
    return widths.over_widths(cfg, "mup", WIDTHS, steps=3, seeds=4).uneven()


@pytest.mark.parametrize(
    ("family", "optimizer"),
    [
        ("decoder", "adam"),
        *(pytest.param(name, "adam", marks=pytest.mark.exhaustive) for name in FAMILIES if name != "decoder"),
        *(pytest.param("decoder", name, marks=pytest.mark.exhaustive) for name in ("sgd", "muon")),
    ],
)
def test_flat_under_mup(family, optimizer):
    assert not uneven(config(family, optimizer))


def test_heads_that_grow_in_size_have_queries_as_large_as_keys():
    """The 1/d of attention is a factor on scores: what is measured and called a query has not got it yet."""
    cfg = config("decoder")
    base = {"mup.base_d_model": cfg.model.d_model, "mup.base_head_dim": cfg.model.head_dim}
    cfg = replace(cfg, model={"parametrization": "mup", "qk_norm": False, **base})
    found = widths.over_widths(cfg, "mup", WIDTHS, steps=1, seeds=1)
    projected = {name: slope.start for name, slope in found.slopes.items() if name.startswith("qkv")}
    assert len(projected) == 6 and max(map(abs, projected.values())) < widths.TOLERANCE, projected


@pytest.mark.exhaustive
def test_not_flat_by_the_standard_parametrization():
    found = widths.over_widths(config("decoder"), "standard", WIDTHS, steps=3, seeds=4)
    assert found.slopes["logits"].change > 0.5 and len(found.uneven()) > len(found.slopes) / 2


def uneven_in_depth(cfg: Config) -> dict[str, list[str]]:
    """Return what is not flat in depth."""
    return widths.over_depths(cfg, "mup", (2, 8), 64, steps=4, seeds=2).uneven()


def in_depth(alpha: float, family: str = "decoder", optimizer: str = "adam") -> Config:
    """Return a config whose depth muP scales."""
    cfg = config(family, optimizer)
    shape = {"mup.base_d_model": cfg.model.d_model, "mup.base_num_layers": cfg.model.num_layers}
    place = {"norm_placement": "pre"} if cfg.model.norm_placement == "post" else {}
    return replace(cfg, model={"parametrization": "mup", "mup.depth_alpha": alpha, **shape, **place})


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("alpha", "family", "optimizer"),
    [
        (1.0, "decoder", "adam"),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in (
                (0.5, "decoder", "adam"),
                (1.0, "decoder", "sgd"),
                (1.0, "decoder", "muon"),
                (1.0, "encoder", "adam"),
                (1.0, "encoder-decoder", "adam"),
                (1.0, "experts", "adam"),
            )
        ),
    ],
)
def test_flat_in_depth(alpha, family, optimizer):
    assert not uneven_in_depth(in_depth(alpha, family, optimizer))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("optimizer", "rule"),
    [("adam", "residual_scale"), pytest.param("sgd", "learning_rate", marks=pytest.mark.exhaustive)],
)
def test_a_broken_rule_of_depth_is_not_flat(optimizer, rule, monkeypatch):
    monkeypatch.setattr(mup, rule, lambda *_: 1.0)
    assert uneven_in_depth(in_depth(1.0, optimizer=optimizer))


BROKEN = {
    "output multiplier": ("width", lambda cfg: 1.0),
    "initial values": ("init_scale", lambda *_: 1.0),
    "learning rates": ("learning_rate", lambda *_: 1.0),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "rule", [next(iter(BROKEN)), *(pytest.param(rule, marks=pytest.mark.exhaustive) for rule in list(BROKEN)[1:])]
)
def test_a_broken_rule_is_not_flat(rule, monkeypatch):
    name, wrong = BROKEN[rule]
    monkeypatch.setattr(mup, name, wrong)
    assert uneven(config("decoder"))


@pytest.mark.exhaustive
def test_the_command(call_check, tmp_path):
    out, plot = tmp_path / "mup.json", tmp_path / "mup.png"
    small = ("--widths=32,64", "--steps=1", "--seeds=1")
    status, said, _ = call_check("mup", f"--config={FAMILIES['decoder']}", *small, f"--out={out}", f"--plot={plot}")
    found = json.loads(out.read_text())
    assert status == (4 if found["uneven"]["width"] else 0) and "logits" in said and plot.stat().st_size > 10_000
    assert [one["parametrization"] for one in found["growth"]] == ["standard", "mup"]
    assert len(found["growth"][0]["sizes"]) == 2


POST_NORM = ("--config=configs/transformer.py", "--config.model.scale_embeddings=false")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config=configs/rnn.py",), "model.parametrization='mup' has no rules for model.family='rnn'"),
        (("--config=configs/quickstart.py", "--config.optim.name=lion"), "no rule for optim.name='lion'"),
        (("--config=configs/quickstart.py", "--widths=64"), "at least two"),
        (("--config=configs/quickstart.py", "--widths=64,100"), "100 must be at least 32, and a multiple of 16"),
        (("--config=configs/quickstart.py", "--widths=64,wide"), "must be whole numbers"),
        (("--config=configs/quickstart.py", "--plot=mup.pdf"), "must end in .png or .svg"),
        (("--config=configs/gemma.py:2b", "--depths=2,5"), "5 is not a multiple of 2, after which the layers repeat"),
        ((*POST_NORM, "--depths=2,4"), "no rules of depth for model.norm_placement='post'"),
    ],
)
def test_mistakes_are_one_sentence(call_check, arguments, message):
    status, _, said = call_check("mup", *arguments)
    assert status == 2 and message in said and len(said.splitlines()) == 1
