"""The recurrent model against `torch.nn.LSTM` and `torch.nn.GRU`: outputs, final states and every gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.config import ModelConfig
from bigjax.models import rnn
from bigjax.params import init, names
from tests.models_of import model_of

torch: Any = pytest.importorskip("torch", reason="the oracle is PyTorch")

SHAPES = [(1, 1, 1, 1), (3, 7, 5, 2), (2, 13, 11, 3), (5, 4, 8, 1)]
"""Rows, steps, width, layers."""
V = 19
TOLERANCE = 2e-5
"""Float32, sums of at most 13 x 11 terms over 13 steps: 40 times the rounding of one."""


def peer_of(cfg: ModelConfig, params: Any) -> Any:
    """Return the module of PyTorch with the same weights."""
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cfg.own.cell]
    D = cfg.d_model
    peer = kind(D, D, cfg.num_layers, bias=cfg.bias == "all", batch_first=True)
    blocks = jax.tree.map(lambda w: np.array(w), params["blocks"])
    with torch.no_grad():
        for layer in range(cfg.num_layers):
            for ours, theirs in (("input", "ih"), ("recurrent", "hh")):
                rows = blocks[ours][layer].reshape(D, -1).T
                getattr(peer, f"weight_{theirs}_l{layer}").copy_(torch.tensor(rows))
            if cfg.bias == "all":
                getattr(peer, f"bias_ih_l{layer}").copy_(torch.tensor(blocks["bias"][layer].reshape(-1)))
                second = getattr(peer, f"bias_hh_l{layer}").zero_()
                if cfg.own.cell == "gru":
                    second[2 * D :] = torch.tensor(blocks["candidate_bias"][layer])
    return peer


def gradients_of(peer: Any, cfg: ModelConfig) -> dict[str, np.ndarray]:
    """Return the gradients of the module's weights by our names."""
    found: dict[str, list] = {}
    for layer in range(cfg.num_layers):
        for ours, theirs in (("input", "ih"), ("recurrent", "hh")):
            g = getattr(peer, f"weight_{theirs}_l{layer}").grad.numpy()
            found.setdefault(f"blocks/{ours}", []).append(g.T.reshape(cfg.d_model, -1, cfg.d_model))
        if cfg.bias == "all":
            bias = getattr(peer, f"bias_ih_l{layer}").grad.numpy()
            found.setdefault("blocks/bias", []).append(bias.reshape(-1, cfg.d_model))
            if cfg.own.cell == "gru":
                second = getattr(peer, f"bias_hh_l{layer}").grad.numpy()
                found.setdefault("blocks/candidate_bias", []).append(second[-cfg.d_model :])
    return {name: np.stack(layers) for name, layers in found.items()}


@pytest.mark.sample(6)
@pytest.mark.parametrize("bias", ["all", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_outputs_states_and_gradients(cell, shape, bias):
    B, S, D, L = shape
    layers: Any = "unroll" if L == 3 else "scan"
    cfg = model_of(
        family="rnn", cell=cell, vocab_size=V, num_layers=L, d_model=D, init_std=0.5, bias=bias, layers=layers
    )
    rng = np.random.default_rng(0)
    params = init(rnn.specs(cfg), jax.random.key(1))
    params["blocks"] = {  # biases start at zero, where they prove nothing
        name: jnp.asarray(rng.normal(size=w.shape), jnp.float32) if "bias" in name else w
        for name, w in params["blocks"].items()
    }
    tokens_BS = rng.integers(0, V, (B, S))
    state = {name: rng.normal(size=(B, L, D)).astype(np.float32) for name in ("h", "c")[: 2 if cell == "lstm" else 1]}
    weights_BSD = rng.normal(size=(B, S, D)).astype(np.float32)

    def ours(params):
        x, after = rnn.apply_segment(params, jnp.asarray(tokens_BS), state, cfg)
        return jnp.sum(x * weights_BSD), (x, after)

    grads, (x, after) = jax.jit(jax.grad(ours, has_aux=True))(params)

    peer = peer_of(cfg, params)
    table = torch.tensor(np.array(params["embed"]["tokens"]), requires_grad=True)
    start = [torch.tensor(np.ascontiguousarray(s.swapaxes(0, 1))) for s in state.values()]
    out, last = peer(table[torch.tensor(tokens_BS)], tuple(start) if cell == "lstm" else start[0])
    (out * torch.tensor(weights_BSD)).sum().backward()

    np.testing.assert_allclose(x, out.detach().numpy(), atol=TOLERANCE)
    for name, theirs in zip(state, last if cell == "lstm" else [last], strict=True):
        np.testing.assert_allclose(after[name], theirs.detach().numpy().swapaxes(0, 1), atol=TOLERANCE)
    expected = gradients_of(peer, cfg) | {"embed/tokens": table.grad.numpy()}
    found = {name: np.asarray(g) for name, g in names(grads).items() if name != "head/tokens"}
    assert found.keys() == expected.keys()
    for name, g in expected.items():
        scale = max(1.0, float(np.abs(g).max()))
        np.testing.assert_allclose(found[name], g, atol=TOLERANCE * scale, err_msg=name)
