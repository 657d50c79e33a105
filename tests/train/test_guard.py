"""A step that diverges: how it is told from others, and runs that stop or drop its update."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

from bigjax.config import Config, GuardConfig, replace
from bigjax.config.strict import fingerprint
from bigjax.train import divergence
from tests.commands import TINY, Commands, read, rows, shared_cache
from tests.saved_state import saved_state

TRAIN = "experiments.train"
LONG = (*TINY, "--config.train.steps=12", "--config.train.eval_every_steps=0")
LONG = (*LONG, "--config.checkpoint.every_steps=3", "--config.checkpoint.asynchronous=false")
SKIP = ("--config.guard.on_nonfinite=skip", "--config.guard.on_spike=skip", "--config.guard.window=5")
SKIP = (*LONG, *SKIP, "--config.guard.threshold=25")
BAD = "5=nan,8=noise"
"""What steps 6 and 9 draw."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


def judged(cfg: GuardConfig, series) -> list[dict]:
    """Return the verdicts on (loss, gradient norm) pairs, one step after the other, by a compiled judge."""
    judge, watch, found = jax.jit(lambda *args: divergence.judge(cfg, *args)), divergence.init(cfg), []
    for loss, norm in series:
        watch, verdict = judge(watch, np.float32(loss), np.float32(norm))
        found.append({name: np.asarray(value) for name, value in verdict.items()})
    return found


def spikes_by_hand(series, window: int, threshold: float) -> list[bool]:
    """The definition, literally: both histories of the latest finite steps, once there are enough of them."""
    found, kept = [], []
    for pair in series:
        finite = all(map(math.isfinite, pair))
        recent = np.array(kept[-window:], np.float32).T
        found.append(False)
        if finite and len(kept) >= window:
            median = np.median(recent, axis=1)
            deviation = np.median(np.abs(recent - median[:, None]), axis=1)
            found[-1] = bool(np.any(np.float32(pair) - median > threshold * deviation))
        if finite:
            kept.append(pair)
    return found


@pytest.mark.parametrize("window", [5, 8])
def test_spikes_are_those_of_the_definition(window):
    rng = np.random.default_rng(0)
    series = np.stack([rng.normal(4, 0.1, 80), rng.normal(1, 0.2, 80)], axis=1).astype(np.float32)
    series[20, 0], series[30, 1], series[40], series[50, 0] = 9, 30, np.nan, np.inf
    series[60:] += 5  # a new level is a spike only until the window knows it
    cfg = GuardConfig(on_nonfinite="skip", on_spike="skip", window=window, threshold=20.0)
    verdicts, expected = judged(cfg, series), spikes_by_hand(series, window, 20.0)
    assert [bool(one["spike"]) for one in verdicts] == expected
    assert (expected[20], expected[30], expected[40], expected[60], expected[79]) == (True, True, False, True, False)
    dropped = [spike or step in (40, 50) for step, spike in enumerate(expected)]
    assert [bool(one["dropped"]) for one in verdicts] == dropped
    assert [int(one["skipped"]) for one in verdicts] == np.cumsum(dropped).tolist()
    assert max(int(one["skips_in_a_row"]) for one in verdicts) == sum(dropped[60:])


def test_the_default_watches_nothing_and_keeps_the_identity_of_a_config():
    assert divergence.init(GuardConfig()) is None
    assert fingerprint(replace(Config(), guard={"max_rollbacks": 9})) == fingerprint(Config())
    assert fingerprint(replace(Config(), guard={"on_nonfinite": "skip"})) != fingerprint(Config())


@pytest.fixture(scope="module")
def skipped(commands, tmp_path_factory):
    """A run of 12 steps of which two drop their update: its folder, and what it said."""
    folder = tmp_path_factory.mktemp("skipped")
    witness = ("tests.witnessed_train", folder / "record", "--")
    done = commands.run("tests.poisoned", BAD, *witness, *SKIP, f"--workdir={folder}/run")
    return folder, done


