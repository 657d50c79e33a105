"""The training command as a user types it: what a run leaves behind, what it says, and how it goes on."""

import re
import shutil

import jax
import pytest

from bigjax import data, sharding
from bigjax.config.strict import fingerprint
from bigjax.evaluate.scoring import score
from bigjax.run.folder import RunFolder
from bigjax.run.rows import read_rows
from bigjax.train import step
from experiments import trained
from tests.commands import TINY, WHOLE, Commands, contents, read, rows, shared_cache

TRAIN = "experiments.train"


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def finished(commands, tmp_path_factory):
    """A finished run of 8 steps: its folder, and the process that trained it."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return workdir, commands.run(TRAIN, *WHOLE, f"--workdir={workdir}", "--profile=3-4")


@pytest.fixture
def cut_short(finished, tmp_path):
    """The same run as if it had ended after its checkpoint of step 4."""
    workdir = shutil.copytree(finished[0], tmp_path / "cut-short")
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "8")
    return workdir


def test_a_run_records_its_config_and_what_it_ran_on(finished):
    workdir, _ = finished
    cfg = RunFolder(workdir).load_config()
    assert (cfg.train.steps, cfg.model.d_model, cfg.model.positions) == (8, 32, "rotary")
    assert read(workdir / "config.json")["fingerprint"] == fingerprint(cfg)
    (session,) = read(workdir / "environment.json")["sessions"]
    assert session["argv"][1:] == [*WHOLE, f"--workdir={workdir}", "--profile=3-4"]
    assert set(session["git"] or {}) in ({"revision", "dirty"}, set())
    assert session["packages"]["jax"] == jax.__version__
    assert session["devices"] == {"platform": "cpu", "kind": "cpu", "count": 1}
    assert (session["processes"], session["changed"]) == (1, {})
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", session["python"])


def test_a_run_writes_a_row_of_metrics_for_every_step_and_every_evaluation(finished):
    lines = [set(row) for row in read_rows(finished[0] / "metrics.jsonl")]
    base = {"step", "time_s", "train/loss", "train/nll", "optim/grad_norm", "optim/lr"}
    speed = {"perf/tokens_per_s", "perf/data_wait_s", "perf/mfu", "perf/measured_peak_flops"}
    scores = {"step", "time_s", "eval/loss", "eval/perplexity", "eval/tokens", "eval/bits_per_byte"}
    assert lines == [base, *[base | speed] * 3, scores, *[base | speed] * 4, scores]
    assert [row["step"] for row in rows(finished[0])] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    losses = [row["train/loss"] for row in rows(finished[0]) if "train/loss" in row]
    assert losses[-1] < losses[0]


def test_a_run_ends_with_its_result(finished):
    workdir, _ = finished
    result, cfg = read(workdir / "result.json"), RunFolder(workdir).load_config()
    assert result["fingerprint"] == fingerprint(cfg)
    assert (result["steps"], result["tokens"]) == (8, 8 * 8 * 32)
    block = 4 * 32 * 32 + 2 * 32 * 128  # attention matrices and the MLP
    norms = result["params_non_embedding"] - block
    assert result["params_total"] - result["params_non_embedding"] == 256 * 32
    assert 0 < norms < 200
    assert result["flops"] == result["tokens"] * (6 * (block + 256 * 32) + 12 * 32 * 32)
    last = rows(workdir)[-1]
    assert result["eval_loss"] == last["eval/loss"]
    assert result["eval_bits_per_byte"] == last["eval/bits_per_byte"]
    # A byte a token: the two units differ by log(2) alone.
    assert result["eval_bits_per_byte"] == pytest.approx(result["eval_loss"] / 0.6931471805599453)
    assert result["tokens_per_s"] > 0
    assert result["wall_s"] > 0
    assert result["mesh"] == dict.fromkeys(("slice", "stage", "data", "fsdp", "expert", "context", "tensor"), 1)
    assert result["jax_version"] == jax.__version__


def test_a_run_leaves_checkpoints_pictures_and_traces(finished):
    workdir, _ = finished
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["4", "8"]
    png = (workdir / "loss.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    assert any((workdir / "tensorboard").glob("events.out.tfevents.*"))
    assert data.load_tokenizer(workdir).vocab_size == 256
    (trace,) = (workdir / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    assert not (workdir / "forensics").exists()


def test_a_run_says_what_it_is_and_ends_with_its_score_and_a_sample(finished):
    workdir, done = finished
    result = read(workdir / "result.json")
    said = done.stderr.splitlines()
    assert said[0] == f"bigjax: run {result['fingerprint']} in {workdir}"
    total, rest = result["params_total"], result["params_non_embedding"]
    assert said[1] == f"model: {total:,} parameters, {rest:,} without embeddings"
    assert said[2] == "mesh: one device (cpu)"
    assert re.fullmatch(r"data: [\d,]+ tokens, [\d,]+ bytes, \d+ documents; 0\.00 epochs in 8 steps", said[3])
    assert [line for line in said[4:] if not line.startswith("step ")] == []
    assert len([line for line in said if line.startswith("step 8/8 ")]) == 1
    assert f"eval loss {result['eval_loss']:.3f}" in said[-1]
    score, label, *sample = done.stdout.splitlines()
    assert re.match(r"8 steps, 2,048 tokens in \d+ s; held out: ", score)
    assert f"loss {result['eval_loss']:.4f} nats per token" in score
    assert f"{result['eval_bits_per_byte']:.4f} bits per byte" in score
    assert (label, sample[0]) == ("sample:", "ROMEO.")
    assert result["sample"].startswith("ROMEO.\n")


def test_the_same_command_again_says_complete_and_changes_nothing(commands, finished):
    workdir, first = finished
    before = contents(workdir)
    again = commands.run(TRAIN, *WHOLE, f"--workdir={workdir}", "--profile=3-4")
    assert again.stdout == ""
    assert again.stderr.splitlines()[1:] == [f"{workdir} is complete: {first.stdout.splitlines()[0]}"]
    assert contents(workdir) == before


def test_more_steps_do_not_go_on_in_the_same_folder_once_the_decay_has_begun(commands, finished):
    """A warm-up of 1 and a decay of 2 of 8 steps, to a tenth: the 7th had 0.55 of the peak."""
    workdir, _ = finished
    before = contents(workdir)
    done = commands.run(TRAIN, *WHOLE, f"--workdir={workdir}", "--config.train.steps=9", code=2)
    assert done.stderr.splitlines()[1:] == [
        f"error: {workdir} has trained 8 steps and cannot go on as this config says: the learning rate of step 7 was "
        f"0.0011 there and would be 0.002 here; set init_state={workdir}@4 and another --workdir, to branch off before "
        "the rates differ"
    ]
    assert contents(workdir) == before


def test_a_run_cut_short_goes_on_with_other_plumbing(commands, finished, cut_short):
    plumbing = ("--config.log.every_steps=2", "--config.checkpoint.asynchronous=false", "--config.log.plot=false")
    done = commands.run(TRAIN, *WHOLE, *plumbing, f"--workdir={cut_short}", "--profile=2-4")
    assert "resuming after step 4" in done.stderr
    assert "warning: nothing is traced: --profile ends with step 4, which is done\n" in done.stderr
    assert rows(cut_short) == [row for row in rows(finished[0]) if row["step"] not in (7,)]
    sessions = read(cut_short / "environment.json")["sessions"]
    assert sessions[1]["changed"] == {
        "checkpoint.asynchronous": [True, False],
        "log.every_steps": [1, 2],
        "log.plot": [True, False],
    }
    assert RunFolder(cut_short).load_config().log.every_steps == 2
    old, new = read(finished[0] / "result.json"), read(cut_short / "result.json")
    for name in ("eval_loss", "eval_bits_per_byte", "sample", "params_total", "fingerprint", "flops"):
        assert new[name] == old[name], name


def test_a_run_killed_before_its_result_only_writes_that(commands, finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / "result.json").unlink()
    commands.run(TRAIN, *WHOLE, f"--workdir={workdir}")
    assert rows(workdir) == rows(finished[0])
    old, new = read(finished[0] / "result.json"), read(workdir / "result.json")
    assert {name for name in old if old[name] != new[name]} <= {"tokens_per_s", "wall_s"}


def test_init_from_starts_from_the_weights_of_another_run(commands, finished, tmp_path):
    workdir, _ = finished
    commands.run(TRAIN, *TINY, f"--config.init_from={workdir}", f"--workdir={tmp_path}/new")
    cfg = RunFolder(tmp_path / "new").load_config()
    assert expected_first_loss(workdir) == pytest.approx(rows(tmp_path / "new")[0]["train/loss"], rel=1e-5)
    assert cfg.init_from == str(workdir)
    # All else is that of a new run.
    old, new = rows(workdir), rows(tmp_path / "new")
    assert [(row["step"], row.get("optim/lr")) for row in new] == [(row["step"], row.get("optim/lr")) for row in old]


def expected_first_loss(workdir) -> float:
    """The loss of a run's last weights on its first batch."""
    run = trained.load(workdir, RunFolder(workdir).load_config())
    size = run.cfg.train.global_batch_size
    text = data.build(run.cfg, sharding.local_rows(run.mesh, size))
    with jax.set_mesh(run.mesh):
        eval_step = jax.jit(step.make_eval_step(run.cfg, run.model, run.layout))
        return score(eval_step, run.weights, [text.train.batch(0)], size)["loss"]


