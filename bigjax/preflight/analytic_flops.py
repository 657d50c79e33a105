"""FLOPs that one device executes in a training step, what is recomputed or thrown away included."""

from bigjax.params import ParamSpec
from bigjax.preflight.analytic_share import Share

SCORE_PRODUCTS = {"splash": 7, "cudnn": 5}
"""Matrix products of a score's size in the backward pass of attention. Four are needed: the gradients of queries, keys,
values and probabilities. cuDNN forms the scores again (Dao 2023, algorithm 2); splash, whose two kernels for queries
and for keys and values each form the scores and the gradient of the probabilities, does so twice."""


def compiled_flops(share: Share) -> float:
    """Return the FLOPs of all matrix products of one step on one device.

    A product with a matrix of P elements takes 2 P for a token, and twice that backwards (Kaplan et al. 2020, section
    2.1). Element-wise work is left out.
    """
    layers, again = share.cfg.model.num_layers, _recomputed(share)
    matrices = {name: spec for name, spec in share.specs.items() if spec.kind == "matrix"}
    # The gradient of a router's weights needs what the experts return.
    again_in_experts = {*again, "router", "down"} if again else set()
    recomputed = [
        spec
        for name, spec in matrices.items()
        if name.rpartition("/")[2] in (again_in_experts if "/moe/" in name else again)
    ]
    blocks = 3 * _product(share, list(matrices.values())) + _product(share, recomputed)
    head = 3 * 2.0 * share.vocab * share.cfg.model.d_model * share.tokens
    return share.cfg.train.microbatches * (blocks + head + layers * _attention(share))


def _product(share: Share, specs: list[ParamSpec]) -> float:
    return 2.0 * sum(share.used(spec) * share.tokens_of(spec) for spec in specs)


def _recomputed(share: Share) -> set[str]:
    """Return the matrices whose product with the activations the backward pass forms again.

    The last one of a layer never is, unless a norm follows it: no derivative needs its result.
    """
    kind, _, listed = share.cfg.model.remat.partition(":")
    if kind in ("none", "dots"):
        return set()
    saves = {"qkv": {"q", "k", "v"}, "attn_out": {"o"}, "mlp_hidden": {"up"}, "mlp_out": {"down"}}
    kept = [saves.get(name, set()) for name in listed.split(",")]
    last = {"down"} if share.normed_outputs else set()
    return {"q", "k", "v", "o", "up", "gate", *last}.difference(*kept)


def _attention(share: Share) -> float:
    """Return the FLOPs of one layer's products of scores, for one microbatch.

    Rematerialised attention forms both forward products again; only the scores where its result is saved and no kernel
    needs it.
    """
    backend = share.cfg.model.attention
    policy, _, listed = share.cfg.model.remat.partition(":")
    scores_only = "attn_mixed" in listed.split(",") and backend in ("reference", "xla")
    again = 0 if policy == "none" else 1 if scores_only else 2
    products = 2 + again + SCORE_PRODUCTS.get(backend, 4)
    return products * 2.0 * share.rows * share.heads * share.scores * share.cfg.model.head_dim
