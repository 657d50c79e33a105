"""Score a trained run: loss in nats per token, perplexity and bits per byte, with its newest checkpoint.

Without --sources the run's own held-out text is scored. Overrides change the recorded config, as in
--config.mesh.fsdp=4. With --mc_dropout=K the model predicts the mean of K passes with dropout on.
"""

import json

from absl import flags

from experiments import cli

EXAMPLES = (
    "python -m experiments.evaluate --workdir=runs/quickstart",
    "python -m experiments.evaluate --workdir=runs/quickstart --split=train --batches=10",
    "python -m experiments.evaluate --workdir=runs/quickstart --sources='text:other/*.txt'",
    "python -m experiments.evaluate --workdir=runs/rnn --mc_dropout=20",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("workdir", None, "the run folder, or hf:PATH of a Hugging Face folder", flag_values=flag_values)
    flags.DEFINE_enum("split", "eval", ("eval", "train"), "the split of the run's text", flag_values=flag_values)
    flags.DEFINE_list("sources", None, "sources to score instead of the run's text", flag_values=flag_values)
    flags.DEFINE_integer("batches", 0, "batches to score, 0 for all", 0, flag_values=flag_values)
    flags.DEFINE_integer("mc_dropout", 0, "passes with dropout to average, or 0", 0, flag_values=flag_values)
    cli.define_distributed_flags(flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Print the scores as one JSON object."""
    cfg = cli.load_config(flag_values.config)
    from bigjax import runtime

    runtime.configure_jax()
    cli.initialize_distributed(flag_values)
    import jax

    from bigjax import data, sharding, step
    from bigjax.evaluate import mc_dropout
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
        if draws := flag_values.mc_dropout:
            eval_step = mc_dropout.make_eval_step(cfg, run.model, draws, run.layout)
            carried = jax.jit(lambda: mc_dropout.fresh_draws(cfg, run.model, draws, run.layout))()
        else:
            eval_step = step.make_eval_step(cfg, run.model, run.layout)
            carried = jax.jit(lambda: step.fresh(cfg, run.model, run.layout))()
        batches = texts.batches(flag_values.batches)
        scores = score(jax.jit(eval_step), run.weights, batches, cfg.train.global_batch_size, carried)
    if jax.process_index() == 0:
        print(json.dumps({"step": run.step, "sources": [source.spec for source in texts.sources], **scores}))


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, config_of_run=True)