def test_the_first_line_is_printed_before_jax_is_imported(commands, tmp_path):
    """Python itself notes the order: every import is a line on stderr."""
    arguments = (*WHOLE, "--config.train.global_batch_size=9", f"--workdir={tmp_path}/run")
    said = commands.run(TRAIN, *arguments, code=2, devices=2, options=("-X", "importtime")).stderr.splitlines()
    first = next(i for i, line in enumerate(said) if line.startswith("bigjax: run "))
    imported = [i for i, line in enumerate(said) if re.search(r"\| +(jax|jaxlib|grain|matplotlib)(\.|$)", line)]
    assert imported
    assert first < imported[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "Exit status: 0 finished; 1 a bug; 2 bad input; 3 the loss or the gradient was not finite"),
        ([*WHOLE, "--print_config"], "train.steps = 8\n"),
        ([*WHOLE, "--diff=configs/quickstart.py"], "maths     train.steps: 8 -> 180\n"),
    ],
)
def test_questions_are_answered_without_running(commands, tmp_path, arguments, expected):
    done = commands.run(TRAIN, *arguments, f"--workdir={tmp_path}/run")
    assert expected in done.stdout
    assert done.stderr == ""
    assert not (tmp_path / "run").exists()


def test_a_config_can_be_compared_with_a_run(commands, finished):
    workdir, _ = finished
    said = commands.run(TRAIN, *WHOLE, "--config.log.every_steps=3", f"--diff={workdir}").stdout.splitlines()
    assert said[0] == "plumbing  log.every_steps: 3 -> 1"
    fingerprints = [line.rpartition(" = ")[2] for line in said[1:]]
    assert fingerprints == [read(workdir / "config.json")["fingerprint"]] * 2
