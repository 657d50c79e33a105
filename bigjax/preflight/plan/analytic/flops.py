"""FLOPs that one device executes in a training step, what is recomputed or thrown away included."""

from collections.abc import Mapping

from bigjax.config import recipes
from bigjax.params import ParamSpec
from bigjax.preflight.plan.analytic.share import Share

SCORE_PRODUCTS = {"splash": 7, "cudnn": 5}
"""Matrix products of a score's size in the backward pass of attention. Four are needed: the gradients of queries, keys,
values and probabilities. cuDNN forms the scores again (Dao 2023, algorithm 2); splash, whose two kernels for queries
and for keys and values each form the scores and the gradient of the probabilities, does so twice."""


def compiled_flops(share: Share) -> float:
    """Return the FLOPs of all matrix products of one step on one device.

    A product with a matrix of P elements takes 2 P for a token, and twice that backwards (Kaplan et al. 2020, section
    2.1). Element-wise work is left out.
    """
    head = 3 * 2.0 * share.vocab * share.cfg.model.d_model * share.loss_tokens
    return share.cfg.train.num_microbatches * (head + _heads_of_encoder(share) + sum(map(_stack, share.stacks)))


def _stack(stack: Share) -> float:
    matrices = {name: spec for name, spec in stack.specs.items() if spec.kind == "matrix"}
    recomputed = {name: spec for name, spec in matrices.items() if _is_recomputed(name, stack)}
    products = 3 * _product(stack, matrices) + _product(stack, recomputed) + _all_experts(stack, matrices)
    if stack.cfg.model.kind == "rnn":
        return products
    # A stage in the bubble of a pipeline computes, too, though nobody looks at it.
    return stack.ticks * (products + stack.num_layers * _attention(stack))


def low_precision_flops(share: Share) -> float:
    """Return those of `compiled_flops` whose operands are in the format of the model's recipe.

    Gradients of the matrices of experts without a capacity are not (`models.parts.products.grouped`).
    """
    model = share.cfg.model
    if recipes.peak_name(model.matmul) is None:
        return 0.0
    return share.cfg.train.num_microbatches * sum(stack.ticks * _low_precision(stack) for stack in share.stacks)


def _low_precision(stack: Share) -> float:
    model, recipe = stack.cfg.model, recipes.RECIPES[stack.cfg.model.matmul]
    matrices = {name: spec for name, spec in stack.specs.items() if spec.kind == "matrix" and not spec.float32}
    exact = {} if model.moe.capacity_factor else {name: spec for name, spec in matrices.items() if "/moe/" in name}
    again = {name: spec for name, spec in matrices.items() if _is_recomputed(name, stack)}
    products = recipe.products * _product(stack, matrices) + (recipe.forward is not None) * _product(stack, again)
    products -= (recipe.weight_gradient is not None) * _product(stack, exact)
    return products * (1 - 2 * model.matmul_spared_blocks / stack.num_layers)


def _product(stack: Share, specs: Mapping[str, ParamSpec]) -> float:
    return 2.0 * sum(stack.used(spec) * stack.tokens_of(name, spec) for name, spec in specs.items())


def _all_experts(stack: Share, specs: Mapping[str, ParamSpec]) -> float:
    """Return what experts without a capacity cost beyond the tokens that choose them.

    The TPU compiler forms the gradient of an expert's matrix from all tokens, those of other experts masked.
    """
    if stack.cfg.model.moe.capacity_factor is not None:
        return 0.0
    experts = {name: spec for name, spec in specs.items() if "experts" in spec.axes}
    masked = 2.0 * sum(stack.used(spec) for spec in experts.values()) * stack.places
    return masked - _product(stack, experts)


def _heads_of_encoder(share: Share) -> float:
    """Return the FLOPs of an encoder's head besides the output matrix, classes left out.

    A dense layer at the tokens to predict, which are chosen by a product with one-hot rows; a pooler, once a row.
    """
    if share.cfg.model.kind != "encoder":
        return 0.0
    at = {"head/dense": share.loss_tokens, "head/pooler": share.rows}
    layers = sum(2.0 * share.used(spec) * at[name] for name, spec in share.specs.items() if name in at)
    chosen = 2.0 * share.loss_tokens * share.seq_len * share.cfg.model.d_model
    return 3 * layers + 2 * chosen


def _is_recomputed(name: str, stack: Share) -> bool:
    """Return whether the backward pass forms the product of a matrix with the activations again."""
    again, last = _recomputed(stack), name.rpartition("/")[2]
    if "/moe/" not in name:
        return last in again
    moe, dots = stack.cfg.model.moe, stack.cfg.model.remat == "dots"
    # The gradient of a router's weights needs what the experts return. Grouped products are none of those kept.
    if dots and moe.capacity_factor is None:
        return last in ("up", "gate", "down")
    return bool(again) and last in {*again, "router", "down"}


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
    return {"q", "k", "v", "o", "up", "gate", "input", "recurrent", *last}.difference(*kept)


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
