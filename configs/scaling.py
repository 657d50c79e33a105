"""How does the loss fall with compute, when one dial, the depth, sets everything else?

    python -m experiments.train --config=configs/scaling.py:d8 --config.data.sources='text:data/*.txt' --workdir=runs/d8

The argument is d4 (the default), d6, ... d24: every even depth. From the depth L follow, each by a stated rule:

- Width D = 64 L, in L heads of 64: a constant aspect ratio, as in nanochat's depth dial (Karpathy 2025).
- Parameters N = 12 L D^2 + V D: the matrices of the blocks (Kaplan et al. 2020, table 1) and of the output; the input
  embedding, a look-up, is not counted.
- Tokens T = 20 N (Hoffmann et al. 2022, table 3, the ratio that their approaches 1 and 2 find at every budget), and so
  compute C = 6 N T.
- Batch = 0.292 C^0.3271 tokens (Bi et al. 2024, DeepSeek LLM, equation 1), rounded to a power of two in rows of 1024.
- Learning rate = 3e-3 x 256 / D: 1/width, the rule for hidden matrices under Adam (Yang et al. 2022, table 3). One rate
  serves all parameters, so this is not full muP. The base, at d4, is a common choice, not the outcome of a search.
- Warmup for 2% of the steps, then cosine to 10%; weight decay 0.1 and the Adam betas are those of Brown et al. (2020).

Blocks: rotary positions, rmsnorm, squared ReLU, normalised queries and keys, no biases, untied output.

    depth   N        T        C          batch   steps
    d4      4.2M     84M      2.1e15        32    2560
    d8      27M      545M     8.9e16       128    4160
    d12     88M      1.8B     9.3e17       256    6720
    d24     686M     13.7B    5.6e19      1024   13080

The packaged Shakespeare is about 1.5M of these tokens, so already d4 repeats it over 50 times: give larger text, as
above, before reading a scaling law off the losses.
"""

import math

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.config.strict import ConfigError, to_config_dict

DEPTHS = range(4, 25, 2)
ARGUMENTS = tuple(f"d{depth}" for depth in DEPTHS)
HEAD_DIM = 64
VOCAB_SIZE = 4096
SEQ_LEN = 1024
TOKENS_PER_PARAMETER = 20
BASE_LR, BASE_D_MODEL = 3e-3, 256


def num_parameters(depth: int) -> int:
    """Return the parameters that multiply activations: the matrices of the blocks and of the output."""
    d_model = HEAD_DIM * depth
    return 12 * depth * d_model**2 + VOCAB_SIZE * d_model


def batch_rows(depth: int) -> int:
    """Return the batch size in rows, by the power law in compute of Bi et al. (2024), equation 1."""
    compute = 6 * TOKENS_PER_PARAMETER * num_parameters(depth) ** 2
    return 2 ** round(math.log2(0.2920 * compute**0.3271 / SEQ_LEN))


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of one depth.

    Raises:
        ConfigError: there is no such depth.
    """
    arg = arg or "d4"
    if arg not in ARGUMENTS:
        raise ConfigError(f"there is no depth {arg!r}, only {', '.join(ARGUMENTS)}")
    depth = int(arg.removeprefix("d"))
    d_model, rows = HEAD_DIM * depth, batch_rows(depth)
    steps = math.ceil(TOKENS_PER_PARAMETER * num_parameters(depth) / (rows * SEQ_LEN))
    return to_config_dict(
        Config(
            model=ModelConfig(
                vocab_size=VOCAB_SIZE,
                num_layers=depth,
                d_model=d_model,
                num_heads=depth,
                max_seq_len=SEQ_LEN,
                positions="rotary",
                norm="rmsnorm",
                activation="relu_squared",
                bias="none",
                tie_embeddings=False,
                qk_norm=True,
                dtype="bfloat16",
            ),
            data=DataConfig(tokenizer=f"bpe:{VOCAB_SIZE}", seq_len=SEQ_LEN),
            train=TrainConfig(steps=steps, global_batch_size=rows, eval_every_steps=steps // 20),
            optim=OptimConfig(lr=BASE_LR * BASE_D_MODEL / d_model, warmup=0.02, weight_decay=0.1),
        )
    )
