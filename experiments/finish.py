"""What a training run says of its steps and scores, and what it leaves when it ends."""

import json
from collections.abc import Callable
from typing import Any

import jax

from bigjax import params
from bigjax.checkpoint import LenientSaves
from bigjax.config import Config
from bigjax.data import TextData
from bigjax.evaluate import generation, writing
from bigjax.models import Model
from bigjax.run import Interrupt, MetricsWriter, RunFolder, metrics, plots, say
from bigjax.run.json_files import reading
from bigjax.run.rows import read_rows
from bigjax.sharding import Layout
from bigjax.tasks import named_task
from bigjax.train import rollback
from bigjax.train.flops import run_flops_per_token

SKIPPED = "guard/skipped_updates"
"""The metric that counts the updates which the guard dropped."""


EMPTY = "train/empty_batches"
"""The metric, 1, of a step whose batch held nothing to predict."""


def metrics_row(cfg: Config, values: dict[str, Any], rate: Callable[[int], float]) -> dict[str, float]:
    """Return what `metrics.jsonl` says of a step, of the metrics of `step.make_train_step`; waits for the device.

    Of a batch with nothing to predict it says just that: there is no loss.
    """
    empty, told = not float(values["tokens"]), named_task(cfg).metrics
    names = [] if empty else [name for name in values if name in told or "/" in name]
    row = metrics.scalars({name if "/" in name else f"train/{name}": values[name] for name in names})
    row |= {"optim/grad_norm": float(values["grad_norm"]), "optim/lr": rate(int(values["updates"]))}
    row |= {EMPTY: 1} if empty else {}
    return row | ({SKIPPED: int(values["skipped"])} if "skipped" in values else {})


def scores_row(scores: dict[str, float]) -> dict[str, float]:
    """Return what `metrics.jsonl` says of the scores of `scoring.evaluator`."""
    return {f"eval/{name}": value for name, value in scores.items()}


def status(done: int, saves: LenientSaves, interrupt: Interrupt, *, stopped: bool) -> int:
    """Return the exit status of a run that ends after step `done`, and say why if it is not 0."""
    if saves.last_failed:
        say(f"the last checkpoint, of step {done}, could not be saved; the same command continues from the newest")
        return 4
    if stopped:
        say(f"stopped after step {done} with a checkpoint; the same command continues")
        # Of several processes, one that got no signal itself stops with those that did.
        return interrupt.exit_code or 143
    return 0


def write_scores(writer: MetricsWriter, folder: RunFolder, total_steps: int, scores: dict[str, float]) -> None:
    """Write the scores of the last step, unless an earlier session, which ended before its result, has written them."""
    if scores and not scored(folder, total_steps):
        writer.write(total_steps, scores_row(scores))


def scored(folder: RunFolder, step: int) -> bool:
    """Return whether an earlier session, which ended before its result, has written the scores of `step`."""
    return any(row["step"] == step and "eval/loss" in row for row in read_rows(folder.metrics))


def write(
    cfg: Config,
    folder: RunFolder,
    model: Model,
    layout: Layout,
    weights: Any,
    text: TextData,
    scores: dict[str, float],
    tokens_per_s: float | None,
) -> None:
    """Print the scores and a sample, draw the loss curve, and write result.json, which declares the run complete."""
    sampled = sample(cfg, model, layout, weights, text) if cfg.log.sample_tokens else None
    if jax.process_index() != 0:
        return
    if cfg.log.plot:
        plots.plot_loss(folder.metrics, folder.loss_plot)
    tokens, unit = text.train.rows_taken(cfg.train.steps) * cfg.data.seq_len, named_task(cfg).unit
    rows = list(read_rows(folder.metrics))
    result = {
        "fingerprint": folder.fingerprint,
        "steps": cfg.train.steps,
        **({"tokens": tokens} if unit == "tokens" else {"tokens": None, unit: tokens}),
        **params.counts(model.specs, cfg.model.moe.experts_per_token),
        "flops": tokens * run_flops_per_token(cfg, model.specs),
        "train_loss": next((row["train/loss"] for row in reversed(rows) if "train/loss" in row), None),
        **dict.fromkeys(("eval_loss", "eval_bits_per_byte", "eval_tokens")),
        **{f"eval_{name}": value for name, value in scores.items()},
        "skipped_updates": next((int(row[SKIPPED]) for row in reversed(rows) if SKIPPED in row), 0),
        "duplicates": text.duplicates,
        **({"held_out_trained_on": both} if (both := text.duplicates["held_out_trained_on"]) else {}),
        "empty_batches": sum(EMPTY in row for row in rows),
        "left_out_batches": rollback.left_out(folder),
        f"{unit}_per_s": tokens_per_s,
        "wall_s": rows[-1]["time_s"] if rows else None,
        "mesh": dict(layout.sizes),
        "jax_version": jax.__version__,
        "sample": sampled,
    }
    folder.write_result(result)
    print(summary(folder))
    if sampled is not None:
        print(f"sample:\n{sampled}")


def check_sample(cfg: Config, model: Model, text: TextData) -> None:
    """Raise GenerationError before the run if the sample after it would not fit the model."""
    if cfg.log.sample_tokens:
        generation.check(model, [_prompt(cfg, text)], max_new_tokens=cfg.log.sample_tokens)


def sample(cfg: Config, model: Model, layout: Layout, weights: Any, text: TextData) -> str:
    """Return `log.sample_prompt` and what the model writes after it; a pure function of the weights and the seed."""
    prompt = _prompt(cfg, text)
    (written,) = generation.generate(
        model,
        weights,
        [prompt],
        max_new_tokens=cfg.log.sample_tokens,
        temperature=0.8,
        key=jax.random.key(cfg.train.seed),
        eos_id=text.tokenizer.eos_id,
        layout=layout,
    )
    return text.tokenizer.decode(prompt + written)


def _prompt(cfg: Config, text: TextData) -> list[int]:
    return writing.prompt_of(cfg, text.tokenizer.with_special(), cfg.log.sample_prompt or "\n")[0]


def summary(folder: RunFolder) -> str:
    """Return one line about a finished run."""
    with reading(folder.result):
        return _summary(json.loads(folder.result.read_text()))


def _summary(result: dict[str, Any]) -> str:
    unit = "rows" if result["tokens"] is None else "tokens"
    line = f"{result['steps']:,} steps, {result[unit]:,} {unit} in {result['wall_s']:.0f} s"
    if empty := result.get("empty_batches"):
        line = f"{line}, {empty:,} of the steps without anything to predict"
    if result["eval_loss"] is None:
        return line
    line = f"{line}; held out: loss {result['eval_loss']:.4f}{' nats per token' if unit == 'tokens' else ''}"
    said = {"bits_per_byte": "{:.4f} bits per byte", "accuracy": "accuracy {:.4f}"}
    measured = [text.format(result[f"eval_{name}"]) for name, text in said.items() if result.get(f"eval_{name}")]
    return ", ".join([line, *measured])