def test_dropped_updates_are_counted_and_the_rest_of_the_run_is_sound(skipped):
    folder, done = skipped
    found = [row for row in rows(folder / "run") if "train/loss" in row]
    assert [row["step"] for row in found] == list(range(1, 13))
    assert [row["guard/skipped_updates"] for row in found] == [0] * 5 + [1] * 3 + [2] * 4
    assert [row["step"] for row in found if not math.isfinite(row["train/loss"])] == [6]
    assert read(folder / "run" / "result.json")["skipped_updates"] == 2
    # A dropped update is none: the schedule waits for it.
    lr = [row["optim/lr"] for row in found]
    assert lr[5] == lr[6]
    assert lr[8] == lr[9]
    assert "step 6 is not finite (loss nan, gradient norm nan, first in the gradient of blocks/attn/k): " in done.stderr
    assert "step 9 spikes (loss " in done.stderr
    assert "its update is dropped (2 so far)" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_event_leaves_its_evidence(skipped):
    folder, _ = skipped
    assert sorted(path.name for path in (folder / "run" / "forensics").iterdir()) == ["step-6", "step-9"]
    given = {line["step"]: line for line in map(json.loads, (folder / "record").read_text().splitlines())}
    for step, kind in ((6, "non-finite"), (9, "spike")):
        where = folder / "run" / "forensics" / f"step-{step}"
        event = read(where / "event.json")
        assert (event["step"], event["kind"], event["policy"], event["batch"]) == (step, kind, "skip", step - 1)
        assert event["batch_ids"] == given[step - 1]["ids"]
        texts = [json.loads(line) for line in (where / "batch-0.jsonl").read_text().splitlines()]
        assert [text["id"] for text in texts] == event["batch_ids"]
        assert all(len(text["text"]) == 32 for text in texts)
        assert event["modules"]["blocks/attn/q"]["param_norm"] > 0
        assert event["rng"]["seed"] == 0
    excess = np.subtract((event["loss"], event["grad_norm"]), event["median"])
    assert np.any(excess > 25 * np.array(event["deviation"]))


def test_killed_and_resumed_with_dropped_updates_is_the_same_run_bit_for_bit(commands, skipped, tmp_path):
    witness = ("tests.witnessed_train", tmp_path / "record")
    run = (*SKIP, f"--workdir={tmp_path}/run")
    # After step 7 only the checkpoint of step 6 is there, of which the update was dropped.
    commands.run("tests.poisoned", BAD, *witness, "SIGKILL@7", "--", *run, code=-9)
    assert "resuming after step 6" in commands.run("tests.poisoned", BAD, *witness, "--", *run).stderr
    assert repr(rows(tmp_path / "run")) == repr(rows(skipped[0] / "run"))  # a NaN equals itself only in print
    assert saved_state(tmp_path / "run") == saved_state(skipped[0] / "run")
    for name in ("step-6", "step-9"):
        events = [read(folder / "run" / "forensics" / name / "event.json") for folder in (tmp_path, skipped[0])]
        assert events[0] | {"replay": ""} == events[1] | {"replay": ""}


@pytest.mark.exhaustive
def test_the_replay_command_reproduces_the_event(commands, skipped, tmp_path):
    event = read(skipped[0] / "run" / "forensics" / "step-9" / "event.json")
    python, m, module, *arguments = event["replay"].split()
    assert (python, m, module, arguments[0]) == ("python", "-m", "bigjax", "check")
    done = commands.run("tests.poisoned", BAD, module, *arguments)
    assert done.stdout.splitlines() == [
        f"step 9, from the initial state: loss {event['loss']!r}, gradient norm {event['grad_norm']!r}",
        "the same as recorded, bit for bit",
    ]
    # Without the bad batch the step is another, and the check says so.
    again = shutil.copytree(skipped[0] / "run", tmp_path / "run")
    other = ("--workdir=" + str(again), "--event=step-9")
    said = commands.run("tests.poisoned", "5=nan", module, "check", "replay", *other, code=4).stdout.splitlines()
    assert said[1].startswith(f"  loss was {event['loss']!r} and is ")
    assert said[-1] == "NOT THE SAME as recorded"
    said = commands.run(module, "check", "replay", other[0], "--event=step-3", code=2).stderr
    assert said == f"error: {again} has no event 'step-3'; it has step-6, step-9\n"


@pytest.mark.exhaustive
def test_the_same_updates_are_dropped_on_a_mesh(commands, skipped, tmp_path):
    mesh = ("--config.mesh.fsdp=4", "--config.mesh.tensor=2", f"--workdir={tmp_path}/run")
    commands.run("tests.poisoned", BAD, TRAIN, *SKIP, *mesh, devices=8)
    pairs = list(zip(rows(tmp_path / "run"), rows(skipped[0] / "run"), strict=True))
    assert len(pairs) > 12
    for row, expected in pairs:
        assert row == pytest.approx(expected, rel=2e-4, nan_ok=True), row["step"]


def test_too_many_dropped_in_a_row_end_the_run(commands, tmp_path):
    limit = ("--config.guard.max_consecutive_skips=2", f"--workdir={tmp_path}/run")
    done = commands.run("tests.poisoned", "4=nan,5=nan,6=nan", TRAIN, *SKIP, *limit, code=3)
    assert "error: step 7 is not finite" in done.stderr
    assert "after 2 updates in a row were dropped (guard.max_consecutive_skips=2)" in done.stderr


def test_a_spike_may_end_the_run(commands, tmp_path):
    stop = (*LONG, "--config.guard.on_spike=stop", "--config.guard.window=5", "--config.guard.threshold=25")
    done = commands.run("tests.poisoned", "8=noise", TRAIN, *stop, f"--workdir={tmp_path}/run", code=3)
    assert "error: step 9 spikes (loss " in done.stderr
    assert done.stderr.endswith(f"the evidence is in {tmp_path}/run/forensics/step-9\n")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["3", "6"]
