"""Metrics reach their files once each, across resumes; the progress line and the plot say what they should."""

import json
import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.config import CheckpointConfig, Config, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.data import DataError, save_tokenizer
from bigjax.data.tokens.tokenizers import ByteTokenizer
from bigjax.errors import UserError
from bigjax.run import console, throughput
from bigjax.run.console import Progress, progress_line
from bigjax.run.folder import RunFolder
from bigjax.run.metrics import MetricsWriter, add, means, scalars
from bigjax.run.plots import plot_loss, smoothed
from bigjax.run.rows import read_rows, truncate_after
from bigjax.run.throughput import Throughput
from bigjax.train import flops
from bigjax.train import step as train_step
from experiments import train

QUIET = LogConfig(tensorboard=False)


def test_means_are_exact_under_an_uneven_split():
    whole = {"loss": (jnp.float32(2.0 + 3.0 + 7.0), jnp.int32(3)), "none": (0.0, 0)}
    parts = {"loss": (jnp.float32(2.0), jnp.int32(1)), "none": (0.0, 0)}, {"loss": (10.0, 2), "none": (0.0, 0)}
    assert means(whole)["loss"] == means(add(*parts))["loss"] == 4.0
    assert math.isnan(means(whole)["none"])


def test_an_array_becomes_a_number_for_each_of_its_elements():
    loads = jnp.array([[0.25, 0.75], [0.5, 0.5]])
    expected = {"moe/load/0/0": 0.25, "moe/load/0/1": 0.75, "moe/load/1/0": 0.5, "moe/load/1/1": 0.5, "loss": 2.0}
    assert scalars({"moe/load": loads, "loss": jnp.float32(2.0)}) == expected
    assert means({"moe/load": (4 * loads, jnp.int32(4)), "loss": (8.0, 4)}) == expected


def write_steps(run, steps, **kwargs):
    with MetricsWriter(run, QUIET, total_steps=10, **kwargs) as writer:
        for step in steps:
            writer.write(step, {"train/loss": 1.0 / (1 + step)})


def test_rows(tmp_path):
    run = RunFolder(tmp_path)
    with MetricsWriter(run, QUIET, total_steps=3) as writer:
        writer.write(1, {"train/loss": 2.5, "optim/grad_norm": math.inf})
        on_disk = run.metrics.read_text()
        writer.write(2, {"train/loss": math.nan})
        with pytest.raises(TypeError):
            writer.write(3, {"train/loss": jnp.ones(())})
    row = json.loads(on_disk, parse_constant=pytest.fail)
    assert row["step"] == 1 and row["optim/grad_norm"] == "Infinity" and row["time_s"] >= 0
    first, second = read_rows(run.metrics)
    assert first["train/loss"] == 2.5 and first["optim/grad_norm"] == math.inf
    assert math.isnan(second["train/loss"]) and type(second["step"]) is int


def test_resume_drops_later_rows_so_that_no_step_appears_twice(tmp_path):
    run = RunFolder(tmp_path)
    write_steps(run, range(7))
    with run.metrics.open("a") as file:
        file.write('{"step": 7, "trai')  # cut short by a crash
    write_steps(run, range(5, 10), resumed_at=4)
    rows = list(read_rows(run.metrics))
    assert [row["step"] for row in rows] == list(range(10))
    assert [row["time_s"] for row in rows] == sorted(row["time_s"] for row in rows)
    write_steps(run, [0])
    assert [row["step"] for row in read_rows(run.metrics)] == [0]


def test_time_goes_on_where_the_checkpoint_left_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time_s": 50.0}\n{"step": 2, "time_s": 99.0}\n')
    assert truncate_after(path, 1) == 50.0
    write_steps(RunFolder(tmp_path), [2], resumed_at=1)
    assert 50.0 <= list(read_rows(path))[-1]["time_s"] < 99.0
    assert truncate_after(tmp_path / "missing.jsonl", 1) == 0.0


def test_tensorboard_gets_the_same_numbers(tmp_path):
    run = RunFolder(tmp_path)
    with MetricsWriter(run, LogConfig(), total_steps=2) as writer:
        writer.write(1, {"train/loss": 2.5})
        writer.write(2, {"train/loss": 1.5, "eval/loss": 3.0})
    assert _scalars(run.tensorboard) == [(1, "train/loss", 2.5), (2, "train/loss", 1.5), (2, "eval/loss", 3.0)]


