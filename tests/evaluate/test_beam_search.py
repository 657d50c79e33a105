"""Beam search against every text there is, and against transformers; encoder-decoders write as they read whole rows."""

import dataclasses
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from bigjax import models, sharding
from bigjax import params as param_tree
from bigjax.config import ModelConfig
from bigjax.evaluate.beam_search import beam_search
from bigjax.evaluate.generation import GenerationError, generate
from bigjax.evaluate.sampling import sample
from tests.conftest import mesh_of
from tests.models_of import changed

V, EOS, START = 6, 1, 0
DECODER = ModelConfig(vocab_size=V, num_layers=1, d_model=16, num_heads=2, max_seq_len=64, init_std=0.5)
TRANSFORMER = changed(
    DECODER, family="encdec", positions="sinusoidal", norm_placement="post", activation="relu", num_decoder_layers=2
)
T5 = changed(
    TRANSFORMER,
    positions="relative",
    relative_buckets=8,
    relative_max_distance=12,
    norm="rmsnorm",
    norm_placement="pre",
    bias="none",
    attn_scale=1.0,
    scale_logits=True,
    init="fan_in",
    init_std=2.0,
)
CONFIGS = {"decoder": DECODER, "transformer": TRANSFORMER, "t5": T5}
PROMPTS = [[2, 3, 4, EOS], [5, EOS], [3, 3, 5, 2, 4, 2, EOS]]


def random_model(cfg: ModelConfig):
    model = models.build(cfg)
    return model, param_tree.init(model.specs, jax.random.key(3))


def start_of(cfg: ModelConfig) -> dict:
    return {"start_id": START} if cfg.family == "encdec" else {}


def all_logits(model, params, prompt: list[int], texts: np.ndarray) -> np.ndarray:
    """Return the log probabilities `(texts, N, V)` of each token of each text after a prompt, from whole rows."""
    cfg, family = model.cfg, model.family
    rows = np.repeat(np.array([prompt]), len(texts), axis=0)
    if cfg.family == "encdec":
        inputs = np.concatenate([np.full((len(texts), 1), START), texts[:, :-1]], axis=1)
        run = lambda p: family.logits(p, family.apply(p, jnp.asarray(rows), cfg, inputs_BT=jnp.asarray(inputs))[0], cfg)  # noqa: E731
        return np.asarray(jax.nn.log_softmax(jax.jit(run)(params)))
    tokens = jnp.asarray(np.concatenate([rows, texts[:, :-1]], axis=1))
    run = lambda p: family.logits(p, family.apply(p, tokens, cfg)[0], cfg)  # noqa: E731
    return np.asarray(jax.nn.log_softmax(jax.jit(run)(params)))[:, len(prompt) - 1 :]


@pytest.mark.sample(4)
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("name", CONFIGS)
def test_with_room_for_every_hypothesis_the_best_of_all_texts_is_found(name, alpha):
    """All texts of up to 2 of 12 tokens, ranked one by one; 6 beams can only miss those whose first token they drop."""
    cfg = dataclasses.replace(CONFIGS[name], vocab_size=12)
    model, params = random_model(cfg)
    for prompt in PROMPTS[:2]:
        texts = np.array(list(product(range(12), repeat=2)))
        logs = all_logits(model, params, prompt, texts)
        ranked = {}
        for text, log in zip(texts.tolist(), logs, strict=True):
            length = 1 if text[0] == EOS else 2
            total = sum(log[i, text[i]] for i in range(length))
            ranked[tuple(text[:length])] = total / ((5 + length) / 6) ** alpha
        open_first = [t for t in np.argsort(-logs[0, 0]).tolist() if t != EOS][:6]
        reachable = {text: rank for text, rank in ranked.items() if text[0] == EOS or text[0] in open_first}
        best = max(reachable, key=lambda text: reachable[text])
        how = {"max_new_tokens": 2, "beams": 6, "length_penalty": alpha, "eos_id": EOS, **start_of(cfg)}
        expected = [token for token in best if token != EOS]
        assert beam_search(model, params, [prompt], **how) == [expected]


@pytest.mark.sample
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_is_argmax_of_whole_rows_and_one_beam(name):
    cfg = dataclasses.replace(CONFIGS[name], vocab_size=31)
    model, params = random_model(cfg)
    how = {"max_new_tokens": 9, **start_of(cfg)}
    written = generate(model, params, PROMPTS, temperature=0, **how)
    for prompt, text in zip(PROMPTS, written, strict=True):
        logs = all_logits(model, params, prompt, np.array([text]))
        assert logs[0].argmax(axis=-1).tolist() == text
        assert generate(model, params, [prompt], temperature=0, **how) == [text]
    assert beam_search(model, params, PROMPTS, beams=1, **how) == written


def test_t5_beams_are_those_of_hugging_face():
    torch = pytest.importorskip("torch", reason="the oracle is transformers on torch")
    from tests.parity import encdec_peers

    cfg = dataclasses.replace(T5, vocab_size=40)
    peer = encdec_peers.build(cfg)
    model, params = models.build(cfg), encdec_peers.weights(peer, cfg)
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in PROMPTS])
    mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in PROMPTS])
    for beams in (1, 4):
        how = {"num_beams": beams, "do_sample": False, "length_penalty": 0.0, "early_stopping": "never"}
        how = how if beams > 1 else {"num_beams": 1, "do_sample": False}
        how |= {"max_new_tokens": 12, "eos_token_id": EOS, "pad_token_id": 0, "use_cache": False}
        out = peer.t5.generate(ids, attention_mask=mask, **how)
        expected = [row[1:].tolist() for row in out]
        expected = [row[: row.index(EOS)] if EOS in row else row for row in expected]
        ours = {"max_new_tokens": 12, "eos_id": EOS, "start_id": 0}
        if beams == 1:
            assert generate(model, params, PROMPTS, temperature=0, **ours) == expected
        else:
            assert beam_search(model, params, PROMPTS, beams=beams, **ours) == expected


