"""The training steps that `benchmarks.analytic_memory` compares: small models of every family, one and eight chips."""

from typing import Any

from bigjax.config import Config, DataConfig, MeshConfig, ModelConfig, MoeConfig, OptimConfig, TrainConfig

GPT: dict[str, Any] = {"num_heads": 8, "positions": "learned", "norm": "layernorm", "activation": "gelu_tanh"}
LLAMA: dict[str, Any] = {
    "num_heads": 8,
    "num_kv_heads": 4,
    "d_ff": 2816,
    "positions": "rotary",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": "none",
    "tie_embeddings": False,
}


def _case(
    shape: dict,
    rows: int,
    remat: str = "full",
    optim: Any = "adamw",
    ema: float | None = None,
    train: dict | None = None,
    mesh: dict | None = None,
    seq_len: int = 1024,
    target_len: int = 0,
    **model,
) -> Config:
    """Return a config: `rows` a step in all, 4 layers of width 1024, 16384 words, bfloat16, one device by default."""
    sizes = {"num_layers": 4, "d_model": 1024, "vocab_size": 16384, "max_seq_len": seq_len, "dtype": "bfloat16"}
    return Config(
        model=ModelConfig(**{**sizes, **shape, "remat": remat, **model}),
        data=DataConfig(seq_len=seq_len, target_len=target_len),
        train=TrainConfig(global_batch_size=rows, **(train or {})),
        optim=OptimConfig(name=optim, ema_decay=ema),
        mesh=MeshConfig(**{"data": 1, **(mesh or {})}),
    )


BERT: dict[str, Any] = {
    "family": "encoder",
    "num_heads": 8,
    "token_types": 2,
    "norm_placement": "post",
    "activation": "gelu",
}
T5: dict[str, Any] = {
    "family": "encdec",
    "num_heads": 8,
    "positions": "relative",
    "norm": "rmsnorm",
    "activation": "relu",
    "bias": "none",
    "encdec": {"scale_logits": True},
    "attn_scale": 1.0,
    "init": "fan_in",
}
T5_V1_1 = {**T5, "activation": "geglu", "tie_embeddings": False, "encdec": {}}
TRANSFORMER: dict[str, Any] = {
    "family": "encdec",
    "num_heads": 8,
    "positions": "sinusoidal",
    "norm_placement": "post",
    "activation": "relu",
}


def _sparse(rows: int, remat: str = "full", *, moe: dict | None = None, **how) -> Config:
    """Return a Llama with 8 experts, half as wide as its MLP was."""
    return _case({**LLAMA, "d_ff": 1408}, rows, remat, moe=MoeConfig(num_experts=8, **(moe or {})), **how)


def _bert(rows: int, remat: str = "full", **how) -> Config:
    """Return an encoder that predicts masked tokens of rows of 512."""
    return _case(BERT, rows, remat, **{"seq_len": 512, "train": {"objective": "masked_lm"}, "attention": "xla", **how})


def _t5(rows: int, remat: str = "full", shape: dict = T5, train: dict | None = None, **how) -> Config:
    """Return an encoder-decoder that writes what is missing from rows of 512."""
    train = {"objective": "span_corruption", **(train or {})}
    return _case(shape, rows, remat, train=train, **{"seq_len": 512, "target_len": 512, **how})


def _rnn(rows: int, remat: str = "none", **how) -> Config:
    """Return four recurrent layers that read rows of 256."""
    shape: dict[str, Any] = {"family": "rnn", "tie_embeddings": False, "max_seq_len": 1024}
    return _case(shape, rows, remat, seq_len=256, **how)