def _scalars(folder):
    """Read event files: each record is its length (8 bytes), a checksum (4), an event, a checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_tensorboard_failure_is_raised(tmp_path):
    run = RunFolder(tmp_path)
    run.tensorboard.touch()
    writer = MetricsWriter(run, LogConfig(), total_steps=2)
    writer.write(1, {"train/loss": 2.5})
    with pytest.raises(UserError, match="tensorboard: Not a directory"):
        writer.close()


def test_a_full_disk_is_one_sentence(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics.symlink_to("/dev/full")
    message = r"metrics\.jsonl: No space left on device; once they can, the same command continues"
    with pytest.raises(UserError, match=message), MetricsWriter(run, QUIET, total_steps=2) as writer:
        writer.write(1, {"train/loss": 1.0})
    with pytest.raises(ValueError, match="of the run"), MetricsWriter(run, QUIET, total_steps=2) as writer:
        with pytest.raises(UserError, match=message):
            writer.write(1, {"train/loss": 1.0})
        raise ValueError("of the run")
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"the tokenizer cannot be written to .*: No space left on device"):
        save_tokenizer(ByteTokenizer(), tmp_path)


def test_imports_are_light():
    code = "import sys, bigjax.run.metrics, bigjax.run.plots, bigjax.checkpoint; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorboardX", "matplotlib", "orbax.checkpoint", "rich"} & set(loaded)


def test_progress_line():
    metrics = {"train/loss": 2.3141, "perf/tokens_per_s": 41_234.0, "perf/mfu": 0.3812, "optim/grad_norm": 1.0}
    expected = "step  120/1000  loss 2.314  41.2k tok/s  MFU 38.1 %  left 1m12s"
    assert progress_line(120, 1000, metrics, 72.4) == expected
    assert (
        progress_line(5, 9, {"eval/loss": 1.0, "perf/tokens_per_s": 999.6}, None)
        == "step 5/9  eval loss 1.000  1.0k tok/s"
    )
    lefts = [progress_line(1, 9, {}, left).split("left ")[1] for left in (0.4, 59.6, 3725, 200_000)]
    assert lefts == ["0s", "1m00s", "1h02m", "2d07h"]


def test_plain_output_is_sparse_and_ends_with_the_last_step(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    progress = Progress(8)
    for step in range(1, 9):
        now[0] += 2.0 if step > 1 else 60.0  # the first step compiles
        progress.update(step, {"train/loss": float(step)})
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 1/8  loss 1.000",
        "step 4/8  loss 4.000  left 8s",
        "step 7/8  loss 7.000  left 2s",
        "step 8/8  loss 8.000  left 0s",
    ]


def test_live_line_is_redrawn_in_place(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress(3)
    for step in (1, 2, 3):
        progress.update(step, {"train/loss": 1.5})
    progress.close()
    text = capsys.readouterr().err
    assert "\x1b[2K" in text
    assert text.rstrip("\n\x1b[?25h").count("\n") <= 1
    assert "step 3/3  loss 1.500" in text


def test_smoothing_does_not_lag_and_skips_what_is_not_finite():
    straight = np.arange(9.0)
    np.testing.assert_allclose(smoothed(straight, reach=2)[:7], straight[:7])
    np.testing.assert_allclose(smoothed(straight, reach=2)[7:], [6.5, 7.0])
    np.testing.assert_allclose(smoothed(straight, reach=0), straight)
    np.testing.assert_allclose(smoothed(np.array([np.nan, 2.0, np.inf, 4.0]), reach=1), [np.nan, 2.0, 3.0, 4.0])


def test_plot_is_a_picture(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match="train/loss"):
        run.metrics.touch()
        plot_loss(run.metrics, run.loss_plot)
    rng = np.random.default_rng(0)
    with MetricsWriter(run, QUIET, total_steps=200) as writer:
        for step in range(1, 201):
            writer.write(step, {"train/loss": 2 + 4 * math.exp(-step / 20) + 0.1 * rng.standard_normal()})
            if step % 50 == 0:
                writer.write(step, {"eval/loss": 2.1 + 4 * math.exp(-step / 20)})
    plot_loss(run.metrics, run.loss_plot)
    data = run.loss_plot.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) > 10_000
    assert "matplotlib.pyplot" not in sys.modules


def train_a_little(folder, steps: int, witness=train.unwatched) -> None:
    cfg = Config(
        ModelConfig(vocab_size=256, num_layers=1, d_model=16, num_heads=2, max_seq_len=16),
        DataConfig(tokenizer="bytes", seq_len=16),
        TrainConfig(steps=steps, global_batch_size=8, eval_batches=1),
        OptimConfig(schedule="constant"),
        checkpoint=CheckpointConfig(every_steps=steps),
        log=LogConfig(tensorboard=False, plot=False, sample_tokens=0),
    )
    assert train.run(cfg, folder, witness=witness) == 0


def test_the_peak_of_a_cpu_is_measured_while_nothing_is_compiled(tmp_path, monkeypatch):
    compiling, idle = [], []
    compile_aside, peak_flops = train_step.compile_aside, flops.peak_flops

    def compile_noted(traced):
        compiling.append(compile_aside(traced))
        return compiling[-1]

    def measured(devices):
        idle.append(all(future.done() for future in compiling))
        return peak_flops(devices)

    monkeypatch.setattr(train_step, "compile_aside", compile_noted)
    monkeypatch.setattr(flops, "peak_flops", measured)
    train_a_little(tmp_path / "run", 1)
    assert compiling and idle == [True]


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets, for throughput alone."""
    now = [0.0]
    monkeypatch.setattr(throughput, "perf_counter", lambda: now[0])
    return now


