"""configs/: values against the tables they come from."""

import pytest

from bigjax.config import Config, ModelConfig, strict
from bigjax.config.strict import ConfigError
from bigjax.data.batches import ramp as batch_ramp
from bigjax.train import optimizers as optim
from configs import gemma, gpt, llama, mistral, qwen, scaling

DEFAULTS = [(gpt, "d12"), (llama, "1b"), (scaling, "d4"), (gemma, "2b"), (mistral, "7b"), (qwen, "qwen3-0.6b")]


def load(module, arg: str | None = None) -> Config:
    return strict.from_dict(Config, module.get_config(arg))


def count(model: ModelConfig) -> int:
    """Count parameters from the architecture alone."""
    heads, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    matrices = 3 if model.activation in ("swiglu", "geglu") else 2
    block = model.d_model * (2 * heads + 2 * kv) + matrices * model.d_model * model.d_ff
    norms = 2 * model.d_model
    if model.bias == "all":
        block += heads + 2 * kv + model.d_model + model.d_ff + model.d_model
    if model.norm == "layernorm":
        norms *= 2
    final_norm = norms // 2
    if model.norm_placement == "sandwich":
        norms *= 2
    positions = model.max_seq_len * model.d_model if model.positions == "learned" else 0
    embeddings = model.vocab_size * model.d_model * (1 if model.tie_embeddings else 2)
    return model.num_layers * (block + norms) + final_norm + positions + embeddings


@pytest.mark.parametrize(
    ("name", "alias", "layers", "d_model", "parameters"),
    [
        # Radford et al. 2019, table 2; counts of the released checkpoints.
        ("gpt2-small", "d12", 12, 768, 124_439_808),
        ("gpt2-medium", "d24", 24, 1024, 354_823_168),
        ("gpt2-large", "d36", 36, 1280, 774_030_080),
        ("gpt2-xl", "d48", 48, 1600, 1_557_611_200),
    ],
)
def test_gpt2_sizes(name, alias, layers, d_model, parameters):
    cfg = load(gpt, name)
    assert load(gpt, alias) == cfg
    model = cfg.model
    assert (model.num_layers, model.d_model, model.head_dim, model.vocab_size) == (layers, d_model, 64, 50257)
    assert (model.positions, model.bias, model.activation, model.norm) == ("learned", "all", "gelu_tanh", "layernorm")
    assert (model.tie_embeddings, model.max_seq_len, cfg.data.seq_len) == (True, 1024, 1024)
    assert count(model) == parameters


