"""`experiments.check equivalence --against=hf`: sound models pass, and bugs planted in our code are caught by name."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="the comparison is with PyTorch")

from bigjax import config
from bigjax.config import Config, DataConfig, TrainConfig
from bigjax.interop import hf
from bigjax.models import decoder, encoder
from bigjax.preflight.equivalence import against_hf
from bigjax.preflight.equivalence import compare as equivalence
from bigjax.sharding import Layout
from tests.interop.test_hf_weights import BERT, CASES, LLAMA, T5, T5_V1_1, random_params


def small(case: str) -> Config:
    """Return a run of the model of a case, with a chunked loss, microbatches and what PyTorch's loss does not have."""
    return Config(
        model=CASES[case][1],
        data=DataConfig(seq_len=16),
        train=TrainConfig(global_batch_size=4, microbatches=2, loss_chunks=2, z_loss=1e-3, label_smoothing=0.1),
    )


def against(case: str) -> equivalence.Check:
    """Return the check of a case, with parameters far from their initial values."""
    expected = equivalence.reference(against_hf.comparable(small(case)))
    return against_hf.compare(expected)


@pytest.mark.sample
@pytest.mark.parametrize("case", ["gpt2", "llama, tied, yarn", "gemma2", "mixtral"])
def test_sound_models_pass(case):
    found = against(case)
    assert found.status == "same", found
    # A bound that nothing comes near would find nothing; one that all come near would cry wolf.
    assert 1e-3 < found.largest_ratio < 0.5, found


ENCODERS = {
    "bert": ("masked_lm", BERT),
    "bert that tells classes apart": (
        "classification",
        dataclasses.replace(BERT, head="classification", num_classes=3),
    ),
    "t5": ("span_corruption", T5),
    "t5 v1.1": ("seq2seq", T5_V1_1),
}
"""Name -> objective and model of encoders and encoder-decoders."""


def reference_of(name: str) -> equivalence.Reference:
    objective, model = ENCODERS[name]
    data = DataConfig(seq_len=16, target_len=12 if model.family == "encdec" else 0)
    train = TrainConfig(objective=objective, global_batch_size=4, microbatches=2, label_smoothing=0.1, loss_chunks=1)
    return equivalence.reference(against_hf.comparable(Config(model=model, data=data, train=train)))


EVERY_TIME = ("bert that tells classes apart", "t5 v1.1")
OTHERS = [pytest.param(name, marks=pytest.mark.exhaustive) for name in ENCODERS if name not in EVERY_TIME]


@pytest.mark.sample
@pytest.mark.parametrize("name", [*EVERY_TIME, *OTHERS])
def test_encoders_and_encoder_decoders_pass(name):
    found = against_hf.compare(reference_of(name))
    assert found.status == "same", found
    assert 1e-3 < found.largest_ratio < 0.5, found


def test_an_encoder_that_reads_padding_is_seen_in_the_logits(monkeypatch):
    sound = encoder.apply

    def broken(params, tokens, cfg, *, segments_BS, **others):
        return sound(params, tokens, cfg, segments_BS=jnp.ones_like(segments_BS), **others)

    monkeypatch.setattr(encoder, "apply", broken)
    first, *_ = against_hf.compare(reference_of("bert")).differences
    assert first.what == "output logits"


def test_a_causal_mask_that_forgets_the_window_is_seen_in_the_logits(monkeypatch):
    sound = decoder.apply

    def broken(params, tokens, cfg, **others):
        return sound(params, tokens, dataclasses.replace(cfg, sliding_window=None), **others)

    monkeypatch.setattr(decoder, "apply", broken)
    first, *others = against("mistral").differences
    assert first.what == "output logits"
    assert {one.quantity for one in others} == {"mean", "gradient"}


def test_a_gradient_off_by_a_factor_is_named_alone(monkeypatch):
    gather = Layout.gather

    @jax.custom_vjp
    def doubled(w):
        return w

    doubled.defvjp(lambda w: (w, None), lambda _, g: (2 * g,))

    def broken(self, params, specs, dtype):
        used = gather(self, params, specs, dtype)
        if isinstance(used, dict) and "mlp" in used:
            used["mlp"]["up"] = doubled(used["mlp"]["up"])
        return used

    monkeypatch.setattr(Layout, "gather", broken)
    found = against("llama, tied, yarn")
    assert [one.what for one in found.differences] == ["gradient blocks/mlp/up"]


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder of a small Llama, whose padding token, untrained by transformers, is in the text."""
    hf.export_checkpoint(random_params(LLAMA), LLAMA, tmp_path / "llama")
    path = tmp_path / "llama" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": 0}))
    return tmp_path / "llama"


def test_the_command_takes_a_folder_as_it_is(call_check, folder, tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    asked = ("equivalence", f"--against=hf:{folder}", f"--out={out}")
    status, said, _ = call_check(*asked)
    assert status == 0 and said.endswith("SAME as PyTorch: 1 same\n"), said
    report = json.loads(out.read_text())
    assert report["passed"] and report["config"] == f"hf:{folder}"
    assert (report["shrunk"]["seq_len"], report["shrunk"]["rows"]) == (LLAMA.max_seq_len, against_hf.ROWS)
    sound = decoder.apply
    monkeypatch.setattr(
        decoder, "apply", lambda *a, **k: (lambda x, aux: (x * jnp.float32(1.001), aux))(*sound(*a, **k))
    )
    status, said, _ = call_check(*asked)
    assert status == 4 and "NOT THE SAME as PyTorch: 1 differs; output logits: off by" in said
    assert not json.loads(out.read_text())["passed"]


def test_mistakes_are_one_sentence(call_check, folder, monkeypatch):
    against = f"--against=hf:{folder}"
    for arguments, message in (
        (("--against=torch",), "--against=torch is neither hf nor hf:PATH"),
        (("--against=hf",), "--config=FILE[:ARG] is missing"),
        (("--against=hf:no/folder",), "there is no folder no/folder"),
        ((against, "--meshes=data=8"), "--against compares one device with PyTorch"),
        ((against, "--config=configs/gpt.py:d12"), f"{folder} holds another model"),
        (("--against=hf", "--config=configs/rnn.py:none"), "model.family='rnn': transformers has no such model"),
        (("--against=hf", "--config=configs/finetune_token_classification.py"), "not token_classification"),
        (
            ("--against=hf", "--config=configs/quickstart.py"),
            "no covered Hugging Face architecture holds this model; the nearest",
        ),
    ):
        status, _, said = call_check("equivalence", *arguments)
        assert status == 2 and said.startswith("error: ") and message in said, (arguments, said)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    monkeypatch.setattr(against_hf, "find_spec", lambda name: None)
    status, _, said = call_check("equivalence", against)
    assert (status, said) == (
        2,
        "error: --against compares with PyTorch, which is not installed: pip install torch\n",
    )


def test_what_transformers_cannot_load_is_a_finding(monkeypatch, folder):
    cfg, weights = against_hf.of_folder(folder, config.replace(Config(model=LLAMA), data={"seq_len": 8}))
    assert {w.dtype for w in weights.values()} == {np.dtype(np.float32)}
    monkeypatch.setattr(against_hf, "_theirs", lambda *_: (_ for _ in ()).throw(KeyError("rope")))
    found = against_hf.compare(equivalence.reference(against_hf.comparable(cfg), weights), folder)
    assert (found.status, found.reason) == ("fails", "fails in transformers: KeyError: 'rope'")