def readings(clock, speed, steps, tokens=100, seconds=1.0):
    """Return the metrics of each of `steps` steps of so many tokens and seconds, after one that compiles."""
    speed.count(tokens)
    found = []
    for _ in range(steps):
        clock[0] += seconds
        speed.count(tokens)
        found.append(speed.read())
    return found


def test_a_peak_measured_under_load_does_not_stay(clock):
    """500 FLOPs a token at 100 tokens/s are 50 % of 100 kFLOP/s, whatever part of that was measured at the start."""
    measured = iter([1e5, 8e4])

    def again():
        clock[0] += 0.5  # measuring takes time, which is none of the steps'
        return next(measured)

    found = readings(clock, Throughput(500.0, 5.2e4, again), 100)
    assert [row["perf/tokens_per_s"] for row in found] == pytest.approx([100] * 100)
    assert [row["perf/mfu"] for row in found] == pytest.approx([0.5] * 100)
    assert {row["perf/measured_peak_flops"] for row in found} == {1e5}
    assert next(measured, None) is None  # once at the first reading and once a minute later


def test_a_peak_that_rises_later_counts_from_then_on(clock):
    measured = iter([6e4, 1e5])
    found = readings(clock, Throughput(500.0, 5.2e4, lambda: next(measured)), 100)
    assert [row["perf/mfu"] for row in found[:60]] == pytest.approx([5 / 6] * 60)
    assert [row["perf/mfu"] for row in found[60:]] == pytest.approx([0.5] * 40)


def test_the_peak_of_a_data_sheet_is_not_measured_and_an_unknown_one_gives_no_utilisation(clock):
    (row,) = readings(clock, Throughput(500.0, 1e5), 1)
    assert row == {"perf/tokens_per_s": 100.0, "perf/data_wait_s": 0.0, "perf/mfu": 0.5}
    assert "perf/mfu" not in readings(clock, Throughput(500.0, None), 1)[0]


@pytest.mark.exhaustive
def test_on_a_cpu_each_step_is_timed_by_itself(tmp_path, monkeypatch):
    events = []
    count, waiting = Throughput.count, Throughput.waiting_for_data
    monkeypatch.setattr(Throughput, "count", lambda self, tokens: (events.append("count"), count(self, tokens))[1])
    monkeypatch.setattr(Throughput, "waiting_for_data", lambda self: (events.append("next"), waiting(self))[1])
    train_a_little(tmp_path / "run", 3, lambda done, batch, state: events.append(done))
    # Counted late, a step that is followed by a save would have the time of none, and the one before that of two.
    assert events == [0, "next", 1, "count", "next", 2, "count", "next", 3, "count"]
