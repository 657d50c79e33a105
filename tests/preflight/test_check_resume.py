"""`experiments.check resume`: a sound launcher passes, and what can go wrong at a resumption is caught by name."""

import contextlib
import dataclasses
import json
import platform
import random
from functools import partial

import pytest

from bigjax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig, strict
from bigjax.config.lengths import lengths
from bigjax.errors import UserError
from bigjax.preflight.equivalence import meshes
from bigjax.preflight.resume import compare as resume_compare
from bigjax.preflight.resume import trial as resume
from bigjax.preflight.resume.compare import Judgement, Trace
from bigjax.preflight.resume.trial import Case, Check, Runs
from bigjax.run import children
from configs import moe_tiny
from experiments.check import resume as check_resume
from tests.commands import ROOT, shared_cache

STEPS, KILL_AT, RESUMED_AFTER = 9, 6, 4
HERE = MeshConfig(data=2)
SAME = Case("same mesh", HERE)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The launchers run from the repository, and share what they compile with the commands of other tests."""
    cache = shared_cache(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache / "compiled"))
        patch.setenv("PYTHONWARNINGS", "error")
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles in half the time
        yield patch


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """Packed documents of two sources, dropout, a schedule with warm-up, an average of the weights."""
    folder, rng, sources = tmp_path_factory.mktemp("texts"), random.Random(0), []
    for name in ("a", "b"):
        texts = ["".join(rng.choices("etaoin shrdlu", k=rng.randint(5, 60))) for _ in range(60)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        sources.append(f"jsonl:{folder}/{name}.jsonl")
    return Config(
        model=ModelConfig(vocab_size=256, num_layers=1, d_model=32, num_heads=2, max_seq_len=64, dropout=0.1),
        data=DataConfig(sources=tuple(sources), weights=(2.0, 1.0), holdout=0.1, seq_len=64),
        train=TrainConfig(steps=100, eval_every_steps=50),
        optim=OptimConfig(schedule="cosine", warmup=20, ema_decay=0.9),
    )


@pytest.fixture(scope="module")
def runs(environment, config, tmp_path_factory) -> Runs:
    (small,) = resume.small(config, STEPS, KILL_AT, HERE)
    return Runs(small, KILL_AT, tmp_path_factory.mktemp("runs"), check_resume.LAUNCHER)


@pytest.fixture(scope="module")
def straight(runs) -> Trace:
    trace, found = runs.straight()
    assert found.status == "same", found
    return trace


@pytest.fixture(scope="module")
def killed(runs, straight) -> Check:
    return runs.killed(straight)


@pytest.fixture(scope="module")
def plant(runs, straight, killed):
    """Resume what was killed with a bug in the launcher; return what is found."""

    def run(bug: str, case: Case) -> Check:
        with contextlib.chdir(ROOT):
            folder = runs.folder.with_name(f"{runs.folder.name}-{bug}")
            folder.mkdir()
            (folder / "killed").symlink_to(runs.folder / "killed")
            planted = dataclasses.replace(runs, folder=folder, program=("-m", "tests.planted_train", bug))
            return planted.resumed(straight, case)

    return run


@pytest.mark.exhaustive
def test_the_runs_are_as_hard_as_they_claim(runs, straight):
    first, second = straight.drawn(STEPS)
    assert first + second == STEPS * 8 and first == pytest.approx(2 * second, abs=1)
    assert all(count > 3 for count in straight.epochs().values())
    ids = [id_ for batch in straight.batches.values() for id_ in batch["ids"]]
    hashes = {row for batch in straight.batches.values() for row in batch["rows"]}
    assert len(ids) == len(set(ids)) and len(hashes) == sum(straight.rows) < len(ids)
    assert lengths(runs.cfg.optim, STEPS)[0] == 2 and sorted(straight.data) == [2, 4, 6, 8, 9]
    quantities = {name.partition("/")[0] for name in straight.states[STEPS]}
    assert quantities == {"step", "params", "opt_state", "ema"}


@pytest.mark.exhaustive
def test_a_sound_launcher_passes_on_the_same_mesh_and_elsewhere(environment, runs, straight, killed):
    assert killed.status == "same" and killed.compared["parameters"] > 0
    cases = resume.cases(HERE, [MeshConfig(data=1, fsdp=2, tensor=2)], 2)
    for case, found in zip(cases, [runs.resumed(straight, case) for case in cases], strict=True):
        assert (found.status, found.start, found.processes) == ("same", RESUMED_AFTER, case.processes), found
        steps = STEPS - RESUMED_AFTER
        assert found.compared["batch ids"] == found.compared["batch contents"] == steps
        assert found.compared["learning rate"] == STEPS
        assert found.compared["EMA"] % found.compared["parameters"] == 0
        assert found.compared["mixture counters"] and found.compared["data position"]
        if case != SAME:
            assert 0 <= found.error <= found.bound < 1e-3


@pytest.mark.exhaustive
def test_a_batch_that_grows_is_resumed_by_two_processes(environment, config, tmp_path):
    """In the middle of the ramp: 4 rows a step for 6 steps, then 8."""
    ramp = {"ramp_batch_size": 2, "ramp_tokens": 999}
    grows = dataclasses.replace(config, train=dataclasses.replace(config.train, **ramp))
    (small,) = resume.small(grows, STEPS, KILL_AT, HERE)
    runs = Runs(small, KILL_AT - 1, tmp_path, check_resume.LAUNCHER)
    trace, _ = runs.straight()
    drawn = [sum(id_ >= 0 for id_ in trace.batches[step]["ids"]) for step in sorted(trace.batches)]
    assert drawn == [4] * 6 + [8] * 3
    for found in runs.disturbed(trace, resume.cases(HERE, [], 2)):
        assert found.status == "same", found
    assert (found.start, found.processes) == (RESUMED_AFTER, 2)


@pytest.mark.sample
@pytest.mark.parametrize(
    ("bug", "quantity", "step"),
    [
        ("optimizer", "optimizer state", RESUMED_AFTER),
        ("schedule", "schedule", RESUMED_AFTER),
        ("ema", "EMA", RESUMED_AFTER),
        ("data", "batch ids", RESUMED_AFTER + 1),
        ("random numbers", "random numbers", RESUMED_AFTER + 1),
        ("counters", "mixture counters", RESUMED_AFTER + 2),
        ("afresh", "resume point", RESUMED_AFTER),
    ],
)
def test_a_bug_is_caught_by_name_and_step(plant, bug, quantity, step):
    found = plant(bug, SAME)
    assert found.status == "differs", found
    first = found.differences[0]
    assert (first.quantity, first.step) == (quantity, step), first


def test_a_loss_beyond_the_bound_on_another_mesh_is_caught(plant):
    found = plant("loss", Case("other mesh", HERE))
    assert found.status == "differs", found
    (first,) = found.differences
    assert (first.quantity, first.step) == ("losses", RESUMED_AFTER + 1)
    assert first.error == pytest.approx(1e-3, rel=1e-2) and first.bound < 1e-3
    assert "train/loss was" in str(first)


@pytest.fixture
def call(call_check):
    """Call the command in this process; return exit status, stdout and stderr."""
    return partial(call_check, "resume")


def pretend(monkeypatch, *checks: Check) -> None:
    """Let the runs have come out so, without running any."""
    first = Check("straight", "fsdp=2", 1, "float32", "same")
    trace = Trace(0, ("text:a",), (20,), {step: {"ids": [step] * 8, "rows": []} for step in range(1, 13)}, {}, {}, {})
    monkeypatch.setattr(Runs, "straight", lambda self: (trace, first))
    monkeypatch.setattr(Runs, "disturbed", lambda self, straight, cases: iter(checks))


def test_the_command_prints_and_writes_a_certificate(call, tmp_path, monkeypatch):
    compared = {"batch ids": 6, "losses": 12}
    same = Check("same mesh", "fsdp=2", 1, "float32", "same", 6, compared=compared)
    other = Check("other mesh", "data=1", 1, "float32", "same", 6, compared=compared, error=1e-7, bound=2e-5)
    pretend(monkeypatch, Check("killed", "fsdp=2", 1, "float32", "same"), same, other)
    out = tmp_path / "new" / "resume.json"
    status, said, _ = call("--config=configs/quickstart.py", f"--out={out}")
    assert status == 0, said
    assert said.splitlines()[0].startswith("configs/quickstart.py, fingerprint ")
    assert said.splitlines()[1].startswith(f"12 steps, epochs: 4.8 of text:a; python {platform.python_version()}, jax ")
    assert "resumed after step 6: bit for bit the same\n" in said
    assert "resumed after step 6: loss off by 1.0e-07, bound 2.0e-05\n" in said
    assert said.endswith("SAME run after a kill at step 8: batch ids, losses\n")
    found = json.loads(out.read_text())
    assert found["passed"] and (found["steps"], found["killed_after"]) == (12, 8)
    assert found["fingerprint"] != found["shrunk"]["fingerprint"] and {"jax", "python"} <= set(found["versions"])
    assert [one["mesh"] for one in found["checks"]] == ["fsdp=2", "fsdp=2", "fsdp=2", "data=1"]


def test_what_differs_first_is_named_and_the_status_is_4(call, tmp_path, monkeypatch):
    wrong = Judgement(7, "schedule", "opt_state/count was 7 and is 1", False)
    pretend(monkeypatch, Check("same mesh", "fsdp=2", 1, "float32", "differs", 6, differences=(wrong, wrong)))
    status, said, _ = call("--config=configs/quickstart.py", f"--out={tmp_path}/resume.json")
    assert status == 4
    assert "DIFFERS first in schedule at step 7: opt_state/count was 7 and is 1 (and 1 more)" in said
    assert said.splitlines()[-1] == (
        "NOT THE SAME run: same mesh, fsdp=2, 1 process: schedule at step 7: opt_state/count was 7 and is 1"
    )
    found = json.loads((tmp_path / "resume.json").read_text())
    assert not found["passed"] and found["checks"][1]["num_differences"] == 2
    pretend(monkeypatch, Check("other mesh", "fsdp=2", 1, "float32", "fails", 6, reason="no such axis"))
    status, said, _ = call("--config=configs/quickstart.py")
    assert status == 4 and "FAILS: no such axis" in said and "NOT THE SAME run: other mesh" in said
    pretend(monkeypatch, Check("other mesh", "tensor=2", 1, "float32", "does not fit", reason="heads"))
    status, said, _ = call("--config=configs/quickstart.py")
    assert status == 0 and "does not fit: heads" in said


def test_nothing_is_resumed_if_the_run_does_not_repeat_itself(runs, straight, monkeypatch):
    monkeypatch.setattr(Runs, "killed", lambda self, _: Check("killed", "data=2", 1, "float32", "differs"))
    assert [one.name for one in runs.disturbed(straight, [SAME])] == ["killed"]


def test_a_run_that_does_not_end_is_no_kill(monkeypatch, tmp_path):
    monkeypatch.setattr(children, "LIMIT_S", 0.0)
    ended = children.run(("-c", "input()"), processes=1, devices=1, logs=tmp_path)
    assert (ended.status, ended.error) == (children.TIMED_OUT, "it did not end in 0 s")


def test_processes_that_were_given_different_rows_or_hold_different_copies_show(tmp_path, straight):
    """Two processes that share all the rows of a batch."""

    def read_with(change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "metrics.jsonl").touch()
        facts = {"sources": straight.sources, "rows": straight.rows, "first_row": 0}
        line = {"step": 1, "state": {"params/w": "a"}, "batch": {"step": 0, "ids": [5], "rows": ["r"]}}
        for process, found in enumerate((line, line | change)):
            lines = (facts, {"step": 0, "state": {"params/w": "a"}}, found)
            (folder / f"record.{process}").write_text("".join(json.dumps(one) + "\n" for one in lines))
        return resume_compare.read(folder, folder / "record")

    def first(change):
        found = resume_compare.compare(read_with({}), read_with(change), 0, 1)
        return next((one.quantity for one in found if not one.same), None)

    assert read_with({}).batches == {1: {"ids": [5], "rows": ["r"]}}
    assert first({}) is None
    assert first({"batch": {"step": 0, "ids": [6], "rows": ["r"]}}) == "batch ids"
    assert first({"batch": {"step": 0, "ids": [5], "rows": ["s"]}}) == "batch ids"
    assert first({"state": {"params/w": "b"}}) == "parameters"


def test_bfloat16_is_checked_in_float32_too(call, monkeypatch):
    asked = []
    pretend(monkeypatch)
    monkeypatch.setattr(Runs, "disturbed", lambda self, _, cases: asked.append((self.cfg, cases)) or iter(()))
    status, said, _ = call("--config=configs/quickstart.py", "--config.model.dtype=bfloat16")
    assert status == 0 and said.count("straight") == 2
    assert [(cfg.model.dtype, len(cases)) for cfg, cases in asked] == [("float32", 5), ("bfloat16", 1)]
    assert asked[1][1] == [resume.Case("same mesh", MeshConfig(data=1, fsdp=2))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config=FILE[:ARG] is missing"),
        (("--kill_at=1",), "--kill_at=1 must be at least 2, to leave a checkpoint, and below the 12 steps"),
        (("--kill_at=12",), "--kill_at=12 must be at least 2"),
        (("--processes=3",), "--processes=3 must be 0, or above 1 and divide mesh fsdp=2"),
        (("--meshes=daat=8",), "'daat=8' is not AXIS=SIZE"),
        (("--meshes=data=2;tensor=3",), "--meshes: "),
        (("--workdir=configs",), "--workdir=configs cannot be made: File exists"),
    ],
)
def test_mistakes_are_one_sentence(call, arguments, message):
    config = ("--config=configs/quickstart.py",) if arguments else ()
    status, _, said = call(*config, *arguments)
    assert status == 2 and message in said and len(said.splitlines()) == 1


def test_a_mesh_that_splits_experts_has_room_for_them():
    (small,) = resume.small(strict.from_dict(Config, moe_tiny.get_config()), STEPS, KILL_AT, HERE)
    split = MeshConfig(data=1, fsdp=2, expert=4)
    assert meshes.places(split) == 8
    assert resume.unfit(small, split) is None
    assert resume.cases(split, [], 8)[-1].processes == 8


def test_a_run_that_the_launcher_refuses_is_bad_input(environment, config, tmp_path):
    (small,) = resume.small(config, STEPS, KILL_AT, HERE)
    gone = dataclasses.replace(
        small, data=dataclasses.replace(small.data, sources=("text:/nowhere/*.txt",), weights=())
    )
    with pytest.raises(UserError, match="the shrunk run fails: no file matches '/nowhere"):
        Runs(gone, KILL_AT, tmp_path, check_resume.LAUNCHER).straight()
