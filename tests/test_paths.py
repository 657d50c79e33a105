"""Whatever takes a path takes it as a string, too."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bigjax import data
from bigjax.checkpoint import digests
from bigjax.config import Config
from bigjax.data.stored import megatron
from bigjax.data.tokens.bpe import train_bpe
from bigjax.data.tokens.tokenizers import load_file
from bigjax.evaluate.multiple_choice import read_questions
from bigjax.interop import hf
from bigjax.interop.hf import verify as hf_verify
from bigjax.interop.hf.config import class_names, end_ids, import_config
from bigjax.interop.hf.origin import keep, origin_of, start_of
from bigjax.params import names
from bigjax.run.folder import RunFolder
from bigjax.run.plots import plot_loss
from bigjax.run.rows import read_rows
from bigjax.science.laws.sources import read_csv
from bigjax.science.sweeps.folder import SweepFolder
from tests.interop.test_hf_weights import LLAMA, random_params

ROOT = Path(__file__).resolve().parent.parent
INSIDE = (
    "data/sources",  # of (name, path) pairs that the library found itself
    "data/stored/converted.py",
    "data/stored/corpus.py",
    "data/stored/manifest.py",
    "data/tokens/cache.py",
    "data/tokens/parts.py",
    "data/tokens/shards.py",
    "data/tokens/text_bytes.py",
    "data/cutting.py",
    "data/text_data.py",
    "preflight",
    "prepare",
    "run/children.py",
    "run/heartbeat.py",
    "run/lease.py",
    "science/report/page/preparation.py",
    "tasks",
    "train/forensics.py",
)
"""What is handed paths by the library alone."""


def takes_only_paths(file):
    """Yield the public functions of a module with a parameter that is annotated as a `Path` and no string."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
    for node in nodes:
        given = [each.annotation for each in (*node.args.args, *node.args.kwonlyargs) if each.annotation is not None]
        only = [each for each in given if ast.unparse(each) in ("Path", "Path | None")]
        if only and (not node.name.startswith("_")):
            yield f"{file.relative_to(ROOT)}: {node.name}"


def test_no_public_function_takes_paths_alone():
    files = [path for path in (ROOT / "bigjax").rglob("*.py") if not any(part in str(path) for part in INSIDE)]
    assert [found for file in files for found in takes_only_paths(file)] == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_verify, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tokens_for_megatron(folder):
    megatron.write("a.bin", [np.arange(5)], np.dtype(np.uint16))
    assert megatron.Index("a.idx").tokens == 5


def test_a_model_in_and_out(folder):
    params = random_params(LLAMA)
    hf.export_checkpoint(params, LLAMA, "out")
    assert import_config("out").model.d_model == LLAMA.d_model
    assert np.array_equal(*(names(tree)["embed/tokens"] for tree in (hf.import_checkpoint("out")[1], params)))
    hf.check_same_model("out", LLAMA)
    hf.check_exportable(LLAMA, "new", "out")
    assert (end_ids("out"), class_names("out"), origin_of("out")) == ([], ("LABEL_0", "LABEL_1"), Path("out"))
    keep("hf:out", "run")
    assert (folder / "run/origin/config.json").is_file()
    assert start_of(replace(Config(), init_state="runs/a@20")) == "runs/a"
    hf.export_checkpoint(params, LLAMA, "again", started_from="run")


def test_tokenizers(folder):
    (folder / "made").mkdir()
    train_bpe(["the sea"], 258, "made")
    data.save_tokenizer(data.load_tokenizer("made"), "saved")
    assert load_file("saved/tokenizer.json").digest == data.load_tokenizer(folder / "made").digest


def test_run_folders_and_what_is_read_from_them(folder):
    assert RunFolder("runs/a") == RunFolder(Path("runs/a")) and RunFolder("runs/a").config == Path("runs/a/config.json")
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": 1.0}\n')
    assert [row["step"] for row in read_rows("metrics.jsonl")] == [1, 2]
    plot_loss("metrics.jsonl", "loss.png")
    assert (folder / "loss.png").is_file()
    assert digests.all_steps("checkpoints") == []
    assert SweepFolder("sweep").claims == SweepFolder(Path("sweep")).claims
    (folder / "points.csv").write_text("params,tokens,loss\n1e6,1e8,4.0\n2e6,2e8,3.5\n")
    assert len(read_csv("points.csv", params="total", flops="6ND", recompute=False).loss) == 2
    (folder / "quiz.jsonl").write_text('{"question": "is it", "choices": ["a", "b"], "answer": 0}\n')
    assert len(read_questions("quiz.jsonl")) == 1
