"""The configuration of sparse layers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Literal

from bigjax.config.fields import bounded


@dataclass(frozen=True)
class MoeConfig:
    """Sparse layers: of `num_experts` feed-forward networks each token sees a few. Zero experts: every layer is dense.

    Every `every`-th layer is sparse, the last of each run of so many; of an encoder-decoder in both stacks. `router`:
    `gshard` is top-2 with a random second expert (Lepikhin et al. 2020), `switch` is top-1 (Fedus et al. 2022), `topk`
    renormalises the weights of the `top_k` best (Jiang et al. 2024, Mixtral); zero in `top_k` means 2, or 1 for
    `switch`.

    With a `capacity_factor` each expert takes `capacity_factor * group / num_experts` tokens of a group, rounded up
    (Fedus et al. 2022, equation 3; GShard's 2 N / (G E) is a factor of 2), and those beyond pass by the residual;
    without one nothing is dropped. A group is `group_size` consecutive tokens of a row, or the row where it is 0.

    `jitter` multiplies what the router reads by uniform(1 - jitter, 1 + jitter). `aux_loss` and `z_loss` weigh the
    losses that balance the experts and keep the router's logits small; they are summed over the layers. Zero in `d_ff`
    means `model.d_ff`.
    """

    num_experts: int = bounded(0, minimum=0)
    """Experts in a sparse layer; 0 means that every layer is dense."""
    every: int = bounded(1, minimum=1)
    """Every how many layers one is sparse."""
    router: Literal["topk", "gshard", "switch"] = "topk"
    """How experts are chosen for a token."""
    top_k: int = bounded(0, minimum=0)
    """Experts for each token; 0 means 2, or 1 for `switch`."""
    capacity_factor: float | None = bounded(None, above=0)
    """How many tokens an expert takes, as a multiple of an equal share; None means all that come."""
    group_size: int = bounded(0, minimum=0)
    """Consecutive tokens of a row that share a capacity; 0 means the whole row."""
    jitter: float = bounded(0.0, minimum=0, below=1)
    """The width of the noise on what the router reads, in training."""
    aux_loss: float = bounded(0.01, minimum=0)
    """The weight of the loss that balances the experts (Fedus et al. 2022, equation 4)."""
    z_loss: float = bounded(0.0, minimum=0)
    """The weight of the loss that keeps the router's logits small (Zoph et al. 2022)."""
    d_ff: int = bounded(0, minimum=0)
    """The hidden width of an expert; 0 means `model.d_ff`."""

    @property
    def experts_per_token(self) -> int:
        """How many experts the router chooses for a token."""
        return self.top_k or (1 if self.router == "switch" else 2)

    @property
    def random(self) -> bool:
        """Whether training draws random numbers: for the jitter, or for GShard's second expert."""
        return bool(self.num_experts) and (self.jitter > 0 or self.router == "gshard")

    def clashes(self, stacks: Mapping[str, tuple[int, int]]) -> Iterator[str]:
        """Yield one sentence for every field that contradicts another, or a stack of layers: its depth and row length.

        Args:
          stacks: by the names of the two fields that say so, as in `{"model.num_layers data.seq_len": (12, 512)}`.
        """
        if not self.num_experts:
            return
        chosen = {"gshard": 2, "switch": 1}.get(self.router, self.experts_per_token)
        if self.experts_per_token != chosen:
            yield (
                f"model.moe.top_k={self.top_k}, but model.moe.router={self.router!r} always chooses {chosen}: "
                "leave it 0, or take router 'topk'"
            )
        if self.experts_per_token > self.num_experts:
            yield (
                f"model.moe.num_experts={self.num_experts} is fewer than the {self.experts_per_token} experts that "
                f"model.moe.router={self.router!r} chooses for a token"
            )
        for fields, (depth, length) in stacks.items():
            deep, long = fields.split()
            if depth % self.every:
                near = max(depth // self.every, 1) * self.every
                yield f"{deep}={depth} is not divisible by model.moe.every={self.every}: set {deep}={near}"
            if self.group_size and length % self.group_size:
                yield (
                    f"{long}={length} is not divisible by model.moe.group_size={self.group_size}: set "
                    f"model.moe.group_size={gcd(length, self.group_size)}"
                )
