"""The page that the documentation teaches from: it learns, and it is the training command, bit for bit."""

from bigjax.config import replace
from bigjax.run.rows import read_rows
from experiments import minimal, train
from tests.commands import ROOT, shared_cache

STEPS = 12


def test_the_loss_falls_and_is_that_of_the_training_command_bit_for_bit(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache(tmp_path_factory)))
    quiet = {"every_steps": 1, "tensorboard": False, "plot": False}
    cfg = replace(minimal.CONFIG, train={"steps": STEPS, "eval_batches": 1}, log=quiet)
    losses = minimal.train(cfg)
    # Before anything is learned, each of 256 bytes is about as likely: log 256 = 5.55.
    assert 5.4 < losses[0] < 5.7
    assert max(losses[-3:]) < losses[0] - 0.5
    assert train.run(cfg, tmp_path / "run") == 0
    there = [row["train/loss"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    assert losses == there


def test_it_fits_on_a_page_and_needs_the_library_alone():
    source = (ROOT / "experiments" / "minimal.py").read_text()
    assert len(source.splitlines()) <= 60
    assert "experiments import" not in source


def test_the_loop_of_the_training_command_stays_short():
    source = (ROOT / "experiments" / "train.py").read_text()
    run = source[source.index("def run(") : source.index('if __name__ == "__main__":')].rstrip().splitlines()
    assert len(run) < 110
    assert sum(line.strip().startswith("#") for line in run) >= 0.12 * len(run)
