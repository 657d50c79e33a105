"""Score a trained run with its newest checkpoint: loss in nats per token, perplexity and bits per byte, or what else
its objective measures; for classification, of texts or of words, also precision, recall and F1 of every class and the
confusion matrix; for words whose tags are BIO the same of entities; for question answering exact match and F1 as SQuAD
measures them. Where some questions have no answer, a question is left without one if that scores higher than the best
answer by more than --no_answer_threshold, and the thresholds that would have been best are reported.

--tasks measures what it names. exact_match, f1 (of words), bleu and chrf compare an encoder-decoder's answers with
those of the data. multiple_choice:FILE.jsonl has lines of question, choices and answer (its place from 0, or its text),
and counts how often the right choice is the likeliest after the question and a space: acc, acc_norm and acc_bytes, by
log probability as it is, per character and per byte. rolling:SOURCE gives perplexity per word and byte of whole texts.
The last two have data of their own, and alone leave out the run's. Both follow lm-evaluation-harness.

Without --sources the run's own held-out text is scored. Overrides change the recorded config, as in
--config.mesh.fsdp=4. With --mc_dropout=K the model predicts the mean of K passes with dropout on.
"""

import sys
from typing import Any

from absl import flags

from bigjax.errors import UserError
from bigjax.run.json_files import dumps

from . import cli
from .processes import distributed

EXAMPLES = (
    "python -m experiments.evaluate --workdir=runs/quickstart",
    "python -m experiments.evaluate --workdir=runs/quickstart --split=train --batches=10",
    "python -m experiments.evaluate --workdir=runs/quickstart --sources='text:other/*.txt'",
    "python -m experiments.evaluate --workdir=runs/rnn --mc_dropout=20",
    "python -m experiments.evaluate --workdir=runs/translation --tasks=bleu,chrf --beams=4 --length_penalty=0.6",
    "python -m experiments.evaluate --workdir=runs/quickstart --tasks=multiple_choice:quiz.jsonl,rolling:text:new.txt",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("workdir", None, "the run folder, or hf:PATH of a Hugging Face folder", flag_values=flag_values)
    flags.DEFINE_enum("split", "eval", ("eval", "train"), "the split of the run's text", flag_values=flag_values)
    flags.DEFINE_list("sources", None, "sources to score instead of the run's text", flag_values=flag_values)
    flags.DEFINE_integer("batches", 0, "batches to score, 0 for all", 0, flag_values=flag_values)
    flags.DEFINE_integer("mc_dropout", 0, "passes with dropout to average, or 0", 0, flag_values=flag_values)
    said = "by how much no answer to a question must score higher than one"
    flags.DEFINE_float("no_answer_threshold", None, said, flag_values=flag_values)
    tasks = "bleu, chrf, exact_match, f1, multiple_choice:FILE.jsonl, rolling:SOURCE"
    flags.DEFINE_list("tasks", [], f"what to measure: {tasks}", flag_values=flag_values)
    flags.DEFINE_integer("beams", 1, "hypotheses of the search for an answer", 1, flag_values=flag_values)
    flags.DEFINE_float("length_penalty", 0.0, "of --beams: above 0 favours longer answers", flag_values=flag_values)
    distributed.define_flags(flag_values)


def main(flag_values: flags.FlagValues) -> int:
    """Print the scores as one JSON object."""
    cfg = cli.load_config(flag_values.config)
    if (status := distributed.supervise(flag_values)) is not None:
        return status
    from bigjax.run import runtime

    runtime.configure_jax()
    distributed.initialize(flag_values)
    import jax

    from bigjax.evaluate import beam_search, likelihood, reports, tasks
    from bigjax.models import build
    from bigjax.tasks import named_task

    from . import trained

    asked = tasks.parse(cfg, flag_values.tasks)
    reports.check_options(cfg, no_answer_threshold=flag_values.no_answer_threshold)
    _check_use(flag_values, asked)
    if asked.scores:
        beam_search.check_beams(build(cfg.model), flag_values.beams, flag_values.length_penalty)
    run = trained.load(flag_values.workdir, cfg)
    tokenizer = named_task(cfg).load_processor(run.folder.path)
    scores: dict[str, Any] = {"step": run.step}
    if not asked.bring_data:
        scores |= _on_text(run, tokenizer, flag_values)
    with jax.set_mesh(run.mesh):
        if asked.scores:
            scores |= _answers(run, tokenizer, flag_values, asked.scores)
        if asked.questions or asked.texts:
            scorer = likelihood.Scorer(cfg, run.model, run.weights, tokenizer, run.layout)
            scores |= tasks.measure(asked, scorer)
    if jax.process_index() == 0:
        print(dumps(scores))
    return 0


def _check_use(flag_values: flags.FlagValues, asked: Any) -> None:
    """Raise UserError for a flag that would change nothing."""
    if flag_values.sources == []:
        raise UserError("--sources is empty: name a source, or leave the flag out")
    of_text = ("split", "sources", "batches", "mc_dropout", "no_answer_threshold")
    useless = {
        "without --tasks that write answers": () if asked.scores else ("beams", "length_penalty"),
        "with --tasks that bring data of their own": of_text if asked.bring_data else (),
        "with --sources, which are scored whole": ("split",) if flag_values.sources else (),
    }
    for why, names in useless.items():
        for name in names:
            if flag_values[name].present:
                raise UserError(f"--{name} has no use {why}")


def _on_text(run: Any, tokenizer: Any, flag_values: flags.FlagValues) -> dict[str, Any]:
    """Return what the objective measures on the run's text or on --sources."""
    import jax

    from bigjax import data, sharding
    from bigjax.evaluate import mc_dropout, reports
    from bigjax.evaluate.scoring import score
    from bigjax.train import step

    cfg = run.cfg
    rows = sharding.local_rows(run.mesh, cfg.train.global_batch_size)
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
        scores: dict[str, Any] = {"sources": [source.spec for source in texts.sources]}
        scores |= score(jax.jit(eval_step), run.weights, batches, cfg.train.global_batch_size, carried)
        options = {"no_answer_threshold": flag_values.no_answer_threshold}
        measured, said = reports.measure(cfg, run.model, run.weights, texts, run.layout, flag_values.batches, **options)
        if said and jax.process_index() == 0:
            print(said, file=sys.stderr)
    return scores | measured


def _answers(run: Any, tokenizer: Any, flag_values: flags.FlagValues, names: tuple[str, ...]) -> dict[str, float]:
    """Print some answers; return how all of them compare with the data."""
    from itertools import islice

    import jax

    from bigjax.data import text_data
    from bigjax.data.sources import opening as sources
    from bigjax.evaluate import writing

    cfg, data = run.cfg, run.cfg.data
    if flag_values.sources:
        sides = [sources.SplitSource(sources.open_source(s, data.text_key), "eval", "all") for s in flag_values.sources]
    else:
        training, held_out = text_data.sides_of(cfg)
        sides = held_out if flag_values.split == "eval" else training
    limit = flag_values.batches * cfg.train.global_batch_size or None
    asked = list(islice(writing.pairs(cfg, sides), limit))
    if not asked:
        raise UserError("there is no text to answer: set data.holdout above 0, or name --sources")
    texts, wanted = map(list, zip(*asked, strict=True))
    how = {"beams": flag_values.beams, "length_penalty": flag_values.length_penalty, "layout": run.layout}
    written = writing.answer(cfg, run.model, run.weights, text_data.for_text(cfg, tokenizer), texts, **how)
    if jax.process_index() == 0:
        print(writing.peek(written, texts, wanted), file=sys.stderr)
    return writing.score(written, wanted, names)


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, config_of_run=True)
