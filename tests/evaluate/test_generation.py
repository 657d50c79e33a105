import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from bigjax import models, sharding
from bigjax import params as param_tree
from bigjax.config import Config, DataConfig, ModelConfig, MoeConfig, RopeConfig, TrainConfig
from bigjax.evaluate import generation
from bigjax.evaluate.generation import GenerationError, generate
from bigjax.models import decoder
from tests.conftest import mesh_of
from tests.models_of import changed

GENERATE = "experiments.generate"
V = 61
GPT = ModelConfig(vocab_size=V, num_layers=2, d_model=32, num_heads=4, max_seq_len=96, init_std=0.3)
LLAMA = dataclasses.replace(
    GPT,
    num_kv_heads=2,
    positions="rotary",
    norm="rmsnorm",
    activation="swiglu",
    bias="none",
    tie_embeddings=False,
    rope=RopeConfig(scaling="llama3", factor=4.0, original_max_seq_len=16),
)
GEMMA = dataclasses.replace(LLAMA, sliding_window=7, attn_softcap=5.0, final_softcap=3.0, qk_norm=True)
LSTM = ModelConfig(family="rnn", vocab_size=V, num_layers=2, d_model=32, init_std=0.3)
GRU = changed(LSTM, cell="gru", tie_embeddings=False)
GEMMA2 = dataclasses.replace(
    LLAMA,
    norm="rmsnorm_unit_offset",
    norm_placement="sandwich",
    activation="geglu",
    tie_embeddings=True,
    scale_embeddings=True,
    rope=RopeConfig(),
    layer_windows=(7, 0),
    attn_softcap=5.0,
    final_softcap=3.0,
)
MIXTRAL = dataclasses.replace(LLAMA, rope=RopeConfig(), moe=MoeConfig(num_experts=4))
SPARSE = dataclasses.replace(MIXTRAL, moe=MoeConfig(num_experts=4, every=2, router="gshard"))
CONFIGS = {
    "gpt": GPT,
    "llama": LLAMA,
    "window and softcap": GEMMA,
    "gemma2": GEMMA2,
    "sparse and dense": SPARSE,
    "lstm": LSTM,
    "gru": GRU,
}
PROMPTS = [np.random.default_rng(n).integers(0, V, n).tolist() for n in (5, 1, 17, 40)]
NEW = 20
GREEDY = {"max_new_tokens": NEW, "temperature": 0}
NUCLEUS = {"max_new_tokens": NEW, "temperature": 0.9, "top_k": 20, "top_p": 0.9}


def random_model(cfg: ModelConfig):
    model = models.build(cfg)
    return model, param_tree.init(model.specs, jax.random.key(0))


@pytest.mark.sample(3)
@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_greedy_is_argmax_of_the_full_forward_pass(cfg):
    model, params = random_model(cfg)
    together = generate(model, params, PROMPTS, **GREEDY)
    # What comes after a position does not change its logits, so all rows may have one length.
    rows = [(prompt + written + [0] * 60)[:60] for prompt, written in zip(PROMPTS, together, strict=True)]
    forward = lambda p, tokens: model.family.logits(p, model.family.apply(p, tokens, cfg)[0], cfg)  # noqa: E731
    best_BS = np.argmax(jax.jit(forward)(params, jnp.asarray(rows)), axis=-1)
    for prompt, written, best in zip(PROMPTS, together, best_BS, strict=True):
        assert best[len(prompt) - 1 : len(prompt) - 1 + NEW].tolist() == written
        # Padding on the left and the other rows change nothing.
        assert generate(model, params, [prompt], **GREEDY) == [written]
    assert len({tuple(written) for written in together}) > 1


@pytest.mark.parametrize("temperature", [1e-6, 1e-29, 1e-31, 1e-38, 1e-46, 5e-324])
def test_next_to_no_temperature_is_greedy(temperature):
    """Logits of order 1 over 1e-39 leave float32, in which 1e-46 is 0. At 1e-6 noise decides below some 1e-5 only."""
    model, params = random_model(LLAMA)
    drawn = generate(model, params, PROMPTS, key=jax.random.key(1), **{**NUCLEUS, "temperature": temperature})
    assert drawn == generate(model, params, PROMPTS, **GREEDY)


def test_experts_that_drop_in_training_take_all_tokens_here():
    model, params = random_model(SPARSE)
    tight = models.build(dataclasses.replace(SPARSE, moe=dataclasses.replace(SPARSE.moe, capacity_factor=0.25)))
    assert generate(tight, params, PROMPTS, **GREEDY) == generate(model, params, PROMPTS, **GREEDY)


@pytest.mark.parametrize(
    "cfg", [GPT, LLAMA, dataclasses.replace(LLAMA, sliding_window=7, rope=RopeConfig()), GEMMA2, MIXTRAL], ids=str
)
def test_greedy_is_hugging_face_generate(cfg):
    torch = pytest.importorskip("torch", reason="the oracle is transformers on torch")
    from tests.parity import peers

    cfg = dataclasses.replace(cfg, max_seq_len=96)
    peer = peers.build(cfg)
    model, params = models.build(cfg), peers.weights(peer, cfg)
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    expected = peer.generate(ids, attention_mask=mask, **settings)[:, longest:]
    assert generate(model, params, PROMPTS, **GREEDY) == expected.tolist()


