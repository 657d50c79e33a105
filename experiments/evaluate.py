"""Score a trained run with its newest checkpoint: loss in nats per token, perplexity and bits per byte, or what else
its objective measures; for classification also precision, recall and F1 of every class and the confusion matrix.

Without --sources the run's own held-out text is scored. Overrides change the recorded config, as in
--config.mesh.fsdp=4.
"""

import json
import sys
from typing import Any

from absl import flags

from experiments import cli

EXAMPLES = (
    "python -m experiments.evaluate --workdir=runs/quickstart",
    "python -m experiments.evaluate --workdir=runs/quickstart --split=train --batches=10",
    "python -m experiments.evaluate --workdir=runs/quickstart --sources='text:other/*.txt'",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("workdir", None, "the run folder, or hf:PATH of a Hugging Face folder", flag_values=flag_values)
    flags.DEFINE_enum("split", "eval", ("eval", "train"), "the split of the run's text", flag_values=flag_values)
    flags.DEFINE_list("sources", None, "sources to score instead of the run's text", flag_values=flag_values)
    flags.DEFINE_integer("batches", 0, "batches to score, 0 for all", 0, flag_values=flag_values)
    cli.define_distributed_flags(flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Print the scores as one JSON object."""
    cfg = cli.load_config(flag_values.config)
    from bigjax import runtime

    runtime.configure_jax()
    cli.initialize_distributed(flag_values)
    import jax

    from bigjax import data, sharding, step
    from bigjax.evaluate.scoring import score
    from experiments import trained

    run = trained.load(flag_values.workdir, cfg)
    rows = sharding.local_rows(run.mesh, cfg.train.global_batch_size)
    tokenizer = data.load_tokenizer(run.folder.path)
    if flag_values.sources:
        texts = data.open_documents(cfg, tuple(flag_values.sources), rows, tokenizer)
    else:
        texts = data.build(cfg, rows, tokenizer).score_set(flag_values.split)
    with jax.set_mesh(run.mesh):
        eval_step = jax.jit(step.make_eval_step(cfg, run.model, run.layout))
        scores: dict[str, Any] = {}
        scores |= score(eval_step, run.weights, texts.batches(flag_values.batches), cfg.train.global_batch_size)
        if cfg.train.objective == "classification":
            scores["classification"] = _classes(run, texts, flag_values.batches)
    if jax.process_index() == 0:
        print(json.dumps({"step": run.step, "sources": [source.spec for source in texts.sources], **scores}))


def _classes(run: Any, texts: Any, limit: int) -> dict[str, Any]:
    """Print a table of how well classes are told apart; return the same."""
    import jax

    from bigjax.evaluate import classification

    batch_size = run.cfg.train.global_batch_size
    probabilities = jax.jit(classification.make_class_probabilities(run.model, run.layout))
    measured = classification.report(
        *classification.predict(probabilities, run.weights, texts.batches(limit), batch_size), texts.sources[0].classes
    )
    if jax.process_index() == 0:
        print(classification.table(measured), file=sys.stderr)
    return measured


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, config_of_run=True)
