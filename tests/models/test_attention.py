from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from bigjax import models, sharding
from bigjax.config import MESH_AXES, Config, DataConfig, MeshConfig, ModelConfig, TrainConfig
from bigjax.models.attention import backends as attention
from bigjax.models.attention import kernels as attention_kernels
from bigjax.models.attention.backends import AttentionError, Mask
from bigjax.sharding import UNSHARDED
from bigjax.train import optimizers as optim
from bigjax.train import step
from tests.conftest import mesh_of

B, H, K = 4, 4, 8
ASKED = {"segments": False, "window": None, "softcap": None, "dropout": 0.0, "dtype": "float32"}
SUPPORTED = [
    ("blocked", 256, None, None),
    ("blocked", 256, 37, 2.0),
    ("blocked", 37, 9, None),
    ("xla", 256, None, None),
    ("xla", 37, 9, None),
    ("splash", 256, None, None),
    ("splash", 256, 37, 2.0),
]
"""Back end, sequence length, window, soft cap."""


def arrays(seq_len: int, num_kv_heads: int = 2):
    """Return queries, keys, values, weights of the output, and documents of uneven lengths with padding at the end."""
    rng = np.random.default_rng(seq_len)
    q, k, v = (rng.normal(size=(B, seq_len, heads, K)).astype(np.float32) for heads in (H, num_kv_heads, num_kv_heads))
    segments = np.sort(rng.integers(1, 5, (B, seq_len)), axis=1)
    segments[1:, seq_len - seq_len // 6 :] = 0
    return q, k, v, rng.normal(size=q.shape).astype(np.float32), segments.astype(np.int32)


def attend(name, q, k, v, weights, segments, window, softcap, layout=UNSHARDED):
    """Return the output and the gradients of its weighted sum by q, k and v."""
    asked = ASKED | {"segments": segments is not None, "window": window, "softcap": softcap}
    function = attention.select(name, **asked)

    def weighted(q, k, v):
        out = function(q, k, v, Mask(segments, window), softcap=softcap, layout=layout)
        return (out * weights).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


def assert_same(actual, expected, tolerance=2e-5):
    for name, x, y in zip(("out", "dq", "dk", "dv"), actual, expected, strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=tolerance, rtol=tolerance, err_msg=name)


def allowed_by_definition(segments, window):
    """The mask, entry by entry."""
    rows, seq_len = segments.shape
    allowed = np.zeros((rows, seq_len, seq_len), bool)
    for b in range(rows):
        for s in range(seq_len):
            for t in range(s + 1):
                near = window is None or s - t < window
                allowed[b, s, t] = near and segments[b, s] == segments[b, t]
    return allowed


@pytest.mark.parametrize("window", [None, 9])
def test_reference_is_torch_attention(window):
    torch = pytest.importorskip("torch", reason="the oracle is torch's scaled_dot_product_attention")
    q, k, v, weights, segments = arrays(37)
    tensors = [torch.tensor(x).transpose(1, 2).requires_grad_() for x in (q, k, v)]
    mask = torch.tensor(allowed_by_definition(segments, window))[:, None]
    out = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask, enable_gqa=True)
    (out.transpose(1, 2) * torch.tensor(weights)).sum().backward()
    expected = [x.detach().transpose(1, 2).numpy() for x in (out, *(t.grad for t in tensors))]
    assert_same(attend("reference", q, k, v, weights, segments, window, None), expected)


def test_reference_with_softcap_is_the_formula():
    q, k, v, weights, segments = arrays(37)
    out = attend("reference", q, k, v, weights, segments, None, 2.0)[0]
    allowed = allowed_by_definition(segments, None)
    for b, h in ((0, 0), (1, 1), (2, 2), (3, 3)):
        kv_head = h // 2
        scores = 2.0 * np.tanh(q[b, :, h].astype(np.float64) @ k[b, :, kv_head].T / np.sqrt(K) / 2.0)
        probs = np.where(allowed[b], np.exp(scores), 0)
        expected = probs @ v[b, :, kv_head] / probs.sum(1, keepdims=True)
        np.testing.assert_allclose(out[b, :, h], expected, atol=2e-6)


def test_a_window_counts_back_so_attention_in_both_directions_has_none():
    with pytest.raises(ValueError, match="a window of 9 tokens counts back from each query"):
        Mask(window=9, causal=False)


@cache
def from_reference(seq_len: int, num_kv_heads: int, packed: bool, window: int | None, softcap: float | None):
    *inputs, segments = arrays(seq_len, num_kv_heads)
    return attend("reference", *inputs, segments if packed else None, window, softcap)


@pytest.mark.parametrize("name, seq_len, window, softcap", SUPPORTED)
def test_back_end_is_reference(name, seq_len, window, softcap):
    expected = from_reference(seq_len, 2, True, window, softcap)
    assert_same(attend(name, *arrays(seq_len), window, softcap), expected)


@pytest.mark.parametrize("name", ["blocked", "xla", "splash"])
def test_documents_matter(name):
    *inputs, _ = arrays(256)
    whole_rows = from_reference(256, 2, False, None, None)
    assert np.abs(whole_rows[0] - from_reference(256, 2, True, None, None)[0]).max() > 0.1
    assert_same(attend(name, *inputs, None, None, None), whole_rows)


