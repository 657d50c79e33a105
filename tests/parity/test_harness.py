"""lm-evaluation-harness drives our model and transformers' on the same weights: the same answers, tasks and scores."""

import dataclasses
import json
import warnings

import pytest

NEEDS = "pip install -e '.[lm-eval,test]'"
torch = pytest.importorskip("torch", reason=f"the oracle is transformers on PyTorch: {NEEDS}")
pytest.importorskip("lm_eval", reason=f"lm-evaluation-harness is not installed: {NEEDS}")

import jax  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from bigjax.data.tokens.bpe import train_bpe  # noqa: E402
from bigjax.errors import UserError  # noqa: E402
from bigjax.evaluate import multiple_choice  # noqa: E402
from tests.parity import peers  # noqa: E402
from tests.parity.peers import LLAMA, TEXT  # noqa: E402

with warnings.catch_warnings():  # of its own dependencies
    warnings.simplefilter("ignore")
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import mean_stderr
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from experiments.harness import RunLM

pytestmark = pytest.mark.filterwarnings("ignore")

S = 32
MODEL = dataclasses.replace(LLAMA, max_seq_len=S)
PAIRS = [("the cat", " sat on"), ("the ", "cat"), ("wha", "tever"), ("", "gather"), (TEXT, " là"), ("cat", "\n\nmat")]
QUESTIONS = [
    {"question": "the cat sat", "choices": ["on the mat", "there", "là"], "answer": n % 3} for n in range(3)
] + [{"question": f"whatever the {w}\nthey", "choices": ["gather", "sat on"], "answer": 1} for w in ("cat", "mat")]
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
{more}metric_list: [{metrics}]
"""


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Ours and theirs, from one folder."""
    return pair(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def both_with_bos(tmp_path_factory):
    """The same with a tokenizer that puts a `<bos>` before every text."""
    return pair(tmp_path_factory.mktemp("hf"), "<bos>")


def pair(folder, bos: str | None = None):
    peers.build(MODEL).save_pretrained(folder)
    train_bpe([TEXT], 285, folder)
    if bos:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.add_special_tokens([bos])
        backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 285)])
        backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "bos_token": bos}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = HFLM(
        pretrained=str(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        device="cpu",
        batch_size=3,
        dtype="float32",
    )
    assert theirs.max_length == S
    return RunLM(f"hf:{folder}", {"train.global_batch_size": 4}), theirs


@pytest.mark.parametrize("name", ["both", "both_with_bos"])
def test_likelihoods_are_those_of_the_harness(name, request):
    ours, theirs = (lm.loglikelihood(requests("loglikelihood", PAIRS)) for lm in request.getfixturevalue(name))
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [p for p, _ in ours] == pytest.approx([p for p, _ in theirs], abs=2e-4)


def test_rolling_likelihoods_are_those_of_the_harness(both):
    texts = [(TEXT,), ("the cat",), ("gather",)]
    ours, theirs = (lm.loglikelihood_rolling(requests("loglikelihood_rolling", texts)) for lm in both)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_written_texts_after_a_bos_are_those_of_the_harness(both_with_bos):
    asked = [(text, {"until": ["\n\n"], "max_gen_toks": 8}) for text in ("the cat", "gather", TEXT)]
    ours, theirs = (lm.generate_until(requests("generate_until", asked)) for lm in both_with_bos)
    assert ours == theirs


def test_written_texts_are_those_of_the_harness(both):
    asked = [
        ("the cat", {"until": ["\n\n"], "max_gen_toks": 8}),
        (TEXT, {"until": ["."], "max_gen_toks": 10, "do_sample": False}),
        ("gather", {"until": [], "max_gen_toks": 8}),
    ]
    ours, theirs = (lm.generate_until(requests("generate_until", asked)) for lm in both)
    assert ours == theirs
    # A stop text made of other tokens than its own cuts, too.
    stop = ours[0][2:4]
    (cut,) = both[0].generate_until(requests("generate_until", [("the cat", {"until": stop, "max_gen_toks": 8})]))
    assert cut == ours[0][: ours[0].index(stop)]
    sampled = [("the", {"do_sample": True, "temperature": 1.0, "top_k": 5, "max_gen_toks": 8})] * 2
    one, two = (both[0].generate_until(requests("generate_until", sampled)) for _ in range(2))
    assert one == two and one[0] != one[1]
    for settings, message in (({"num_beams": 2}, "does not have: num_beams"), ({"max_gen_toks": S}, "no room for")):
        with pytest.raises(UserError, match=message):
            both[0].generate_until(requests("generate_until", [("the", settings)]))


def test_tasks_have_the_scores_of_the_harness(both, tmp_path):
    """Over its own loop, from task files: several choices, and the perplexity of whole texts."""
    quiz, plays = tmp_path / "quiz.jsonl", tmp_path / "texts.jsonl"
    quiz.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    plays.write_text("".join(json.dumps({"text": text}) + "\n" for text in (TEXT, "the cat sat")))
    how = {"name": "quiz", "file": quiz, "kind": "multiple_choice", "text": "{{question}}", "target": "{{answer}}"}
    more = 'doc_to_choice: "{{choices}}"\n'
    metrics = "{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}"
    (tmp_path / "quiz.yaml").write_text(TASK.format(**how, more=more, metrics=metrics))
    how = {"name": "texts", "file": plays, "kind": "loglikelihood_rolling", "text": "", "target": "{{text}}"}
    metrics = "{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}"
    (tmp_path / "texts.yaml").write_text(TASK.format(**how, more="", metrics=metrics))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    ours, theirs = (
        simple_evaluate(lm, tasks=["quiz", "texts"], task_manager=manager, bootstrap_iters=0)["results"] for lm in both
    )
    for task in ("quiz", "texts"):
        for name, value in theirs[task].items():
            if name.endswith(",none") and isinstance(value, float):
                assert ours[task][name] == pytest.approx(value, rel=1e-5), name
    with jax.set_mesh(both[0].run.mesh):
        own = multiple_choice.score(both[0].scorer, multiple_choice.read_questions(quiz))
    for name in ("acc", "acc_norm", "acc_bytes"):
        assert own[name] == pytest.approx(theirs["quiz"][f"{name},none"])
        right = round(5 * own[name])
        assert own[f"{name}_stderr"] == pytest.approx(mean_stderr([1.0] * right + [0.0] * (5 - right)))
