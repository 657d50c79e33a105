"""The library on one page: a small GPT learns Shakespeare, letter by letter, in half a minute on two CPU cores.

    python -m experiments.minimal

`experiments.train` does the same, to the last bit of every loss, and beside it all that a run of days needs: a folder,
checkpoints, evaluation, metrics, and answers to what can go wrong.
"""

import itertools
from pathlib import Path

import jax

from bigjax import data, models, sharding
from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.run import plots
from bigjax.train import optimizers, step

# Config: frozen dataclasses that check each other as they are made. What is left out has a default.
CONFIG = Config(
    model=ModelConfig(vocab_size=256, num_layers=2, d_model=64, num_heads=2, max_seq_len=64, positions="rotary"),
    data=DataConfig(sources=("shakespeare",), tokenizer="bytes", seq_len=64),
    train=TrainConfig(steps=200, global_batch_size=32),
    optim=OptimConfig(name="adamw", lr=5e-3, schedule="cosine", warmup=0.1),
)


def train(cfg: Config) -> list[float]:
    """Train from the first to the last step; return the loss of each in nats per token."""
    # Mesh: the devices at hand along named axes. The layout says where every parameter and activation lives on them.
    mesh = sharding.make_mesh(cfg.mesh)
    model = models.build(cfg.model)
    layout = sharding.fit(cfg, mesh, model.specs)

    # Data: the batch of a step depends on the config and the step alone. This process reads its own rows of each.
    batch_size = cfg.train.global_batch_size
    text = data.build(cfg, sharding.local_rows(mesh, batch_size))

    losses = []
    with jax.set_mesh(mesh), text.train.batches(start_step=0) as batches:
        # State: all that a step changes, parameters and optimizer; made on the devices, each its own part.
        optimizer = optimizers.build(cfg.optim, model.specs, cfg.train.steps)
        state = step.jit_init_state(cfg, model, optimizer, layout)()

        # Step: a pure function, compiled once. It takes the old state for good, so that its memory is used again.
        train_step = step.jit_train_step(cfg, model, optimizer, layout)
        for batch in itertools.islice(batches, cfg.train.steps):
            state, metrics = train_step(state, sharding.put_batch(batch.arrays, mesh, batch_size))
            losses.append(float(metrics["loss"]))  # waits for the step; `experiments.train` reads it one step later
            if batch.step % 20 == 0:
                print(f"step {batch.step:3}  loss {losses[-1]:.3f}", flush=True)
    return losses


if __name__ == "__main__":
    picture = Path("runs/minimal/loss.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    plots.draw_loss(picture, list(enumerate(train(CONFIG), start=1)))
    print(f"the loss curve is {picture}")
