"""What a model of bigjax and the same model of transformers are compared by: inputs, and what each makes of them.

Legend: B batch, S sequence that is read, T sequence that is written, M positions, D model, V vocab, C classes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.config import ModelConfig
from bigjax.models import Model

ROWS, MAX_TOKENS = 2, 64
Inputs = Mapping[str, np.ndarray]


class Comparison(NamedTuple):
    """How a model with some head is compared.

    Attributes:
      what: the numbers that are compared.
      ours: `(model, params, inputs)` to them. theirs: `(model, tensors)` to them, as PyTorch's tensor.
    """

    what: str
    ours: Callable[[Model, Any, Inputs], jax.Array]
    theirs: Callable[[Any, Mapping[str, Any]], Any]


def inputs(cfg: ModelConfig) -> dict[str, np.ndarray]:
    """Return random `tokens`, `types` and `written` `(B, S)` and `mask`: 0 where the second row is padding."""
    rng, shape = np.random.default_rng(0), (ROWS, min(cfg.max_seq_len, MAX_TOKENS))
    mask = np.ones(shape, np.int32)
    mask[1:, (2 * shape[1] + 2) // 3 :] = 0
    return {
        "tokens": rng.integers(0, cfg.vocab_size, shape),
        "types": rng.integers(0, cfg.token_types or 1, shape),
        "written": rng.integers(0, cfg.vocab_size, shape),
        "mask": mask,
    }


def _decoder_logits(model: Model, params: Any, given: Inputs) -> jax.Array:
    return model.family.logits(params, model.family.apply(params, given["tokens"], model.cfg)[0], model.cfg)


def _their_decoder_logits(model: Any, given: Mapping[str, Any]) -> Any:
    return model(given["tokens"], use_cache=False).logits


def _encdec_logits(model: Model, params: Any, given: Inputs) -> jax.Array:
    rows = {"inputs_BT": given["written"], "segments_BS": given["mask"]}
    return model.family.logits(params, model.family.apply(params, given["tokens"], model.cfg, **rows)[0], model.cfg)


def _their_encdec_logits(model: Any, given: Mapping[str, Any]) -> Any:
    read = {"input_ids": given["tokens"], "attention_mask": given["mask"]}
    return model(**read, decoder_input_ids=given["written"], use_cache=False).logits


def _hidden(model: Model, params: Any, given: Inputs) -> jax.Array:
    types = given["types"] if model.cfg.token_types else None
    rows = {"segments_BS": given["mask"], "types_BS": types}
    return model.family.apply(params, given["tokens"], model.cfg, **rows)[0]


def _theirs(model: Any, given: Mapping[str, Any]) -> Any:
    return model(given["tokens"], attention_mask=given["mask"], token_type_ids=given["types"])


def _masked_logits(model: Model, params: Any, given: Inputs) -> jax.Array:
    x_BSD = _hidden(model, params, given)
    everywhere = jnp.broadcast_to(jnp.arange(x_BSD.shape[1]), x_BSD.shape[:2])
    logits_BMV = model.family.masked_logits(params, x_BSD, everywhere, model.cfg)
    return logits_BMV * given["mask"][..., None]


def _their_token_logits(model: Any, given: Mapping[str, Any]) -> Any:
    return _theirs(model, given).logits * given["mask"][..., None]


def _class_logits(model: Model, params: Any, given: Inputs) -> jax.Array:
    return model.family.class_logits(params, _hidden(model, params, given), model.cfg)


def _their_class_logits(model: Any, given: Mapping[str, Any]) -> Any:
    return _theirs(model, given).logits


def _token_logits(model: Model, params: Any, given: Inputs) -> jax.Array:
    return _class_logits(model, params, given) * given["mask"][..., None]


def _their_span_logits(model: Any, given: Mapping[str, Any]) -> Any:
    import torch

    out = _theirs(model, given)
    return torch.stack([out.start_logits, out.end_logits], dim=-1) * given["mask"][..., None]


def _logits_of_pairs(model: Model, params: Any, given: Inputs) -> jax.Array:
    logits = _masked_logits(model, params, given), _class_logits(model, params, given)
    return jnp.concatenate([each.ravel() for each in logits])


def _their_logits_of_pairs(model: Any, given: Mapping[str, Any]) -> Any:
    import torch

    out = _theirs(model, given)
    masked = out.prediction_logits * given["mask"][..., None]
    return torch.cat([masked.flatten(), out.seq_relationship_logits.flatten()])


def _states(model: Model, params: Any, given: Inputs) -> jax.Array:
    x_BSD = _hidden(model, params, given)
    pooled_BD = model.family.pooled(params, x_BSD, model.cfg)
    return jnp.concatenate([x_BSD * given["mask"][..., None], pooled_BD[:, None]], axis=1)


def _their_states(model: Any, given: Mapping[str, Any]) -> Any:
    import torch

    out = _theirs(model, given)
    return torch.cat([out.last_hidden_state * given["mask"][..., None], out.pooler_output[:, None]], dim=1)


COMPARISONS = {
    ("decoder", "lm"): Comparison("logits", _decoder_logits, _their_decoder_logits),
    ("encdec", "lm"): Comparison("logits", _encdec_logits, _their_encdec_logits),
    ("encoder", "lm"): Comparison("logits", _masked_logits, _their_token_logits),
    ("encoder", "lm_next_sentence"): Comparison("logits", _logits_of_pairs, _their_logits_of_pairs),
    ("encoder", "next_sentence"): Comparison("logits", _class_logits, _their_class_logits),
    ("encoder", "classification"): Comparison("logits", _class_logits, _their_class_logits),
    ("encoder", "token_classification"): Comparison("logits", _token_logits, _their_token_logits),
    ("encoder", "question_answering"): Comparison("logits", _token_logits, _their_span_logits),
    ("encoder", "pooler"): Comparison("hidden states", _states, _their_states),
}
"""By `model.family` and `model.head`."""