def nucleus_by_definition(logits: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
    """Return the probabilities from which one row is sampled."""
    order = np.argsort(-logits, kind="stable")[:top_k]
    probs = np.exp(logits[order].astype(np.float64) - logits.max())
    probs /= probs.sum()
    kept, reached = [], 0.0
    for token, p in zip(order, probs, strict=True):
        kept.append(token)
        reached += p
        if top_p is not None and reached >= top_p:
            break
    out = np.zeros(len(logits))
    out[kept] = probs[: len(kept)] / probs[: len(kept)].sum()
    return out


@pytest.mark.parametrize("top_k, top_p", [(None, None), (3, None), (None, 0.7), (5, 0.5), (100, 1.0), (None, 1e-6)])
def test_samples_follow_the_definition(top_k, top_p):
    draws, temperature = 20_000, 0.7
    logits = np.random.default_rng(1).normal(size=12).astype(np.float32)
    expected = nucleus_by_definition(logits / temperature, top_k, top_p)
    rows = jnp.arange(draws)
    logits_BV = jnp.broadcast_to(logits, (draws, 12))
    tokens = generation.sample(logits_BV, jax.random.key(0), rows, temperature, top_k, top_p)
    counts = np.bincount(tokens, minlength=12)
    assert (counts[expected == 0] == 0).all()
    np.testing.assert_allclose(counts / draws, expected, atol=4 * 0.5 / draws**0.5)


def test_sampling_depends_on_key_and_row_only():
    model, params = random_model(GPT)
    key = jax.random.key(7)
    first = generate(model, params, PROMPTS, key=key, **NUCLEUS)
    assert generate(model, params, PROMPTS, key=key, **NUCLEUS) == first
    assert generate(model, params, PROMPTS[:2], key=key, **NUCLEUS) == first[:2]
    assert generate(model, params, PROMPTS, key=jax.random.key(8), **NUCLEUS) != first
    same_prompt = generate(model, params, [PROMPTS[0]] * 3, key=key, **NUCLEUS)
    assert len({tuple(written) for written in same_prompt}) == 3


@pytest.mark.sample
@pytest.mark.parametrize(
    "cfg, axes",
    [
        (GPT, {"data": 2, "fsdp": 2, "tensor": 2}),
        (GEMMA, {"fsdp": 2, "tensor": 4, "shard_sequence": True, "allow_replicated": ("kv_heads",)}),
        (SPARSE, {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2}),
        (LSTM, {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
    ids=["2x2x2", "kv heads whole", "experts", "recurrent"],
)
def test_mesh_writes_the_same(cfg, axes, monkeypatch):
    model, params = random_model(cfg)
    prompts, key = PROMPTS[:3], jax.random.key(7)
    expected = [generate(model, params, prompts, key=key, **settings) for settings in (GREEDY, NUCLEUS)]
    mesh_cfg, mesh = mesh_of(**axes)
    with jax.set_mesh(mesh):
        layout = sharding.layout(mesh_cfg, mesh, model.specs)
        stored = jax.tree.map(lambda spec: NamedSharding(mesh, layout.param(spec)), model.specs)
        params = jax.device_put(params, stored)
        actual = [generate(model, params, prompts, key=key, layout=layout, **s) for s in (GREEDY, NUCLEUS)]
        monkeypatch.setattr(generation, "fits", lambda *_: False)
        assert generate(model, params, prompts, layout=layout, **GREEDY) == expected[0]
    assert actual == expected


def test_a_row_ends_before_eos():
    model, params = random_model(GPT)
    whole = generate(model, params, PROMPTS, **GREEDY)
    eos_id = whole[0][4]
    ended = generate(model, params, PROMPTS, eos_id=eos_id, **GREEDY)
    assert ended == [row[: row.index(eos_id)] if eos_id in row else row for row in whole]
    assert len(ended[0]) <= 4
    earlier = [eos_id, whole[0][1]]
    assert generate(model, params, PROMPTS[:1], eos_id=earlier, **GREEDY) == [
        whole[0][: min(map(whole[0].index, earlier))]
    ]


def test_lengths_of_one_bucket_share_a_program(monkeypatch):
    model, params = random_model(dataclasses.replace(GPT, num_layers=1))
    prefill, traced = decoder.prefill, []
    monkeypatch.setattr(decoder, "prefill", lambda *args: traced.append(args) or prefill(*args))
    for length, new in ((3, 5), (31, 30), (7, 32)):
        written = generate(model, params, [[1] * length], max_new_tokens=new, temperature=0)
        assert len(written[0]) == new
    assert len(traced) == 1


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"prompts": []}, "a prompt is empty"),
        ({"prompts": [[1], []]}, "a prompt is empty"),
        ({"prompts": [[1], [V]]}, r"prompt 1 has token ids outside 0 to model\.vocab_size=61"),
        ({"prompts": [[-1]]}, "prompt 0 has token ids"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"temperature": -0.1}, "temperature=-0.1 must be 0"),
        ({"temperature": float("nan")}, "temperature=nan must be 0"),
        ({"temperature": 1.0}, "temperature=1.0 draws at random and needs a key"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"prompts": [[1] * 40], "max_new_tokens": 57}, r"40 tokens and max_new_tokens=57 .* model\.max_seq_len=96"),
    ],
)
def test_errors_name_the_argument(changed, message):
    model = models.build(GPT)
    with pytest.raises(GenerationError, match=message):
        generate(model, None, **({"prompts": [[1]], "max_new_tokens": 4, "temperature": 0.0} | changed))


