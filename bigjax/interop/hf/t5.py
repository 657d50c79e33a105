"""T5 and T5 v1.1 (Raffel et al. 2020) at Hugging Face.

A config says two things at once with `tie_word_embeddings`: false means that the output matrix is a tensor of its own,
and that hidden states are not scaled before it. transformers 5 writes true for every model, and says the two with
`scale_decoder_outputs`.
"""

from typing import Any

from bigjax.config import ModelConfig
from bigjax.interop.hf.architecture import Architecture, Settings

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gated-gelu": "geglu",
    "gated-silu": "swiglu",
}
TIED, SCALED, MLP = "tie_word_embeddings", "scale_decoder_outputs", "feed_forward_proj"


def _tensors(side: str, halves: dict[str, str]) -> dict[str, str]:
    block = f"{side}.block.{{layers}}.layer"
    table = {
        f"{side}/final_norm/scale": f"{side}.final_layer_norm.weight",
        f"{side}/relative": f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    }
    for number, (ours, theirs) in enumerate(halves.items()):
        inner = {"up": "wi", "down": "wo"} if ours == "mlp" else {name: name for name in "qkvo"}
        table[f"{side}/blocks/{ours}_norm/scale"] = f"{block}.{number}.layer_norm.weight"
        table |= {f"{side}/blocks/{ours}/{a}": f"{block}.{number}.{theirs}.{b}.weight" for a, b in inner.items()}
    return table


READING, WRITING = (
    {"attn": "SelfAttention", "mlp": "DenseReluDense"},
    {"attn": "SelfAttention", "cross": "EncDecAttention", "mlp": "DenseReluDense"},
)
TENSORS = {
    "embed/tokens": "shared.weight",
    "head/tokens": "lm_head.weight",
    **_tensors("encoder", READING),
    **_tensors("decoder", WRITING),
}
GATED = {
    f"{side}/blocks/mlp/{ours}": f"{side}.block.{{layers}}.layer.{number}.DenseReluDense.{theirs}.weight"
    for side, number in (("encoder", 1), ("decoder", 2))
    for ours, theirs in (("gate", "wi_0"), ("up", "wi_1"))
}


def _read(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    del fields
    name = settings.take(MLP, "relu")
    if name not in ACTIVATIONS:
        raise settings.uncovered(MLP, name, list(ACTIVATIONS))
    # What transformers derives from it, and writes beside it.
    gated, inner = name.startswith("gated-"), name.removeprefix("gated-")
    inner = "gelu_new" if name == "gated-gelu" else inner
    for key, value, covered in (
        ("dense_act_fn", settings.take("dense_act_fn", inner), inner),
        ("is_gated_act", settings.take("is_gated_act", gated), gated),
    ):
        if value != covered:
            raise settings.uncovered(key, value, [covered])
    tied = settings.take(TIED, True)
    scaled = settings.take(SCALED, tied)
    if scaled and not tied:
        raise settings.uncovered(SCALED, scaled, [False])
    return {"activation": ACTIVATIONS[name], "tie_embeddings": scaled, "encdec.scale_logits": scaled}


def _write(cfg: ModelConfig) -> dict[str, Any]:
    name = next((name for name, ours in ACTIVATIONS.items() if ours == cfg.activation), "relu")
    scaled = getattr(cfg.own, "scale_logits", False)
    return {MLP: name, TIED: scaled, SCALED: scaled, "num_decoder_layers": cfg.num_decoder_layers}


T5 = Architecture(
    model_type="t5",
    class_name="T5ForConditionalGeneration",
    tensors=TENSORS,
    gated=GATED,
    fields={
        "vocab_size": ("vocab_size", 32128),
        "num_layers": ("num_layers", 6),
        "encdec.num_decoder_layers": ("num_decoder_layers", 0),
        "d_model": ("d_model", 512),
        "num_heads": ("num_heads", 8),
        "head_dim": ("d_kv", 64),
        "d_ff": ("d_ff", 2048),
        "max_seq_len": ("n_positions", 512),
        "encdec.relative_buckets": ("relative_attention_num_buckets", 32),
        "encdec.relative_max_distance": ("relative_attention_max_distance", 128),
        "dropout": ("dropout_rate", 0.1),
        "norm_eps": ("layer_norm_epsilon", 1e-6),
        "init_std": ("initializer_factor", 1.0),
    },
    fixed={
        "family": "encdec",
        "positions": "relative",
        "norm": "rmsnorm",
        "bias": "none",
        "attn_scale": 1.0,
        "init": "fan_in",
    },
    required={"is_encoder_decoder": True, "is_decoder": False},
    read=_read,
    write=_write,
    prefix="",
    copies=dict.fromkeys(
        ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "embed/tokens"
    ),
    # In the released checkpoints, and without effect: attention to what is read has no positions.
    unused=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)
