"""Attention back ends that hand the whole computation to a kernel, each run on every device's own rows and heads.

Legend: B batch, S query positions, T key positions, H heads, G kv heads, K head dim.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.models.attention.masks import AttentionError, Mask
from bigjax.models.parts import devices
from bigjax.sharding import UNSHARDED, Layout

SPLASH_BLOCKS = (512, 256, 128)
"""Block lengths of the splash kernel, best first; its lanes are 128 wide, so smaller ones do not exist."""


def target_platform() -> str | None:
    """Return the platform a program traced here is for: `cpu`, `gpu` or `tpu`; None under an abstract mesh.

    A mesh with devices decides, also one over the devices of a topology that is not attached. Under an abstract mesh
    only the lowering will tell.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.default_backend()
    device = mesh.abstract_device
    return None if device is None else device.platform


def unmet(name: str, seq_len: int, head_dim: int, segments: bool) -> str:
    """Return what the kernel `name` needs of the shapes and does not get; empty if they suit it."""
    if name == "splash" and seq_len % SPLASH_BLOCKS[-1]:
        return f"a multiple of {SPLASH_BLOCKS[-1]} as data.seq_len, not {seq_len}"
    if name == "cudnn" and (head_dim % 8 or head_dim > 256):
        return f"a multiple of 8 up to 256 (128 before Hopper) as model.head_dim, not {head_dim}"
    if name == "cudnn" and segments and seq_len % 2:
        return f"data.document_mask=False or an even data.seq_len, not {seq_len}"
    return ""


def xla(q_BSHK, k_BTGK, v_BTGK, mask: Mask, *, softcap=None, dropout=None, layout=UNSHARDED):
    """`jax.nn.dot_product_attention` as plain XLA operations."""
    del softcap, dropout
    if mask.key_segments_BT is not None:
        return _on_shards(_cross_product, q_BSHK, k_BTGK, v_BTGK, Mask(mask.key_segments_BT), layout)
    return _on_shards(partial(_dot_product, "xla", mask.window, mask.causal), q_BSHK, k_BTGK, v_BTGK, mask, layout)


def cudnn(q_BSHK, k_BTGK, v_BTGK, mask: Mask, *, softcap=None, dropout=None, layout=UNSHARDED):
    """cuDNN's fused attention (Dao 2023) through `jax.nn.dot_product_attention`.

    Documents are kept apart by a bias `(B, 1, S, T)`: that array is stored, the scores are not.

    Raises:
      AttentionError: head_dim or the sequence length does not suit the kernel, or the library is missing, or the mesh
        is abstract. Even a program that is only lowered needs the library, because JAX asks for its version.
    """
    del softcap, dropout
    if target_platform() is None:
        raise AttentionError(
            "model.attention='cudnn' needs a mesh with devices (a topology's will do), not an abstract one"
        )
    if need := unmet("cudnn", q_BSHK.shape[1], q_BSHK.shape[-1], mask.segments_BS is not None):
        raise AttentionError(f"model.attention='cudnn' needs {need}")
    try:
        return _on_shards(
            partial(_dot_product, "cudnn", mask.window, mask.causal), q_BSHK, k_BTGK, v_BTGK, mask, layout
        )
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise AttentionError(
            f"model.attention='cudnn' needs the cuDNN library: pip install 'bigjax[cuda]' ({error})"
        ) from error


def splash(q_BSHK, k_BTGK, v_BTGK, mask: Mask, *, softcap=None, dropout=None, layout=UNSHARDED):
    """Splash attention, the block-sparse flash attention of Pallas for TPUs; interpreted (slowly) on a CPU.

    Raises:
      AttentionError: the sequence length is not a multiple of 128.
    """
    del dropout
    seq_len = q_BSHK.shape[1]
    if need := unmet("splash", seq_len, q_BSHK.shape[-1], mask.segments_BS is not None):
        raise AttentionError(f"model.attention='splash' needs {need}")

    def kernel(q, k, v, segments):
        return run_splash(splash_kernel(seq_len, q.shape[2], mask, softcap), q, k, v, segments, segments)

    return _on_shards(kernel, q_BSHK, k_BTGK, v_BTGK, mask, layout)


def run_splash(attend: Any, q_BSHK, k_BTGK, v_BTGK, segments_BS, key_segments_BT) -> jax.Array:
    """Attend with a kernel that `splash_kernel` made; documents may be None."""
    # Imported here: Pallas' TPU modules take as long to import as the rest of the model code together.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BSHK * q_BSHK.shape[-1] ** -0.5, k_BTGK, v_BTGK))
    documents = () if segments_BS is None else (kernel.SegmentIds(segments_BS, key_segments_BT),)
    out: Any = jax.vmap(attend)(q, k, v, *documents)
    return jnp.swapaxes(out, 1, 2)


def splash_kernel(seq_len: int, num_heads: int, mask: Mask, softcap, places: np.ndarray | None = None) -> Any:
    """Return the kernel for rows of `seq_len`, a pytree.

    With `places`, `(devices, queries of a device)`, it is for devices that each have some of the queries of a row, at
    these places, and all of its keys: its own `manual_sharding_spec` says how a `shard_map` takes it in.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (seq_len, seq_len)
    one: Any
    if mask.window is not None:
        one = masks.LocalMask(shape, (mask.window - 1, 0), 0)
    else:
        one = masks.CausalMask(shape) if mask.causal else masks.FullMask(shape)
    shards, queries = (1, seq_len) if places is None else places.shape
    if places is not None:
        one.q_sequence = places.reshape(-1).astype(np.int32)
    block = next(size for size in SPLASH_BLOCKS if queries % size == 0)
    sizes = kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return kernel.make_splash_mha(
        masks.MultiHeadMask([one] * num_heads),
        block_sizes=sizes,
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=shards,
        interpret=target_platform() == "cpu",
    )


def _dot_product(implementation, window: int | None, causal: bool, q, k, v, segments):
    # With documents the window is part of the array that tells them apart: cuDNN need not combine it with a bias.
    allowed = None if segments is None else Mask(segments, window, causal).dense(q.shape[1])
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=allowed,
        is_causal=causal,
        local_window_size=None if window is None or segments is not None else (window - 1, 0),
        implementation=implementation,
    )


def _cross_product(q, k, v, key_segments):
    seen = Mask(key_segments_BT=key_segments).dense(q.shape[1])
    return jax.nn.dot_product_attention(q, k, v, mask=seen, implementation="xla")


def _on_shards(kernel: Callable[..., jax.Array], q_BSHK, k_BTGK, v_BTGK, mask: Mask, layout: Layout) -> jax.Array:
    """Run `kernel(q, k, v, segments or None)` on each device's rows and heads; no kernel is split by the compiler."""
    if not layout.sizes:
        return kernel(q_BSHK, k_BTGK, v_BTGK, mask.segments_BS)
    heads, rows = layout.act("batch", "seq", "heads", "head_dim"), layout.act("batch", "seq")
    # Pallas calls do not say over which mesh axes their results vary, so that check is off.
    run = partial(devices.shard_map, layout=layout, out_specs=heads, check_vma=False)
    if mask.segments_BS is None:
        return run(lambda q, k, v: kernel(q, k, v, None), in_specs=(heads,) * 3)(q_BSHK, k_BTGK, v_BTGK)
    return run(kernel, in_specs=(heads, heads, heads, rows))(q_BSHK, k_BTGK, v_BTGK, mask.segments_BS)
