"""Does dropout that is the same at every time step (Gal & Ghahramani 2016) beat naive dropout and none?

Run `python -m experiments.train --config=configs/rnn.py:variational`, then `rnn.py:naive` and `rnn.py:none`.

A model of bytes, two LSTMs 192 wide (690,048 parameters), on the packaged Shakespeare: 32 lanes of 64 bytes, state
carried along each, 2,000 steps (4.1 million bytes, 0.86 epochs, 4 to 7 minutes on two busy CPU cores). One seed:

    dropout                  rate   held-out bits per byte
    none                     0      2.563
    naive                    0.1    2.586
    variational              0.1    2.657

So not here: in less than one epoch nothing is seen twice, there is nothing to overfit, and dropout only slows learning
down. What the paper reports is for 39 and more epochs of a small text, which `medium` and `large` are made for: the
shapes of Zaremba et al. (2014), a vocabulary of 10,000 and two layers 650 or 1,500 wide, 20 lanes of 35 tokens, plain
SGD. Give them the Penn Treebank with `--config.data.sources=text:PATH`; it is not packaged, and its results have not
been reproduced here. `large` has the rates of the code published with the paper, `medium` 0.5 everywhere. The learning
rate falls linearly after the first epochs, where the papers divide it after each. The loss is a mean over tokens,
theirs a sum over the 35 of a row: so the learning rate is 35 times theirs, and the largest norm of a gradient a 35th.
"""

from ml_collections import ConfigDict

from bigjax import config
from bigjax.config import Config, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig, strict
from bigjax.config.strict import ConfigError
from bigjax.models.rnn import RATES
from bigjax.science.variational import weight_decay

PTB_TOKENS = 929_589
"""Tokens of the Penn Treebank's training set, with the ends of sentences (Mikolov et al. 2010)."""

SHAKESPEARE_BYTES = 4_744_475
"""Tokens of the packaged training text in bytes."""

ABLATION = {
    "variational": {"dropout": 0.1, "rnn.dropout_kind": "variational"},
    "naive": {"dropout": 0.1, "rnn.dropout_kind": "naive"},
    "none": {"dropout": 0.0},
}
SIZES = ("medium", "large")
ARGUMENTS = (*ABLATION, *SIZES)


def shakespeare() -> Config:
    """Return a small model of bytes."""
    return Config(
        model=ModelConfig(family="rnn", num_layers=2, d_model=192, vocab_size=257, tie_embeddings=False, init_std=0.05),
        data=DataConfig(tokenizer="bytes", seq_len=64, order="contiguous"),
        train=TrainConfig(steps=2000, global_batch_size=32),
        optim=OptimConfig(name="adam", lr=4e-3, warmup=0.01, b2=0.99),
        log=LogConfig(sample_prompt="ROMEO.\n", sample_tokens=200),
    )


def penn_treebank(width: int, init: float, clip: float, epochs: tuple[int, int], rates: tuple[float, ...]) -> Config:
    """Return a model of the published shape; 20 lanes of 35 tokens at a time.

    Args:
      rates: of dropout on words, inputs, state and output.
      init: the weights start uniformly between -init and init. clip: the largest norm of the gradient.
      epochs: at the full learning rate, and with one that falls.
    """
    tokens = 35
    steps, decay = (count * PTB_TOKENS // (20 * tokens) for count in (sum(epochs), epochs[1]))
    return Config(
        model=ModelConfig(
            family="rnn",
            num_layers=2,
            d_model=width,
            vocab_size=10_000,
            tie_embeddings=False,
            init_std=init / 3**0.5,  # uniform from -init to init
            rnn=dict(zip(RATES, rates, strict=True)),
        ),
        data=DataConfig(tokenizer="bpe:10000", seq_len=tokens, order="contiguous", document_mask=False),
        train=TrainConfig(steps=steps, global_batch_size=20),
        optim=OptimConfig(
            name="sgd",
            momentum=0.0,
            lr=1.0 * tokens,
            grad_clip=clip / tokens,
            schedule="wsd",
            decay=decay / steps,
            end_lr_ratio=0.0,
            # A prior this narrow gives about the 1e-7 of the weights that the published code takes off in a step.
            weight_decay=2 * weight_decay(0.07, 0.5, PTB_TOKENS),
        ),
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of a row of the ablation, or of a published size."""
    name = arg or "variational"
    if name not in ARGUMENTS:
        raise ConfigError(f"configs/rnn.py has no {name!r}, only {', '.join(ARGUMENTS)}")
    if name in ABLATION:
        decay = 2 * weight_decay(1.0, ABLATION[name]["dropout"], SHAKESPEARE_BYTES)
        cfg = config.replace(shakespeare(), model=ABLATION[name], optim={"weight_decay": decay})
    elif name == "medium":
        cfg = penn_treebank(650, 0.05, 5.0, (6, 33), (0.5, 0.5, 0.5, 0.5))
    else:
        cfg = penn_treebank(1500, 0.04, 10.0, (10, 45), (0.3, 0.5, 0.3, 0.5))
    return strict.to_config_dict(cfg)