@pytest.mark.parametrize("num_kv_heads", [2, 1])
@pytest.mark.parametrize("name", ["reference", "blocked", "xla", "splash"])
def test_mesh_changes_nothing(name, num_kv_heads):
    inputs = arrays(128, num_kv_heads)
    expected = from_reference(128, num_kv_heads, True, 50, None)
    cfg, mesh = mesh_of(data=2, fsdp=2, tensor=2, allow_replicated=("kv_heads",))
    model = models.build(ModelConfig(num_heads=H, num_kv_heads=num_kv_heads, d_model=H * K))
    layout = sharding.layout(cfg, mesh, model.specs)
    assert layout.over("heads") == ("tensor",)
    assert layout.over("kv_heads") == (() if num_kv_heads == 1 else ("tensor",))
    q_spec, kv_spec = (layout.act("batch", "seq", heads, "head_dim") for heads in ("heads", "kv_heads"))
    specs = (q_spec, kv_spec, kv_spec, q_spec, layout.act("batch", "seq"))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(inputs, specs, strict=True)]
        actual = attend(name, *placed, 50, None, layout)
        assert [jax.typeof(x).sharding.spec for x in actual] == [q_spec, q_spec, kv_spec, kv_spec]
    assert_same(actual, expected)


def test_kv_heads_are_repeated_no_more_than_needed():
    cfg, mesh = mesh_of(tensor=4, data=2, allow_replicated=("kv_heads",))
    layout = sharding.layout(cfg, mesh, models.build(ModelConfig(num_heads=8, num_kv_heads=2, d_model=64)).specs)
    kv = jnp.arange(2.0)[None, None, :, None] * jnp.ones((2, 3, 2, 5))
    with jax.set_mesh(mesh):
        repeated, _ = attention.match_kv_heads(*jax.device_put((kv, kv), NamedSharding(mesh, jax.P())), 8, layout)
    assert repeated.shape == (2, 3, 4, 5)
    np.testing.assert_array_equal(np.asarray(repeated)[0, 0, :, 0], [0, 0, 1, 1])


@pytest.mark.parametrize(
    "name, asked, field, able",
    [
        ("blocked", {"dropout": 0.1}, "model.dropout=0.1", "reference"),
        ("xla", {"softcap": 30.0}, "model.attn_softcap=30.0", "reference, blocked, splash"),
        ("xla", {"dropout": 0.1}, "model.dropout=0.1", "reference"),
        ("splash", {"dropout": 0.1}, "model.dropout=0.1", "reference"),
        ("cudnn", {"softcap": 30.0, "dtype": "bfloat16"}, "model.attn_softcap=30.0", "reference, blocked, splash"),
        ("cudnn", {}, "model.dtype='float32'", "reference, blocked, xla, splash"),
        ("cudnn", {"dtype": "bfloat16"}, "the platform 'cpu'", "reference, blocked, xla, splash"),
    ],
)
def test_what_is_not_supported_is_an_error(name, asked, field, able):
    with pytest.raises(AttentionError) as error:
        attention.select(name, **(ASKED | asked))
    assert str(error.value) == f"model.attention='{name}' does not support {field}; these do: {able}"


def test_splash_needs_whole_blocks():
    with pytest.raises(AttentionError, match=r"splash.*multiple of 128 as data\.seq_len, not 100"):
        attend("splash", *arrays(100), None, None)


@pytest.mark.parametrize(
    "platform, shape, segments, message",
    [
        ("gpu", (2, 128, 4, 12), None, r"multiple of 8 up to 256 .* as model\.head_dim, not 12"),
        ("gpu", (2, 128, 4, 512), None, r"multiple of 8 up to 256 .* as model\.head_dim, not 512"),
        ("gpu", (2, 127, 4, 64), np.ones((2, 127), np.int32), r"even data\.seq_len, not 127"),
        (None, (2, 128, 4, 64), None, "needs a mesh with devices"),
    ],
)
def test_cudnn_names_what_does_not_suit_it(monkeypatch, platform, shape, segments, message):
    monkeypatch.setattr(attention_kernels, "target_platform", lambda: platform)
    x = jnp.zeros(shape, jnp.bfloat16)
    with pytest.raises(AttentionError, match=message):
        attention_kernels.cudnn(x, x, x, Mask(segments))


def lowered_train_step(attention_name: str, platform: str, **fields) -> str:
    """Return the program of the decoder's train step on 512 devices that do not exist."""
    axes = {"data": 8, "fsdp": 16, "tensor": 4}
    cfg = Config(
        model=ModelConfig(
            vocab_size=512, num_layers=2, d_model=512, num_heads=8, num_kv_heads=4, attention=attention_name, **fields
        ),
        data=DataConfig(seq_len=256),
        train=TrainConfig(global_batch_size=256),
        mesh=MeshConfig(**axes),
    )
    mesh = AbstractMesh(tuple(axes.get(axis, 1) for axis in MESH_AXES), MESH_AXES, axis_types=(AxisType.Explicit,) * 7)
    model = models.build(cfg.model)
    tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
    with jax.sharding.use_abstract_mesh(mesh):
        layout = sharding.layout(cfg.mesh, mesh, model.specs)
        state = jax.eval_shape(lambda: step.init_state(cfg, model, tx, layout))
        rows = NamedSharding(mesh, layout.act("batch", "seq"))
        dtypes = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32, "segments": jnp.int32}
        batch = {name: jax.ShapeDtypeStruct((256, 256), dtype, sharding=rows) for name, dtype in dtypes.items()}
        traced = jax.jit(step.make_train_step(cfg, model, tx, layout)).trace(state, batch)
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    "fields", [{}, {"sliding_window": 64, "attn_softcap": 30.0, "dtype": "bfloat16", "remat": "full"}], ids=str
)
def test_splash_lowers_for_tpu_without_one(fields):
    # Forward, dq and dkv; rematerialisation adds a second forward.
    assert lowered_train_step("splash", "tpu", **fields).count("tpu_custom_call") == 3 + ("remat" in fields)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_xla_lowers_for_every_platform(platform):
    assert "sdy.manual_computation" in lowered_train_step("xla", platform)
