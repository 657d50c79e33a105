"""Likelihoods of texts against PyTorch's forward pass, one text at a time and without padding.

Float32: log probabilities of up to 24 tokens, each some 5 nats, differ by about 1e-5; 2e-4 is allowed.
"""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

torch = pytest.importorskip("torch", reason="the oracle is transformers on PyTorch")

from bigjax import data, models, sharding  # noqa: E402
from bigjax.config import Config, DataConfig, ModelConfig, MoeConfig, TrainConfig  # noqa: E402
from bigjax.data.cutting import ends_of  # noqa: E402
from bigjax.data.tokens.bpe import train_bpe  # noqa: E402
from bigjax.data.tokens.tokenizers import ByteTokenizer  # noqa: E402
from bigjax.errors import UserError  # noqa: E402
from bigjax.evaluate import multiple_choice, tasks  # noqa: E402
from bigjax.evaluate.likelihood import Likelihood, LikelihoodError, Scorer, windows  # noqa: E402
from bigjax.evaluate.multiple_choice import Question  # noqa: E402
from tests.conftest import mesh_of  # noqa: E402
from tests.parity import encdec_peers, peers  # noqa: E402
from tests.parity.peers import TEXT  # noqa: E402

TOLERANCE = 2e-4
S = 24
GPT = ModelConfig(vocab_size=300, num_layers=2, d_model=32, num_heads=4, max_seq_len=64)
LLAMA = dataclasses.replace(
    GPT, num_kv_heads=2, positions="rotary", norm="rmsnorm", activation="swiglu", bias="none", tie_embeddings=False
)
MIXTRAL = dataclasses.replace(LLAMA, moe=MoeConfig(num_experts=4))
# In training it would drop nearly all.
DROPPING = dataclasses.replace(LLAMA, moe=MoeConfig(num_experts=4, capacity_factor=0.1, group_size=4))
DECODERS = {"gpt": GPT, "llama": LLAMA, "mixtral": MIXTRAL}
TRANSFORMER = dataclasses.replace(
    GPT, family="encdec", positions="sinusoidal", norm_placement="post", activation="relu", scale_embeddings=True
)
T5 = dataclasses.replace(
    LLAMA, family="encdec", num_kv_heads=4, positions="relative", activation="relu", attn_scale=1.0
)
PAIRS = [
    ("the cat", " sat on the mat"),
    ("the cat  ", "sat"),  # spaces go to what is scored
    ("wha", "tever the"),  # a boundary inside what is one token
    ("", "gather"),
    (" \n", "gather"),
    (TEXT, " they"),  # loses its beginning
    ("a", " là-haut, 北京"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe([TEXT], 285, folder)
    return data.load_tokenizer(folder)


def scorer_of(cfg: ModelConfig, weights, tokenizer, layout=sharding.UNSHARDED) -> Scorer:
    encdec = {"target_len": S} if cfg.family == "encdec" else {}
    objective = "seq2seq" if encdec else "causal_lm"
    sources = ("copy:3:3",) if encdec else ("shakespeare",)
    train = TrainConfig(global_batch_size=4, objective=objective)
    run = Config(model=cfg, data=DataConfig(seq_len=S, sources=sources, **encdec), train=train)
    return Scorer(run, models.build(cfg), weights, tokenizer, layout)


def by_hand(logits: torch.Tensor, ids: list[int]) -> tuple[float, bool]:
    """Return log P and greediness of ids predicted by the last logits of a row."""
    log_probs = torch.log_softmax(logits[-len(ids) :].double(), dim=-1)
    total = sum(log_probs[n, token].item() for n, token in enumerate(ids))
    return total, [row.argmax().item() for row in log_probs] == list(ids)


def ids_of(tokenizer, context: str, text: str) -> tuple[list[int], list[int]]:
    """The two halves of what both encode to, spaces at the end of the first with the second."""
    kept = context.rstrip()
    whole, first = tokenizer.encode(context + text).tolist(), tokenizer.encode(kept).tolist()
    return first or [tokenizer.eos_id], whole[len(first) :]


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_scores_as_transformers_does(name, tokenizer):
    cfg = DECODERS[name]
    peer = peers.build(cfg)
    expected, likeliest = [], []
    for context, text in PAIRS:
        first, second = ids_of(tokenizer, context, text)
        row = [*first, *second][:-1][-S:]
        expected.append(by_hand(peer(torch.tensor([row])).logits[0], second))
    scorer = scorer_of(DROPPING if name == "mixtral" else cfg, peers.weights(peer, cfg), tokenizer)
    found = scorer.after(PAIRS)
    np.testing.assert_allclose([one.log_prob for one in found], [p for p, _ in expected], rtol=0, atol=TOLERANCE)
    assert [one.greedy for one in found] == [greedy for _, greedy in expected]
    # What it would write itself is greedy: one of 300 tokens is decoded to text that is encoded to the same.
    for start in ("the", "a", "whatever"):
        row = tokenizer.encode(start).tolist()
        best = peer(torch.tensor([row])).logits[0, -1].argmax().item()
        text = tokenizer.decode([best])
        if tokenizer.encode(start + text).tolist() == [*row, best]:
            likeliest.append((start, text))
    assert likeliest and all(one.greedy for one in scorer.after(likeliest))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*nested tensor.*:UserWarning")
@pytest.mark.parametrize("cfg", [TRANSFORMER, T5], ids=["transformer", "t5"])
def test_an_encoder_decoder_reads_the_context_and_writes_the_text(cfg, tokenizer):
    peer, ends, expected = encdec_peers.build(cfg), ends_of(tokenizer), []
    for context, text in PAIRS:
        kept = context.rstrip()
        read = [*tokenizer.encode(kept).tolist()[-(S - 1) :], ends.end]
        second = tokenizer.encode(context[len(kept) :] + text).tolist()
        inputs = torch.tensor([[ends.start, *second[:-1]]])
        logits = peer(torch.tensor([read]), inputs, torch.zeros(1, len(read), dtype=torch.bool))
        expected.append(by_hand(logits[0], second))
    found = scorer_of(cfg, encdec_peers.weights(peer, cfg), tokenizer).after(PAIRS)
    np.testing.assert_allclose([one.log_prob for one in found], [p for p, _ in expected], rtol=0, atol=TOLERANCE)
    assert [one.greedy for one in found] == [greedy for _, greedy in expected]


@torch.no_grad()
def test_rolling_predicts_every_token_once_in_full_rows(tokenizer):
    peer = peers.build(LLAMA)
    texts = [TEXT, "the cat", "", "gather " * 30]
    expected = []
    for text in texts:
        ids, total = tokenizer.encode(text).tolist(), 0.0
        padded = [tokenizer.eos_id, *ids]  # padded[n] comes before ids[n]
        for start in range(0, len(ids), S):
            end = min(start + S, len(ids))
            row = padded[max(end - S, 0) : end]
            total += by_hand(peer(torch.tensor([row])).logits[0], ids[start:end])[0]
        expected.append(total)
    scorer = scorer_of(LLAMA, peers.weights(peer, LLAMA), tokenizer)
    np.testing.assert_allclose(scorer.rolling(texts), expected, rtol=1e-5, atol=TOLERANCE)
    scores, size = tasks.rolling_scores(scorer, texts), sum(len(text) for text in texts)
    assert scores["texts"] == 4
    assert scores["bits_per_byte"] == pytest.approx(-sum(expected) / size / math.log(2), rel=1e-5)
    assert scores["byte_perplexity"] == pytest.approx(math.exp(-sum(expected) / size), rel=1e-5)
    assert scores["word_perplexity"] == pytest.approx(math.exp(-sum(expected) / (52 + 2 + 1 + 31)), rel=1e-5)


def test_windows_are_those_of_the_documentation_of_the_harness():
    assert list(windows(range(10), -1, 4)) == [
        ([-1], range(4)),
        (range(3, 4), range(4, 8)),
        (range(5, 8), range(8, 10)),
    ]
    assert list(windows([], -1, 4)) == []


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "expert": 4}], ids=str)
def test_meshes_score_the_same(axes, tokenizer):
    cfg = MIXTRAL if "expert" in axes else GPT
    weights = peers.weights(peers.build(cfg), cfg)
    expected = scorer_of(cfg, weights, tokenizer)
    mesh_cfg, mesh = mesh_of(**{"data": 1, **axes})
    specs = models.build(cfg).specs
    with jax.set_mesh(mesh):
        layout = sharding.layout(mesh_cfg, mesh, specs)
        stored = jax.tree.map(lambda spec: NamedSharding(mesh, layout.param(spec)), specs)
        scorer = scorer_of(cfg, jax.device_put(weights, stored), tokenizer, layout)
        found, rolled = scorer.after(PAIRS), scorer.rolling([TEXT])
    np.testing.assert_allclose(found, expected.after(PAIRS), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(rolled, expected.rolling([TEXT]), rtol=1e-5)


def test_the_chosen_answer_depends_on_the_length_it_is_divided_by(tokenizer, monkeypatch):
    """By itself the likeliest is b, per character cccc (-2 against -3 and -3), per byte éé (-1.5 against -3 and -2)."""
    made = {" b": -3.0, " cccc": -8.0, " éé": -6.0}

    def after(self, pairs):
        assert {context for context, _ in pairs} == {"which?"}
        return [Likelihood(made[text], False) for _, text in pairs]

    monkeypatch.setattr(Scorer, "after", after)
    questions = [Question("which?", ("b", "cccc", "éé"), answer) for answer in (0, 1, 1, 2, 2, 2)]
    scores = multiple_choice.score(scorer_of(GPT, None, tokenizer), questions)
    assert (scores["acc"], scores["acc_norm"], scores["acc_bytes"], scores["questions"]) == (1 / 6, 1 / 3, 1 / 2, 6)
    assert scores["acc_stderr"] == pytest.approx(np.std([1, 0, 0, 0, 0, 0], ddof=1) / math.sqrt(6))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 has no 'question' and no 'choices' and no 'answer'"),
        ('{"question": "a", "choices": ["b", "c"]}', "line 2 has no 'answer'"),
        ('{"question": 1, "choices": ["b", "c"], "answer": 0}', "line 2: 'question' is 1, not a text"),
        ('{"question": "a", "choices": ["b"], "answer": 0}', "line 2: 'choices' is .'b'., not a list of two or more"),
        ('{"question": "a", "choices": ["b", ""], "answer": 0}', "line 2: 'choices' is"),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": 2}',
            "'answer' is 2, neither one of the choices nor 0 to 1",
        ),
        ('{"question": "a", "choices": ["b", "b"], "answer": "b"}', "'answer' is 'b', neither"),
        ('{"question": "a", "choices": ["b", "c"], "answer": true}', "'answer' is True, neither"),
    ],
)
def test_a_question_that_is_wrong_is_named(line, message, tmp_path):
    good = {"question": "a", "choices": ["b", "c"], "answer": "c"}
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps(good) + "\n")
    assert multiple_choice.read_questions(path) == [Question("a", ("b", "c"), 1)]
    path.write_text(f"{json.dumps(good)}\n{line}\n")
    with pytest.raises(UserError, match=message):
        multiple_choice.read_questions(path)