READ: dict[str, Config] = {
    "gpt none": _case(GPT, 8, "none"),
    "gpt full": _case(GPT, 8),
    "gpt dots": _case(GPT, 8, "dots"),
    "gpt save attn_out,mlp_out": _case(GPT, 16, "save:attn_out,mlp_out", num_layers=8),
    "gpt none blocked": _case(GPT, 8, "none", attention="blocked"),
    "gpt full blocked chunked": _case(GPT, 16, attention="blocked", train={"loss_chunks": 8}),
    "gpt full microbatches": _case(GPT, 16, train={"microbatches": 4}, num_layers=8),
    "gpt none unroll": _case(GPT, 8, "none", layers="unroll"),
    "gpt full unroll": _case(GPT, 8, layers="unroll"),
    "gpt full float32": _case(GPT, 8, dtype="float32"),
    "gpt none float32": _case(GPT, 4, "none", dtype="float32"),
    "gpt full splash": _case(GPT, 16, attention="splash", num_layers=8),
    "gpt none xla": _case(GPT, 8, "none", attention="xla"),
    "llama none": _case(LLAMA, 8, "none"),
    "llama full": _case(LLAMA, 8, num_layers=8),
    "llama dots splash": _case(LLAMA, 16, "dots", attention="splash", num_layers=8),
    "llama none splash": _case(LLAMA, 8, "none", attention="splash", num_layers=8),
    "llama full chunked microbatches": _case(LLAMA, 32, train={"loss_chunks": 8, "microbatches": 2}),
    "llama save qkv,attn_mixed,mlp_hidden": _case(LLAMA, 8, "save:qkv,attn_mixed,mlp_hidden"),
    "llama dots unroll": _case(LLAMA, 8, "dots", layers="unroll"),
    "llama full adafactor": _case(LLAMA, 8, optim="adafactor"),
    "llama full sgd average": _case(LLAMA, 8, optim="sgd", ema=0.99),
    "gpt full data8": _case(GPT, 64, mesh={"data": 8}),
    "llama none blocked data8": _case(LLAMA, 64, "none", attention="blocked", mesh={"data": 8}),
    "gpt full fsdp8": _case(GPT, 64, mesh={"fsdp": 8}, num_layers=8),
    "llama none fsdp8": _case(LLAMA, 64, "none", mesh={"fsdp": 8}),
    "llama dots chunked fsdp8": _case(LLAMA, 128, "dots", train={"loss_chunks": 8}, mesh={"fsdp": 8}),
    "gpt full unroll fsdp8": _case(GPT, 64, layers="unroll", mesh={"fsdp": 8}),
    "gpt full tensor8": _case(GPT, 32, mesh={"tensor": 8}),
    "llama dots data2 tensor4": _case(LLAMA, 32, "dots", mesh={"data": 2, "tensor": 4}),
    "gpt full fsdp4 tensor2": _case(GPT, 64, mesh={"fsdp": 4, "tensor": 2}, num_layers=8),
    "llama full microbatches data2 fsdp2 tensor2": _case(
        LLAMA, 128, train={"microbatches": 2}, mesh={"data": 2, "fsdp": 2, "tensor": 2}
    ),
    "llama full sequence data2 tensor4": _case(
        LLAMA, 64, mesh={"data": 2, "tensor": 4, "shard_sequence": True}, num_layers=8
    ),
    "gpt save qkv data4 fsdp2": _case(GPT, 64, "save:qkv", mesh={"data": 4, "fsdp": 2}),
    "llama none splash fsdp4 tensor2": _case(
        LLAMA, 64, "none", attention="splash", mesh={"fsdp": 4, "tensor": 2}, num_layers=8
    ),
    "moe full": _sparse(8),
    "moe none": _sparse(8, "none"),
    "moe full capacity": _sparse(8, moe={"capacity_factor": 1.25}),
    "moe full fsdp8": _sparse(64, mesh={"fsdp": 8}),
    "moe full capacity expert8": _sparse(
        64, moe={"capacity_factor": 2.0, "router": "gshard", "group_size": 512}, mesh={"expert": 8}
    ),
    "moe full expert4 fsdp2": _sparse(32, mesh={"expert": 4, "fsdp": 2}),
    "moe dots splash every2 fsdp8": _sparse(64, "dots", moe={"every": 2}, attention="splash", mesh={"fsdp": 8}),
    "moe full splash fsdp4 tensor2": _sparse(64, attention="splash", mesh={"fsdp": 4, "tensor": 2}),
    "bert none": _bert(8, "none"),
    "bert full": _bert(32),
    "bert none dropout": _bert(8, "none", dropout=0.1, attention="reference"),
    "bert full dropout data8": _bert(256, dropout=0.1, attention="reference", mesh={"data": 8}),
    "bert full fsdp8": _bert(256, mesh={"fsdp": 8}),
    "bert dots data2 tensor4": _bert(64, "dots", mesh={"data": 2, "tensor": 4}),
    "bert full splash": _bert(32, attention="splash"),
    "t5 none": _t5(8, "none", target_len=128),
    "t5 full": _t5(16),
    "t5 full dropout data8": _t5(128, target_len=114, dropout=0.1, mesh={"data": 8}),
    "t5 gated full fsdp8": _t5(128, shape=T5_V1_1, seq_len=1024, target_len=256, mesh={"fsdp": 8}),
    "t5 gated dots data2 tensor4": _t5(
        32, "dots", shape=T5_V1_1, seq_len=1024, target_len=256, mesh={"data": 2, "tensor": 4}
    ),
    "t5 full adafactor": _t5(16, target_len=256, optim="adafactor"),
    "rnn lstm none": _rnn(64),
    "rnn lstm full": _rnn(128, "full"),
    "rnn gru none": _rnn(64, rnn={"cell": "gru"}),
    "rnn lstm none data8": _rnn(512, mesh={"data": 8}),
    "rnn lstm none fsdp8": _rnn(512, mesh={"fsdp": 8}),
    "rnn lstm none tensor4 data2": _rnn(128, mesh={"tensor": 4, "data": 2}),
    "rnn lstm dropout": _rnn(64, dropout=0.5),
    "rnn lstm dots": _rnn(64, "dots"),
    "moe dots fsdp8": _sparse(64, "dots", attention="splash", mesh={"fsdp": 8}),
    "transformer translation none": _t5(
        64,
        "none",
        shape=TRANSFORMER,
        seq_len=128,
        target_len=128,
        num_layers=6,
        d_model=512,
        d_ff=2048,
        vocab_size=32768,
        train={"objective": "seq2seq"},
    ),
    "moe switch full capacity chunked data2 expert4": _sparse(
        64,
        moe={"capacity_factor": 1.25, "router": "switch"},
        attention="splash",
        num_layers=8,
        train={"loss_chunks": 8},
        mesh={"data": 2, "expert": 4},
    ),
}
"""Cases whose compiled programs told which arrays are alive at the peak."""