def test_rotary_positions_have_no_end():
    model, params = random_model(dataclasses.replace(LLAMA, max_seq_len=8, num_layers=1))
    assert len(generate(model, params, [[1] * 8], max_new_tokens=8, temperature=0)[0]) == 8


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """The folder of a run of a byte model that has kept its starting weights and their average."""
    from bigjax import data
    from bigjax.checkpoint import saving as checkpoint
    from bigjax.data.tokens.tokenizers import ByteTokenizer
    from bigjax.run.folder import RunFolder
    from bigjax.train import optimizers as optim
    from bigjax.train import step

    model_cfg = ModelConfig(num_layers=1, d_model=16, num_heads=2, max_seq_len=64, init_std=0.3)
    cfg = Config(model=model_cfg, data=DataConfig(seq_len=32), train=TrainConfig(steps=1, global_batch_size=8))
    cfg = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, ema_decay=0.9))
    folder = RunFolder(tmp_path_factory.mktemp("run") / "r")
    folder.open(cfg)
    data.save_tokenizer(ByteTokenizer(), folder.path)
    mesh = sharding.make_mesh(cfg.mesh)
    model = models.build(cfg.model)
    layout = sharding.layout(cfg.mesh, mesh, model.specs)
    with jax.set_mesh(mesh), checkpoint.Checkpoints(folder.checkpoints, cfg.checkpoint) as checkpoints:
        tx = optim.build(cfg.optim, model.specs, 1)
        state = jax.jit(lambda: step.init_state(cfg, model, tx, layout))()
        # The two differ, so that the text tells which was read.
        state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
        checkpoints.save(1, state, {}, {})
    expected = generate(model, jax.device_get(state.ema), [list(b"To be")], max_new_tokens=9, temperature=0)[0]
    return folder.path, "To be" + ByteTokenizer().decode(expected)


@pytest.mark.exhaustive
def test_command_prints_prompt_and_continuation_of_the_averaged_weights(trained_run, call_command):
    folder, expected = trained_run
    greedy = [f"--workdir={folder}", "--prompt=To be", "--temperature=0", "--max_new_tokens=9"]
    status, said, _ = call_command(GENERATE, *greedy)
    assert (status, said) == (0, f"{expected}\n")
    sampled = [f"--workdir={folder}", "--prompt=To be", "--num_samples=3", "--max_new_tokens=9", "--top_p=0.9"]
    texts = []
    for seed in (1, 1, 2):
        texts.append(call_command(GENERATE, *sampled, f"--seed={seed}")[1])
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0].split("\n--------\n")) == 3


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--prompt="], "--prompt is empty"),
        ([], "--prompt is missing"),
        (["--prompt=a", "--temperature=-1"], "temperature=-1.0 must be 0"),
        (["--prompt=a", "--top_p=0"], "top_p=0.0 must be above 0"),
        (["--prompt=a", "--top_k=0"], "top_k=0 must be at least 1"),
        (["--prompt=a", "--num_samples=0"], "--num_samples=0 must be at least 1"),
        (["--prompt=a", f"--seed={2**32}"], "--seed=4294967296: 4294967296 is not an integer in the range"),
        (["--prompt=a", "--max_new_tokens=4", "--config.data.tokenizer=bpe:300"], "data.tokenizer='bpe:300', but "),
        (["--prompt=a", "--max_new_tokens=64"], "model.max_seq_len=64"),
        (["--prompt=a", "--max_new_tokens=999999999999"], "makes a text of more than 1,073,741,824 tokens"),
        (["--prompt=a\udcff"], "the text is not UTF-8: '\\udcff' at character 1"),
        (["--prompt=a", "--stop=\udcff"], "the text is not UTF-8"),
        (["--prompt=a", "--config=configs/gpt.py:d12"], "--config=configs/gpt.py:d12 has no use here"),
        (["--prompt=a", "--workdir=/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_command_says_what_is_wrong(trained_run, flags, message, call_command):
    status, _, error = call_command(GENERATE, f"--workdir={trained_run[0]}", *flags)
    assert status == 2
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_help_shows_the_flags(call_command):
    _, shown, _ = call_command(GENERATE, "--help")
    assert "--prompt=VALUE" in shown and "experiments.generate --workdir" in shown
