"""A run that was cut short, and how, cannot be told from one that was not: batches, metrics and state, bit for bit.

The runs pack many short documents from a mixture of two sources, several epochs of each, with microbatches and dropout.
"""

import json
import random
import shutil
from pathlib import Path

import pytest

from bigjax.config import Config, replace
from bigjax.config.strict import fingerprint, from_dict, to_dict
from bigjax.run.folder import RunFolder
from bigjax.run.json_files import write_json
from tests.commands import TINY, Commands, contents, read, rows, shared_cache
from tests.finished_runs import assert_same_run, last_checkpoint

TRAIN = "tests.witnessed_train"
STEPS = 20


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> tuple[str, ...]:
    """The config of all these runs: about 60 rows an epoch of one source and 25 of the other, 160 rows in all."""
    folder = tmp_path_factory.mktemp("texts")
    rng = random.Random(0)
    sources = []
    for name, count in (("a", 60), ("b", 25)):
        texts = ["".join(rng.choices("etaoin shrdlu", k=rng.randint(5, 60))) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        sources.append(f"--config.data.sources=jsonl:{folder}/{name}.jsonl")
    return (
        *TINY,
        *sources,
        "--config.data.weights=(2.0, 1.0)",
        "--config.data.document_mask=true",
        "--config.data.holdout=0.1",
        "--config.model.attention=reference",
        "--config.model.dropout=0.1",
        "--config.model.parametrization=mup",
        "--config.model.mup.base_d_model=16",
        "--config.optim.name=adamw",
        "--config.optim.ema_decay=0.9",
        "--config.train.microbatches=2",
        f"--config.train.steps={STEPS}",
        "--config.train.eval_every_steps=5",
        "--config.checkpoint.every_steps=5",
        "--config.checkpoint.asynchronous=false",
        "--config.log.sample_tokens=0",
        "--config.log.plot=false",
    )


@pytest.fixture(scope="module")
def whole(commands, arguments, tmp_path_factory) -> Path:
    """A run of 20 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    commands.run(TRAIN, folder / "record", "--", *arguments, f"--workdir={folder}/run")
    return folder


@pytest.fixture(scope="module")
def killed(commands, arguments, tmp_path_factory) -> Path:
    """The same run, killed while step 14 was on the device: its newest checkpoint is that of step 10."""
    folder = tmp_path_factory.mktemp("killed")
    commands.run(TRAIN, folder / "record", "SIGKILL@13", "--", *arguments, f"--workdir={folder}/run", code=-9)
    assert [row["step"] for row in rows(folder / "run") if "train/loss" in row] == list(range(1, 14))
    assert sorted(path.name for path in (folder / "run" / "checkpoints").iterdir()) == ["10", "5"]
    return folder


@pytest.fixture
def interrupted(killed, tmp_path) -> Path:
    """A copy of the killed run."""
    return shutil.copytree(killed, tmp_path / "killed")


def batches(folder: Path) -> list[dict]:
    """What the steps of a run were given, in the order of the steps; of a step done twice the second time."""
    lines = [json.loads(line) for line in (folder / "record").read_text().splitlines()]
    return [{line["step"]: line for line in lines}[index] for index in range(STEPS)]


def assert_same_batches_and_run(folder: Path, whole: Path) -> None:
    assert batches(folder) == batches(whole)
    assert last_checkpoint(folder / "run").state.ema is not None
    assert_same_run(folder / "run", whole / "run")


@pytest.mark.exhaustive
def test_the_runs_of_this_file_are_as_hard_as_they_claim(whole, arguments):
    """Several epochs of two sources, rows of several documents, dropout that changes the loss."""
    state = last_checkpoint(whole / "run").data_state
    assert [source["epoch"] >= 1 for source in state["sources"]] == [True, True]
    drawn = [source["rows"] for source in state["sources"]]
    assert sum(drawn) == STEPS * 8
    assert drawn[0] == pytest.approx(2 * drawn[1], abs=2)
    ids = [id_ for batch in batches(whole) for id_ in batch["ids"]]
    assert len(set(ids)) == len(ids)  # an id names the epoch too
    assert len({row for batch in batches(whole) for row in batch["rows"]}) < len(ids)


def test_killed_and_resumed_is_the_same_run_bit_for_bit(commands, arguments, whole, interrupted):
    done = commands.run(TRAIN, interrupted / "record", "--", *arguments, f"--workdir={interrupted}/run")
    assert "resuming after step 10" in done.stderr
    assert_same_batches_and_run(interrupted, whole)


@pytest.mark.exhaustive
def test_stopped_by_sigterm_then_by_ctrl_c_is_the_same_run_bit_for_bit(commands, arguments, whole, tmp_path):
    def train(*order: str, code: int) -> str:
        run = (*arguments, "--config.checkpoint.every_steps=1000", f"--workdir={tmp_path}/run")
        return commands.run(TRAIN, tmp_path / "record", *order, "--", *run, code=code).stderr

    said = train("SIGTERM@6", code=143)
    assert said.endswith("stopped after step 7 with a checkpoint; the same command continues\n")
    said = train("SIGINT@12", code=130)
    assert "resuming after step 7" in said
    assert said.endswith("stopped after step 13 with a checkpoint; the same command continues\n")
    assert "Traceback" not in said
    assert "resuming after step 13" in train(code=0)
    assert_same_batches_and_run(tmp_path, whole)


@pytest.mark.exhaustive
def test_resumed_on_another_mesh_is_the_same_run_but_for_rounding(commands, arguments, whole, interrupted):
    mesh = ("--config.mesh.fsdp=4", "--config.mesh.tensor=2")
    record = interrupted / "record"
    commands.run(TRAIN, record, "--", *arguments, *mesh, f"--workdir={interrupted}/run", devices=8)
    assert batches(interrupted) == batches(whole)
    here, there = rows(interrupted / "run"), rows(whole / "run")
    assert [row["step"] for row in here] == [row["step"] for row in there]
    for row, expected in zip(here, there, strict=True):
        assert row == pytest.approx(expected, rel=2e-4), row["step"]
    changed = read(interrupted / "run" / "environment.json")["sessions"][1]["changed"]
    assert changed == {"mesh.fsdp": ["auto", 4], "mesh.tensor": [1, 2]}
    assert read(interrupted / "run" / "result.json")["mesh"]["fsdp"] == 4


def test_a_step_that_is_not_finite_ends_the_run_with_the_evidence(commands, tmp_path):
    run = (*TINY, "--config.optim.name=sgd", "--config.optim.lr=1e30", "--config.optim.warmup=3")
    run = (*run, "--config.checkpoint.every_steps=1", f"--workdir={tmp_path}/run")
    done = commands.run(TRAIN, tmp_path / "record", "--", *run, code=3)
    (folder,) = (tmp_path / "run" / "forensics").iterdir()
    evidence = read(folder / "event.json")
    failed = evidence["step"]
    assert failed > 1
    given = {line["step"]: line for line in map(json.loads, (tmp_path / "record").read_text().splitlines())}
    assert evidence["batch_ids"] == given[failed - 1]["ids"]
    assert {evidence["loss"], evidence["grad_norm"]} & {"NaN", "Infinity"}
    assert "blocks/attn/q" in evidence["modules"]
    assert f"error: step {failed} is not finite" in done.stderr
    assert done.stderr.endswith(f"the evidence is in {folder}\n")
    assert "Traceback" not in done.stderr
    assert [row["step"] for row in rows(tmp_path / "run") if "train/loss" in row] == list(range(1, failed))
    before = contents(tmp_path / "run" / "checkpoints")
    assert max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()) == failed - 1
    commands.run(TRAIN, tmp_path / "record", "--", *run, code=3)
    assert contents(tmp_path / "run" / "checkpoints") == before
    assert read(folder / "event.json") == evidence
    assert not (tmp_path / "run" / "result.json").exists()


def rewrite_config(run: Path, **sections) -> Config:
    cfg = replace(RunFolder(run).load_config(), **sections)
    write_json(
        run / "config.json", {"config": to_dict(cfg), "fingerprint": fingerprint(from_dict(Config, to_dict(cfg)))}
    )
    return cfg


@pytest.mark.exhaustive
def test_a_checkpoint_of_another_shape_is_a_readable_diff(commands, arguments, interrupted):
    run = interrupted / "run"
    rewrite_config(run, model={"d_ff": 96})
    before = contents(run)
    wider = (*arguments, "--config.model.d_ff=96", f"--workdir={run}")
    done = commands.run("experiments.train", *wider, code=2)
    assert f"error: the checkpoint {run}/checkpoints/10 does not hold what this config needs:" in done.stderr
    lines = done.stderr.partition("needs:\n")[2].splitlines()
    assert any("params/blocks/mlp" in line and "checkpoint has float32[1,32,128]" in line for line in lines)
    assert all("checkpoint has float32" in line and "config wants float32" in line for line in lines)
    assert contents(run) == before


def test_text_changed_since_the_checkpoint_is_named(commands, arguments, interrupted):
    path = Path(next(name for name in arguments if name.endswith("/b.jsonl")).partition("jsonl:")[2])
    original, before = path.read_text(), contents(interrupted / "run")
    try:
        path.write_text(original.replace('{"text": "', '{"text": "And so: ', 1))
        done = commands.run("experiments.train", *arguments, f"--workdir={interrupted}/run", code=2)
    finally:
        path.write_text(original)
    assert "belongs to another text; choose another --workdir. It differs in\n  b.jsonl: sha256 was " in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(interrupted / "run") == before
