"""The workloads that train-step and generation benchmarks share: float32, AdamW, random ids."""

from bigjax.config import CheckpointConfig, Config, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig


def _gpt2(vocab_size: int, num_layers: int, d_model: int, num_heads: int, **model) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size, num_layers=num_layers, d_model=d_model, num_heads=num_heads, max_seq_len=256, **model
    )


def workload(name: str, steps: int) -> Config:
    """Return w1 (GPT-2-like, vocabulary 50304) or w2 (bytes), both with tied embeddings and rows of 256 tokens."""
    models = {
        "w1": _gpt2(50304, 6, 384, 6, attention="blocked", layers="unroll"),
        "w2": _gpt2(256, 4, 256, 4, attention="blocked", layers="unroll"),
    }
    batch_size, chunks = {"w1": (8, 4), "w2": (16, 1)}[name]
    return Config(
        model=models[name],
        data=DataConfig(tokenizer="bytes", seq_len=256, document_mask=False),
        train=TrainConfig(steps=steps, global_batch_size=batch_size, loss_chunks=chunks, eval_batches=1),
        optim=OptimConfig(name="adamw", lr=1e-3, schedule="constant", grad_clip=None),
        checkpoint=CheckpointConfig(every_steps=10**9),
        log=LogConfig(every_steps=1, tensorboard=False, plot=False),
    )
