"""The encoder against BERT of transformers on PyTorch: logits and gradients with the same random weights; counts."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from bigjax import models, params
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.tasks import encoders as objectives_encoder
from bigjax.tasks import named_task
from configs import bert

torch = pytest.importorskip("torch", reason="parity with transformers needs PyTorch")

CFG = ModelConfig(
    family="encoder",
    vocab_size=97,
    num_layers=3,
    d_model=48,
    num_heads=4,
    d_ff=80,
    max_seq_len=40,
    token_types=2,
    norm_placement="post",
    norm_eps=1e-12,
    activation="gelu",
)
L, D, H, K = CFG.num_layers, CFG.d_model, CFG.num_heads, CFG.head_dim


def peer_of(kind: str, num_labels: int = 2):
    """Return transformers' `BertFor...` with every parameter drawn at random."""
    hf_cfg = transformers.BertConfig(
        vocab_size=CFG.vocab_size,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=H,
        intermediate_size=CFG.d_ff,
        max_position_embeddings=CFG.max_seq_len,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
        num_labels=num_labels,
    )
    model = getattr(transformers, kind)(hf_cfg).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in model.parameters():
            w.copy_(0.2 * torch.randn(w.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def peer():
    return peer_of("BertForMaskedLM")


def ours(tensors: dict[str, np.ndarray]) -> dict:
    """Lay weights or gradients, by transformers' names, out as `encoder.specs` declares them."""

    def plain(name: str) -> dict:
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def stacked(name: str, *shape: int) -> np.ndarray:
        found = [tensors[f"bert.encoder.layer.{i}.{name}"] for i in range(L)]
        turned = [w.T if w.ndim == 2 else w for w in found]
        return np.stack([w.reshape(shape) if shape else w for w in turned])

    def norm(name: str) -> dict:
        return {"scale": stacked(f"{name}.weight"), "bias": stacked(f"{name}.bias")}

    attn = {short: f"attention.self.{name}" for short, name in (("q", "query"), ("k", "key"), ("v", "value"))}
    embeddings = "bert.embeddings"
    return {
        "embed": {
            "tokens": tensors[f"{embeddings}.word_embeddings.weight"],
            "positions": tensors[f"{embeddings}.position_embeddings.weight"],
            "types": tensors[f"{embeddings}.token_type_embeddings.weight"],
            "norm": plain(f"{embeddings}.LayerNorm"),
        },
        "blocks": {
            "attn": {
                **{short: stacked(f"{name}.weight", D, H, K) for short, name in attn.items()},
                **{f"{short}_bias": stacked(f"{name}.bias", H, K) for short, name in attn.items()},
                "o": stacked("attention.output.dense.weight", H, K, D),
                "o_bias": stacked("attention.output.dense.bias"),
            },
            "attn_norm": norm("attention.output.LayerNorm"),
            "mlp": {
                "up": stacked("intermediate.dense.weight"),
                "up_bias": stacked("intermediate.dense.bias"),
                "down": stacked("output.dense.weight"),
                "down_bias": stacked("output.dense.bias"),
            },
            "mlp_norm": norm("output.LayerNorm"),
        },
        "head": head(tensors),
    }


def head(tensors: dict[str, np.ndarray]) -> dict:
    """Lay out what a head has of: a layer for masked tokens, a pooler, and classes."""
    found, transform = {}, "cls.predictions.transform"
    if f"{transform}.dense.weight" in tensors:
        norm = {"scale": tensors[f"{transform}.LayerNorm.weight"], "bias": tensors[f"{transform}.LayerNorm.bias"]}
        dense = {"dense": tensors[f"{transform}.dense.weight"].T, "dense_bias": tensors[f"{transform}.dense.bias"]}
        found |= {**dense, "norm": norm, "bias": tensors["cls.predictions.bias"]}
    if "bert.pooler.dense.weight" in tensors:
        found |= {"pooler": tensors["bert.pooler.dense.weight"].T, "pooler_bias": tensors["bert.pooler.dense.bias"]}
    for name in ("classifier", "qa_outputs", "cls.seq_relationship"):
        if f"{name}.weight" in tensors:
            found |= {"classes": tensors[f"{name}.weight"], "classes_bias": tensors[f"{name}.bias"]}
    return found


@pytest.mark.sample(4)
@pytest.mark.parametrize("attention", ["reference", "xla"])
@pytest.mark.parametrize("layers", ["scan", "unroll"])
@pytest.mark.parametrize("shape", [(3, 31), (1, 7)])
def test_logits_and_gradients(peer, attention, layers, shape):
    cfg = dataclasses.replace(CFG, attention=attention, layers=layers)
    family, rng = models.build(cfg).family, np.random.default_rng(0)
    # Token 0 is padding to transformers: it gives its row no gradient from where it is read.
    tokens, types = rng.integers(1, CFG.vocab_size, shape), rng.integers(0, 2, shape)
    real = np.ones(shape, np.int32)
    real[0, 2 * shape[1] // 3 :] = 0
    everywhere = jnp.tile(jnp.arange(shape[1]), (shape[0], 1))

    def logits(tree):
        inputs = {"segments_BS": jnp.asarray(real), "types_BS": jnp.asarray(types)}
        x, _ = family.apply(tree, jnp.asarray(tokens), cfg, **inputs)
        return jnp.where(real[..., None] > 0, family.masked_logits(tree, x, everywhere, cfg), 0)

    peer.zero_grad()
    given = {"attention_mask": torch.tensor(real), "token_type_ids": torch.tensor(types)}
    wanted = peer(input_ids=torch.tensor(tokens), **given).logits * torch.tensor(real)[..., None]
    weights = ours({name: w.detach().numpy() for name, w in peer.named_parameters()})
    assert {n: s.shape for n, s in params.names(models.build(cfg).specs).items()} == {
        n: w.shape for n, w in params.names(weights).items()
    }
    cotangent = rng.normal(size=wanted.shape).astype(np.float32)
    found, back = jax.jit(partial(with_gradients, logits))(jax.tree.map(jnp.asarray, weights), cotangent)
    np.testing.assert_allclose(found, wanted.detach(), atol=1e-4)
    wanted.backward(torch.tensor(cotangent))
    gradients = {name: np.zeros(w.shape) if w.grad is None else w.grad.numpy() for name, w in peer.named_parameters()}
    for name, gradient in params.names(ours(gradients)).items():
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(params.names(back)[name], gradient, atol=1e-4 * scale, err_msg=name)


def with_gradients(function, tree, cotangent):
    """Return what a function of parameters makes of them, and its gradients, weighted by `cotangent`."""
    found, pullback = jax.vjp(function, tree)
    return found, *pullback(cotangent)


def batch_of(shape: tuple[int, int], rng: np.random.Generator) -> tuple[dict, dict]:
    """Return the tokens of a batch, with padding and two types, by our names and by transformers'."""
    tokens, types = rng.integers(1, CFG.vocab_size, shape), rng.integers(0, 2, shape)
    real = np.ones(shape, np.int32)
    real[0, 2 * shape[1] // 3 :] = 0
    batch = {"tokens": jnp.asarray(tokens), "segments": jnp.asarray(real), "types": jnp.asarray(types)}
    given = {"input_ids": tokens, "attention_mask": real, "token_type_ids": types}
    return batch, {name: torch.tensor(x) for name, x in given.items()}


def assert_same(peer, cfg: ModelConfig, loss, wanted) -> None:
    """Compare `loss(params)` with a loss of the peer's, and their gradients, all below 1e-4 of their scale."""
    peer.zero_grad()
    wanted.backward()
    weights = ours({name: w.detach().numpy() for name, w in peer.named_parameters()})
    specs = params.names(models.build(cfg).specs)
    assert {n: s.shape for n, s in specs.items()} == {n: w.shape for n, w in params.names(weights).items()}
    found, back = jax.jit(jax.value_and_grad(loss))(jax.tree.map(jnp.asarray, weights))
    np.testing.assert_allclose(found, wanted.detach(), rtol=1e-5)
    gradients = {name: np.zeros(w.shape) if w.grad is None else w.grad.numpy() for name, w in peer.named_parameters()}
    for name, gradient in params.names(ours(gradients)).items():
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(params.names(back)[name], gradient, atol=1e-4 * scale, err_msg=name)


def mean_loss(cfg: ModelConfig, batch: dict, objective: str):
    """Return the loss of an objective as a function of the parameters."""
    train = TrainConfig(objective=objective)
    task = named_task(Config(cfg, DataConfig(seq_len=16, doc_stride=1), train))
    whole = task.whole_batch(batch) if task.whole_batch else batch

    def loss(tree):
        total, count = task.loss(models.build(cfg), tree, whole, train)["loss"]
        return total / count

    return loss


SHAPES = [(3, 31), (2, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_token_classification(shape):
    peer, rng = peer_of("BertForTokenClassification", 5), np.random.default_rng(1)
    cfg = dataclasses.replace(CFG, head="token_classification", num_classes=5)
    batch, given = batch_of(shape, rng)
    labels = np.where(np.asarray(batch["segments"]) > 0, rng.integers(-1, 5, shape), -1)
    labels[0, 0] = 3
    batch |= {"targets": jnp.asarray(np.maximum(labels, 0)), "weights": jnp.asarray(labels >= 0, jnp.float32)}
    out = peer(**given, labels=torch.tensor(np.where(labels < 0, -100, labels)))
    weights = ours({name: w.detach().numpy() for name, w in peer.named_parameters()})
    found = jax.jit(partial(objectives_encoder.class_logits, models.build(cfg)))(
        jax.tree.map(jnp.asarray, weights), batch
    )
    real = np.asarray(batch["segments"])[..., None]
    np.testing.assert_allclose(found * real, out.logits.detach() * torch.tensor(real), atol=1e-4)
    assert_same(peer, cfg, mean_loss(cfg, batch, "token_classification"), out.loss)


@pytest.mark.parametrize("shape", SHAPES)
def test_question_answering(shape):
    peer, rng = peer_of("BertForQuestionAnswering"), np.random.default_rng(2)
    cfg = dataclasses.replace(CFG, head="question_answering")
    batch, given = batch_of(shape, rng)
    ends = rng.integers(0, np.asarray(batch["segments"]).sum(axis=1), (2, shape[0]))
    batch |= {"targets": jnp.asarray(ends.T), "weights": jnp.ones((shape[0], 2))}
    out = peer(**given)
    weights = ours({name: w.detach().numpy() for name, w in peer.named_parameters()})
    found = jax.jit(partial(objectives_encoder.span_logits, models.build(cfg)))(
        jax.tree.map(jnp.asarray, weights), batch
    )
    # Transformers lets padding have a share of the answer; we do not.
    logits = torch.stack([out.start_logits, out.end_logits], dim=1)
    logits = logits.masked_fill(given["attention_mask"][:, None] == 0, -1e30)
    np.testing.assert_allclose(found, logits.detach(), atol=1e-4)
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(ends.T).flatten())
    assert_same(peer, cfg, mean_loss(cfg, batch, "question_answering"), wanted)
    whole = {name: x[1:] for name, x in given.items()}  # a row without padding
    out = peer(**whole, start_positions=torch.tensor(ends[0, 1:]), end_positions=torch.tensor(ends[1, 1:]))
    assert_same(peer, cfg, mean_loss(cfg, {name: x[1:] for name, x in batch.items()}, "question_answering"), out.loss)


@pytest.mark.parametrize("shape", SHAPES)
def test_masked_tokens_and_next_sentence(shape):
    """The loss is the sum of two means (Devlin et al. 2019, appendix A.2), as that of `BertForPreTraining`."""
    peer, rng = peer_of("BertForPreTraining"), np.random.default_rng(3)
    cfg = dataclasses.replace(CFG, head="lm_next_sentence")
    batch, given = batch_of(shape, rng)
    (B, S), M = shape, 3
    masked = np.stack([np.sort(rng.permutation(S // 2)[:M]) for _ in range(B)])
    targets, kept = rng.integers(1, CFG.vocab_size, (B, M)), np.arange(M) < rng.integers(1, M + 1, (B, 1))
    labels, following = np.full(shape, -100), rng.integers(0, 2, B)
    np.put_along_axis(labels, masked, np.where(kept, targets, -100), axis=1)
    batch |= {"masked": masked, "targets": targets, "weights": kept.astype(np.float32)}
    batch |= {"next_targets": following, "next_weights": np.ones(B, np.float32)}
    batch = jax.tree.map(jnp.asarray, batch)
    out = peer(**given, labels=torch.tensor(labels), next_sentence_label=torch.tensor(following))
    assert_same(peer, cfg, mean_loss(cfg, batch, "masked_lm_next_sentence"), out.loss)


@pytest.mark.parametrize("shape", SHAPES)
def test_next_sentence(shape):
    peer, rng = peer_of("BertForNextSentencePrediction"), np.random.default_rng(4)
    batch, given = batch_of(shape, rng)
    following = torch.tensor(rng.integers(0, 2, shape[0]))
    out = peer(**given, labels=following)
    weights = ours({name: w.detach().numpy() for name, w in peer.named_parameters()})
    # As classification into two: the same parameters, without dropout.
    cfg = dataclasses.replace(CFG, head="classification", num_classes=2)
    found = jax.jit(partial(objectives_encoder.class_logits, models.build(cfg)))(
        jax.tree.map(jnp.asarray, weights), batch
    )
    np.testing.assert_allclose(found, out.logits.detach(), atol=1e-4)
    batch |= {"targets": jnp.asarray(following.numpy()), "weights": jnp.ones(shape[0])}
    assert_same(peer, cfg, mean_loss(cfg, batch, "classification"), out.loss)


@pytest.mark.parametrize("name", bert.SHAPES)
def test_every_size_counts_as_transformers_do(name):
    vocab_size, num_layers, d_model, num_heads = bert.SHAPES[name]
    hf_cfg = transformers.BertConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=4 * d_model,
    )
    with torch.device("meta"):
        peers = [getattr(transformers, kind)(hf_cfg) for kind in ("BertForMaskedLM", "BertModel", "BertForPreTraining")]
    with_head, with_pooler, with_both = (sum(w.numel() for w in one.parameters()) for one in peers)
    paired = dataclasses.replace(bert.model(*bert.SHAPES[name]), head="lm_next_sentence")
    assert params.count(models.build(paired).specs) == with_both
    specs = models.build(bert.model(*bert.SHAPES[name])).specs
    assert params.count(specs) == with_head
    # What classification keeps: all below the head, and a pooler.
    assert params.count(specs) - params.count(specs["head"]) + d_model * d_model + d_model == with_pooler
    if name == "base":
        assert with_pooler == 109_482_240