@pytest.mark.parametrize(
    ("name", "parameters", "layers", "d_model", "heads", "head_dim", "batch_tokens", "lr"),
    [
        # Brown et al. 2020, table 2.1.
        ("gpt3-small", 125e6, 12, 768, 12, 64, 0.5e6, 6.0e-4),
        ("gpt3-medium", 350e6, 24, 1024, 16, 64, 0.5e6, 3.0e-4),
        ("gpt3-large", 760e6, 24, 1536, 16, 96, 0.5e6, 2.5e-4),
        ("gpt3-xl", 1.3e9, 24, 2048, 24, 128, 1e6, 2.0e-4),
        ("gpt3-2.7b", 2.7e9, 32, 2560, 32, 80, 1e6, 1.6e-4),
        ("gpt3-6.7b", 6.7e9, 32, 4096, 32, 128, 2e6, 1.2e-4),
        ("gpt3-13b", 13.0e9, 40, 5140, 40, 128, 2e6, 1.0e-4),
        ("gpt3-175b", 175.0e9, 96, 12288, 96, 128, 3.2e6, 0.6e-4),
    ],
)
def test_gpt3_sizes(name, parameters, layers, d_model, heads, head_dim, batch_tokens, lr):
    cfg = load(gpt, name)
    model = cfg.model
    assert (model.num_layers, model.d_model, model.num_heads, model.head_dim) == (layers, d_model, heads, head_dim)
    assert (model.d_ff, model.max_seq_len, cfg.data.seq_len, cfg.optim.lr) == (4 * d_model, 2048, 2048, lr)
    assert model.windows == (None, 256) * (layers // 2)
    tokens_per_step = cfg.train.global_batch_size * cfg.data.seq_len
    assert tokens_per_step == pytest.approx(batch_tokens, rel=0.05)
    # Appendix B: the batch grows from 32k tokens over the first 4 to 12 billion, and 300 billion are seen in all.
    ramp = batch_ramp.build(cfg)
    tokens = [2048 * ramp.rows_before(step) for step in (ramp.steps[-1], cfg.train.steps)]
    assert ramp.sizes[0] * 2048 == 32768
    assert 4e9 <= cfg.train.ramp_tokens <= 12e9
    assert tokens == [pytest.approx(cfg.train.ramp_tokens, rel=1e-3), pytest.approx(300e9, rel=1e-4)]
    # The learning rate warms up over 375 million tokens and is a tenth from 260 billion on.
    rate = optim.schedule(cfg.optim, cfg.train.steps, ramp)
    warm, half, low = (ramp.steps_for(round(n / 2048)) for n in (375e6, 375e6 + (260e9 - 375e6) / 2, 260e9))
    assert float(rate(warm)) == pytest.approx(lr, rel=1e-3)
    # It starts with a full batch's part, the step that has seen so much may have seen a batch more, and a warmup of
    # whole batches is off by up to half of one, of which 0.4 count here.
    early, part = float(rate(ramp.steps_for(round(0.4 * 375e6 / 2048)))), lr / (375e6 / tokens_per_step)
    assert 0.4 * lr + 0.8 * part <= early <= 0.4 * lr + 2.2 * part
    assert float(rate(half)) == pytest.approx(0.55 * lr, rel=1e-3)
    assert [float(rate(step)) for step in (low, cfg.train.steps)] == pytest.approx([0.1 * lr] * 2, rel=1e-3)
    assert (cfg.optim.b1, cfg.optim.b2, cfg.optim.eps, cfg.optim.weight_decay) == (0.9, 0.95, 1e-8, 0.1)
    # As printed, gpt3-xl has attention wider than d_model, which its 1.3B cannot include.
    excess = layers * 4 * d_model * (heads * head_dim - d_model) if name == "gpt3-xl" else 0
    assert count(model) - excess == pytest.approx(parameters, rel=0.03)


@pytest.mark.parametrize(
    ("name", "layers", "d_model", "heads", "head_dim", "d_ff", "factor", "tied", "parameters"),
    [
        ("1b", 16, 2048, 32, 64, 8192, 32.0, True, 1_235_814_400),
        ("8b", 32, 4096, 32, 128, 14336, 8.0, False, 8_030_261_248),
        ("70b", 80, 8192, 64, 128, 28672, 8.0, False, 70_553_706_496),
    ],
)
def test_llama_sizes(name, layers, d_model, heads, head_dim, d_ff, factor, tied, parameters):
    cfg = load(llama, name)
    model, rope = cfg.model, cfg.model.rope
    assert (model.num_layers, model.d_model, model.num_heads, model.head_dim) == (layers, d_model, heads, head_dim)
    assert (model.num_kv_heads, model.d_ff, model.vocab_size, model.tie_embeddings) == (8, d_ff, 128256, tied)
    assert (model.norm, model.norm_eps, model.activation, model.bias) == ("rmsnorm", 1e-5, "swiglu", "none")
    assert (rope.theta, rope.scaling, rope.factor) == (500_000.0, "llama3", factor)
    assert (rope.low_freq_factor, rope.high_freq_factor, rope.original_max_seq_len) == (1.0, 4.0, 8192)
    assert (model.max_seq_len, cfg.data.seq_len, model.dtype, model.remat) == (131072, 8192, "bfloat16", "auto")
    assert count(model) == parameters


@pytest.mark.parametrize("depth", scaling.DEPTHS)
def test_scaling_follows_from_depth(depth):
    cfg = load(scaling, f"d{depth}")
    model = cfg.model
    assert (model.num_layers, model.d_model, model.head_dim) == (depth, 64 * depth, 64)
    multiplying = count(model) - model.vocab_size * model.d_model - (2 * depth + 1) * model.d_model
    assert scaling.num_parameters(depth) == multiplying
    tokens_per_step = cfg.train.global_batch_size * cfg.data.seq_len
    assert 0 <= tokens_per_step * cfg.train.steps - 20 * multiplying < tokens_per_step
    fitted = 0.2920 * (6 * multiplying * 20 * multiplying) ** 0.3271
    assert 2**-0.5 <= tokens_per_step / fitted <= 2**0.5
    assert cfg.optim.lr * model.d_model == pytest.approx(3e-3 * 256)


def test_scaling_table_of_the_docstring():
    rows = [line.split() for line in (scaling.__doc__ or "").splitlines() if line.startswith("    d")]
    assert [row[0] for row in rows] == ["depth", "d4", "d8", "d12", "d24"]
    for name, parameters, *_, batch, steps in rows[1:]:
        cfg = load(scaling, name)
        assert (cfg.train.global_batch_size, cfg.train.steps) == (int(batch), int(steps))
        assert scaling.num_parameters(cfg.model.num_layers) / 1e6 == pytest.approx(float(parameters[:-1]), rel=0.02)


@pytest.mark.parametrize(
    ("name", "layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", "scalar"),
    [
        # Gemma Team 2024, table 1; the last is transformers' query_pre_attn_scalar of the released checkpoints.
        ("2b", 26, 2304, 8, 4, 256, 18432, 256),
        ("9b", 42, 3584, 16, 8, 256, 28672, 256),
        ("27b", 46, 4608, 32, 16, 128, 73728, 144),
    ],
)
def test_gemma_sizes(name, layers, d_model, heads, kv_heads, head_dim, d_ff, scalar):
    """The table counts both halves of the gated feed-forward layer."""
    model = load(gemma, name).model
    assert (model.num_layers, model.d_model, model.num_heads, model.num_kv_heads) == (layers, d_model, heads, kv_heads)
    assert (model.head_dim, 2 * model.d_ff, model.vocab_size) == (head_dim, d_ff, 256000)
    assert (model.attn_scale or model.head_dim**-0.5) == scalar**-0.5
    assert (model.attn_softcap, model.final_softcap) == (50.0, 30.0)
    assert model.windows == (4096, None) * (layers // 2)
    # Table 2: parameters of the embedding and others.
    embedding, others = {"2b": (590, 2024), "9b": (918, 8324), "27b": (1180, 26047)}[name]
    assert model.vocab_size * model.d_model / 1e6 == pytest.approx(embedding, rel=1e-3)
    assert count(model) / 1e6 - model.vocab_size * model.d_model / 1e6 == pytest.approx(others, abs=1)


@pytest.mark.parametrize(("module", "default"), DEFAULTS)
def test_arguments(module, default):
    assert load(module) == load(module, default)
    assert default in module.ARGUMENTS
    for arg in module.ARGUMENTS:
        assert module.get_config(arg).is_locked
        load(module, arg)
    with pytest.raises(ConfigError, match=f"'d99', only {', '.join(module.ARGUMENTS)}"):
        module.get_config("d99")