@pytest.mark.sample
@pytest.mark.parametrize("name", ["decoder", "t5"])
def test_meshes_write_the_same(name):
    cfg = dataclasses.replace(CONFIGS[name], vocab_size=32)
    model, params = random_model(cfg)
    drawn = {"temperature": 0.9, "top_k": 20, "min_p": 0.02, "key": jax.random.key(7)}
    common = {"max_new_tokens": 8, "eos_id": EOS, **start_of(cfg)}
    searched = {"beams": 3, "length_penalty": 0.6}
    expected = (
        generate(model, params, PROMPTS, **drawn, **common),
        beam_search(model, params, PROMPTS, **searched, **common),
    )
    mesh_cfg, mesh = mesh_of(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        layout = sharding.layout(mesh_cfg, mesh, model.specs)
        params = jax.device_put(params, jax.tree.map(lambda s: NamedSharding(mesh, layout.param(s)), model.specs))
        common["layout"] = layout
        assert generate(model, params, PROMPTS, **drawn, **common) == expected[0]
        assert beam_search(model, params, PROMPTS, **searched, **common) == expected[1]


def test_a_row_ends_before_a_stop_sequence():
    model, params = random_model(dataclasses.replace(DECODER, vocab_size=31))
    how = {"max_new_tokens": 12, "temperature": 1.0, "key": jax.random.key(1)}
    (whole,) = generate(model, params, [[2, 3]], **how)
    for stop in ([whole[4:6]], [whole[4:7], [whole[9]]], [[whole[0]]], [[*whole, 1]]):
        found = [i for i in range(12) for s in stop if whole[i : i + len(s)] == s]
        ends = [i + len(s) for i in found for s in stop if whole[i : i + len(s)] == s]
        end = min(ends, default=12)
        longest = max((len(s) for s in stop if end - len(s) >= 0 and whole[end - len(s) : end] == s), default=0)
        assert generate(model, params, [[2, 3]], stop=stop, **how) == [whole[: end - longest]]


def test_any_of_several_tokens_ends_a_hypothesis():
    """Either may: with one that no text has, nothing changes; a beam of one is greedy up to the first of them."""
    model, params = random_model(dataclasses.replace(DECODER, vocab_size=31))
    (greedy,) = generate(model, params, [[2, 3]], max_new_tokens=12, temperature=0)
    how = {"max_new_tokens": 12, "beams": 3, "length_penalty": 1.0}
    alone = beam_search(model, params, [[2, 3]], eos_id=greedy[5], **how)
    assert beam_search(model, params, [[2, 3]], eos_id=[99, greedy[5]], **how) == alone
    assert set(greedy[:4]).isdisjoint(*beam_search(model, params, [[2, 3]], eos_id=greedy[:4], **how))


def test_min_p_follows_its_definition():
    draws, logits = 20_000, np.random.default_rng(1).normal(size=12).astype(np.float32)
    probs = np.exp(logits.astype(np.float64) / 0.7)
    probs[probs < 0.3 * probs.max()] = 0
    probs /= probs.sum()
    rows = jnp.arange(draws)
    tokens = sample(jnp.broadcast_to(logits, (draws, 12)), jax.random.key(0), rows, 0.7, None, None, 0.3)
    counts = np.bincount(tokens, minlength=12)
    assert (counts[probs == 0] == 0).all() and (probs == 0).any()
    np.testing.assert_allclose(counts / draws, probs, atol=4 * 0.5 / draws**0.5)


@pytest.mark.parametrize(
    ("cfg", "changed", "message"),
    [
        (DECODER, {"beams": 0}, "beams=0 must be 1 to half of model.vocab_size=6"),
        (DECODER, {"beams": 4}, "beams=4 must be 1 to half"),
        (DECODER, {"length_penalty": -1.0}, "length_penalty=-1.0 must be 0 to 4"),
        (DECODER, {"length_penalty": 1e300}, r"length_penalty=1e\+300 must be 0 to 4"),
        (DECODER, {"start_id": 0}, "start_id=0, but model.family='decoder'"),
        (T5, {}, "start_id=None, but model.family='encdec'"),
        (dataclasses.replace(DECODER, family="encoder"), {}, "model.family='encoder' writes no text"),
    ],
)
def test_errors_name_the_argument(cfg, changed, message):
    with pytest.raises(GenerationError, match=message):
        beam_search(models.build(cfg), None, [[1]], **({"max_new_tokens": 2, "beams": 2} | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"min_p": 0.0}, "min_p=0.0 must be above 0"), ({"stop": [[]]}, "a stop sequence is empty")],
)
def test_errors_of_sampling_name_the_argument(changed, message):
    with pytest.raises(GenerationError, match=message):
        generate(models.build(DECODER), None, [[1]], max_new_tokens=2, **changed)
