"""Random combinations of options that are each allowed: refused in a sentence before the first step, or traced."""

import typing

import jax
import pytest
from hypothesis import strategies as st

from bigjax import data, models, sharding
from bigjax.config import Config, strict
from bigjax.config import fields as schema
from bigjax.train import optimizers as optim
from bigjax.train import step
from experiments import finish
from tests.fuzzing import attempt, lengths, search

PATHS = schema.field_paths(Config)
FREE = ("model.", "train.", "optim.", "guard.", "mesh.", "data.")
FIXED = ("data.sources", "data.eval_sources", "data.tokenizer", "data.cache_dir", "model.attention")
OPTIONS = [path for path in PATHS if path.startswith(FREE) and path not in FIXED]
TINY = {
    "model": {"vocab_size": 512, "num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 32, "max_seq_len": 32},
    "data": {"seq_len": 16, "holdout": 0.2},
    "train": {"steps": 4, "global_batch_size": 8},
}
FAMILIES = {
    "decoder": ({}, {"objective": "causal_lm"}, {}),
    "encoder": ({"positions": "learned"}, {"objective": "masked_lm"}, {}),
    "encdec": ({"positions": "sinusoidal"}, {"objective": "seq2seq"}, {"target_len": 16}),
    "rnn": ({}, {"objective": "causal_lm"}, {}),
}


@st.composite
def option(draw: st.DrawFn, path: str):
    """Return a value of a field that its own declaration allows, or nearly."""
    inner, optional = schema.unwrap_optional(PATHS[path][0])
    if optional and draw(st.integers(0, 2)) == 0:
        return None
    if typing.get_origin(inner) is typing.Literal:
        return draw(st.sampled_from(typing.get_args(inner)))
    if typing.get_origin(inner) is tuple:
        kind = typing.get_args(inner)[0]
        return draw(st.lists(st.integers(0, 4) if kind is int else st.just(kind()), max_size=2))
    if inner is str:
        return draw(st.sampled_from(("none", "full", "dots", "save:attn", "text", "label", "")))
    return draw(
        {
            bool: st.booleans(),
            int: st.sampled_from((1, 2, 2, 3, 4, 8, 0)),
            float: st.sampled_from((0.0, 0.1, 0.5, 1.0, 2.0)),
        }[inner]
    )


@st.composite
def configs(draw: st.DrawFn) -> dict:
    """Return a tiny run of some family with up to five options changed."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    extra = dict(zip(("model", "train", "data"), FAMILIES[family], strict=True))
    found = {name: fields | extra[name] for name, fields in TINY.items()}
    found["model"]["family"] = family
    kernels = st.sampled_from(("reference", "reference", "blocked", "xla"))
    found["model"]["attention"] = "reference" if family == "rnn" else draw(kernels)
    for path in draw(st.sets(st.sampled_from(OPTIONS), max_size=5)):
        section, _, name = path.partition(".")
        node = found.setdefault(section, {})
        *inner, name = name.split(".")
        for each in inner:
            node = node.setdefault(each, {})
        node[name] = draw(option(path))
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A table with a column for every objective, and a cache."""
    folder = tmp_path_factory.mktemp("fuzz")
    verses = [f"Shall I compare thee to summer's day number {n}? Thou art more lovely." for n in range(60)]
    lines = [f"{verse},{'abc'[n % 3]},{verse[::-1]}" for n, verse in enumerate(verses)]
    (folder / "corpus.csv").write_text("\n".join(["text,label,target", *lines]))
    return folder


@lengths(6, 250)
def test_options(count, corpus, record_property):
    def case(mapping):
        where = {"sources": [f"csv:{corpus}/corpus.csv"], "cache_dir": f"{corpus}/cache"}
        mapping["data"] |= where
        with attempt():
            cfg = strict.from_dict(Config, mapping)
            trace(cfg)

    search(count, case, configs())
    record_property("fuzz_cases", count)


def trace(cfg: Config) -> None:
    """Do what the launcher does before anything compiles."""
    mesh = sharding.make_mesh(cfg.mesh)
    model = models.build(cfg.model)
    layout = sharding.fit(cfg, mesh, model.specs)
    batch_size = cfg.train.global_batch_size
    text = data.build(cfg, sharding.local_rows(mesh, batch_size))
    finish.check_sample(cfg, model, text)
    with jax.set_mesh(mesh):
        schedule = optim.schedule(cfg.optim, cfg.train.steps, text.train.ramp)
        tx = optim.build(cfg.optim, model.specs, cfg.train.steps, schedule)
        abstract = step.abstract_state(cfg, model, tx, layout, mesh)
        batch = sharding.put_batch(text.train.batch(0).arrays, mesh, batch_size)
        step.jit_train_step(cfg, model, tx, layout).trace(abstract, batch)