def test_questions_are_utf_8_with_a_line_end_after_each(tmp_path):
    asked = Question("été\u2028?", ("b", "c"), 0)  # U+2028 ends a line of text, but none of JSON
    line = json.dumps({"question": asked.question, "choices": ["b", "c"], "answer": 0}, ensure_ascii=False)
    path = tmp_path / "quiz.jsonl"
    path.write_bytes(f"{line}\r\n{line}".encode())
    assert multiple_choice.read_questions(path) == [asked, asked]
    path.write_bytes(line.replace("\u2028", "").encode("latin-1"))
    with pytest.raises(UserError, match=r"quiz\.jsonl is not UTF-8: byte 0xe9"):
        multiple_choice.read_questions(path)


def test_what_cannot_be_scored_is_said(tokenizer):
    scorer = scorer_of(GPT, None, tokenizer)
    with pytest.raises(LikelihoodError, match="nothing to score after 'the'"):
        scorer.after([("the", "")])
    with pytest.raises(LikelihoodError, match=r"is \d+ tokens after its context: it must have 1 to 24"):
        scorer.after([("the", " " + TEXT)])
    with pytest.raises(LikelihoodError, match="writes one text for another"):
        scorer_of(T5, None, tokenizer).rolling(["a"])
    assert scorer_of(GPT, None, ByteTokenizer()).prefix_id == ord("\n")
