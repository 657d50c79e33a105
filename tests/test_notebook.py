"""What `import bigjax` costs and offers: the lines of its docstring run as they stand, on one device and on a mesh."""

import doctest
import importlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import bigjax
from bigjax.config import Config, MeshConfig, ModelConfig, TrainConfig
from bigjax.errors import UserError
from bigjax.sharding import ShardingError
from tests.commands import ROOT
from tests.conftest import mesh_of

FAMILIES = {
    "decoder": ({}, (8, 16, 64)),
    "rnn": ({"family": "rnn"}, (8, 16, 64)),
    "encoder": ({"family": "encoder"}, (8, 16, 64)),
    "classes": ({"family": "encoder", "head": "classification", "num_classes": 3}, (8, 3)),
    "tags": ({"family": "encoder", "head": "token_classification", "num_classes": 5}, (8, 16, 5)),
    "encdec": ({"family": "encdec", "positions": "sinusoidal"}, (8, 12, 64)),
}
SMALL = {"vocab_size": 64, "num_layers": 1, "d_model": 32, "num_heads": 2, "d_ff": 64}


def run_docstring():
    runner, said = doctest.DocTestRunner(), []
    [found] = doctest.DocTestFinder(recurse=False).find(bigjax, "bigjax", globs={})
    assert len(found.examples) > 15
    runner.run(found, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.exhaustive
def test_the_lines_of_the_docstring_run_on_one_device(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_docstring()


def test_the_lines_of_the_docstring_run_on_a_mesh(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.set_mesh(mesh_of(fsdp=4, tensor=2)[1]):
        run_docstring()


def test_importing_bigjax_is_cheap_and_says_what_it_offers():
    program = """if True:
        import json, sys, time
        before, start = set(sys.modules), time.process_time()
        import bigjax
        spent, added = time.process_time() - start, sorted(set(sys.modules) - before)
        print(json.dumps([spent, added, dir(bigjax), bigjax.__version__]))
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    seconds, added, names, version = json.loads(done.stdout)
    assert seconds < 0.3 and not {"jax", "numpy", "absl", "ml_collections", "importlib.metadata"} & set(added)
    assert {"load_config", "make_mesh", "generate", "import_checkpoint", "models", "train", "__version__"} <= set(names)
    assert version == bigjax.__version__


def test_all_that_it_offers_is_there():
    for name in dir(bigjax):
        assert getattr(bigjax, name) is not None
    assert bigjax.models is importlib.import_module("bigjax.models")
    with pytest.raises(AttributeError, match="module 'bigjax' has no attribute 'trian'"):
        _ = bigjax.trian


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", FAMILIES)
def test_init_and_apply_of_every_family_are_the_same_on_a_mesh(name):
    fields, shape = FAMILIES[name]
    model = bigjax.models.build(ModelConfig(**SMALL, **fields))
    tokens = np.random.default_rng(0).integers(64, size=(8, 16))
    inputs = {"inputs_BT": tokens[:, :12]} if name == "encdec" else {}
    forward = lambda: jax.jit(model.apply)(jax.jit(model.init)(jax.random.key(0)), tokens, **inputs)  # noqa: E731
    alone = forward()
    assert alone.shape == shape and alone.dtype == np.float32
    with jax.set_mesh(mesh_of(fsdp=4, tensor=2)[1]):
        # Sums of at most 64 terms below 10 in another order: 64 * 10 * 2**-24 of float32, if all errors add up.
        np.testing.assert_allclose(forward(), alone, atol=4e-5)


def test_imported_numpy_parameters_go_to_their_place_on_the_mesh():
    model = bigjax.models.build(ModelConfig(**SMALL))
    params = jax.device_get(model.init(jax.random.key(0)))
    assert isinstance(model.place(params)["embed"]["tokens"], jax.Array)
    with jax.set_mesh(mesh_of(fsdp=4, tensor=2)[1]):
        placed = model.place(params)["embed"]["tokens"]
        assert placed.sharding.spec == jax.P("tensor", "fsdp") and placed.addressable_data(0).shape == (32, 8)
        np.testing.assert_array_equal(placed, params["embed"]["tokens"])


def test_a_step_says_what_does_not_fit():
    cfg = Config(model=ModelConfig(**SMALL), train=TrainConfig(global_batch_size=8), mesh=MeshConfig(fsdp=4))
    with pytest.raises(ShardingError, match=r"^mesh.fsdp=4, but no mesh is set: use jax.set_mesh\(bigjax.make_mesh"):
        bigjax.train.build(cfg)
    _, step = bigjax.train.build(bigjax.config.replace(cfg, mesh={"fsdp": 1}))
    batch = {"tokens": np.zeros((4, 16), np.int32)}
    with pytest.raises(ShardingError, match=r"batch array tokens has 4 rows, not 8, of train\.global_batch_size=8"):
        step(None, batch)
    with (
        jax.set_mesh(jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))),
        pytest.raises(ShardingError, match=r"has the axes \('x',\): make it with bigjax.make_mesh"),
    ):
        bigjax.models.build(cfg.model).init(jax.random.key(0))


def test_a_config_is_changed_as_by_flags(tmp_path):
    cfg = bigjax.load_config("quickstart", {"train.steps": 60, "model.d_model": 64, "optim.grad_clip": None})
    assert (cfg.train.steps, cfg.model.d_model, cfg.optim.grad_clip) == (60, 64, None)
    assert bigjax.load_config(ROOT / "configs" / "gpt.py").model == bigjax.load_config("gpt").model
    with pytest.raises(UserError, match=r"^quickstart: optim.lrr is not a field of the config: did you mean optim.lr"):
        bigjax.load_config("quickstart", {"optim.lrr": 1})
    text = "from bigjax.config import Config, strict\ndef get_config(): return strict.to_config_dict(Config())"
    (tmp_path / "plain.py").write_text(text)
    gru = {"model.family": "rnn", "model.rnn.cell": "gru"}  # a field of a section that the family brings
    assert bigjax.load_config(tmp_path / "plain.py", gru).model.rnn.cell == "gru"
    with pytest.raises(UserError, match=r"^quickstart: optim.lr=True is a bool"):
        bigjax.load_config("quickstart", {"optim.lr": True})