HELD_OUT: dict[str, Config] = {
    "gpt dots wide": _case(GPT, 4, "dots", seq_len=2048, d_model=2048, num_heads=16, num_layers=3, vocab_size=32768),
    "gpt none heads of 64": _case(GPT, 8, "none", num_heads=16),
    "gpt none relu_squared blocked": _case(GPT, 16, "none", activation="relu_squared", attention="blocked"),
    "gpt full deep data8": _case(GPT, 64, mesh={"data": 8}, d_model=768, num_heads=6, num_layers=12),
    "gpt offload mlp_hidden": _case(GPT, 8, "offload:mlp_hidden", num_layers=8),
    "gpt dots gelu chunked data4 tensor2": _case(
        GPT, 64, "dots", activation="gelu", train={"loss_chunks": 4}, mesh={"data": 4, "tensor": 2}
    ),
    "llama full muon fsdp8": _case(LLAMA, 64, optim="muon", mesh={"fsdp": 8}),
    "llama dots blocked window": _case(LLAMA, 8, "dots", attention="blocked", sliding_window=256, seq_len=2048),
    "llama full splash long fsdp2 tensor4": _case(
        LLAMA, 16, attention="splash", seq_len=4096, num_layers=8, mesh={"fsdp": 2, "tensor": 4, "shard_sequence": True}
    ),
    "llama none unroll chunked microbatches fsdp8": _case(
        LLAMA, 128, "none", layers="unroll", train={"loss_chunks": 8, "microbatches": 2}, mesh={"fsdp": 8}
    ),
    "gpt full slice2 data4": _case(GPT, 64, mesh={"slice": 2, "data": 4}),
    "gpt full slice2 fsdp4": _case(GPT, 64, mesh={"slice": 2, "fsdp": 4}),
    "llama 1b full splash chunked long fsdp8": _case(
        LLAMA,
        8,
        attention="splash",
        seq_len=8192,
        num_layers=16,
        d_model=2048,
        num_heads=32,
        num_kv_heads=8,
        d_ff=8192,
        vocab_size=128256,
        tie_embeddings=True,
        train={"loss_chunks": 16},
        mesh={"fsdp": 8},
    ),
    "moe full splash wide chunked fsdp8": _sparse(
        32, attention="splash", num_layers=6, d_model=2048, num_heads=16, train={"loss_chunks": 8}, mesh={"fsdp": 8}
    ),
    "bert large full data8": _bert(
        256,
        num_layers=12,
        num_heads=16,
        vocab_size=30522,
        dropout=0.1,
        attention="reference",
        mesh={"data": 8},
    ),
    "bert classification none": _bert(
        32,
        "none",
        seq_len=256,
        num_layers=8,
        head="classification",
        num_classes=3,
        train={"objective": "classification"},
    ),
    "t5 v1_1 full chunked fsdp4 tensor2": _t5(
        128,
        shape=T5_V1_1,
        target_len=128,
        num_layers=8,
        train={"loss_chunks": 4},
        mesh={"fsdp": 4, "tensor": 2},
    ),
    "rnn gru full chunked data8": _rnn(1024, "full", rnn={"cell": "gru"}, train={"loss_chunks": 8}, mesh={"data": 8}),
    "t5 v1_1 none data8": _t5(64, "none", shape=T5_V1_1, seq_len=256, target_len=128, num_layers=6, mesh={"data": 8}),
    "rnn gru dots tensor2 data4": _rnn(256, "dots", rnn={"cell": "gru"}, mesh={"data": 4, "tensor": 2}),
    "t5 gshard full chunked data2 expert4": _t5(
        128,
        shape={**T5_V1_1, "d_ff": 2048},
        target_len=128,
        moe=MoeConfig(num_experts=8, every=2, capacity_factor=2.0),
        train={"loss_chunks": 4},
        mesh={"data": 2, "expert": 4},
    ),
}
"""Cases compiled once, after the model was settled: the error to expect elsewhere."""
