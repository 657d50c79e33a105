"""Use a trained run: answer records that have no labels, with its newest checkpoint.

What an answer is depends on what was trained: the class of a text, with the probability of each; the tag of each word,
and where tags are BIO the entities; the answer to a question, with where it stands, its probability, and by how much
no answer scores higher (no_answer); the value of a regression's target; what an encoder-decoder writes, with --beams as
evaluate does; the likeliest fillings of each [MASK]; the log probability of a text in nats. `prediction` is the first
of it.

--inputs is a CSV, TSV, JSONL or Parquet file by its suffix, plain lines (.txt), or - for JSON lines on standard input;
--format says otherwise. The columns are those of the run's config (data.text_key etc.); all others are carried along.
--out is JSONL, CSV, TSV or Parquet by its suffix, or - for JSON lines on standard output. Records stay in their order,
and are read, answered and written a few at a time. One that is empty has an empty answer. A text longer than
data.seq_len is cut off by classification and encoder-decoders, as in training, which is said; all else reads it in
pieces. A text for tags is a list of words, or is cut at spaces and the signs beside them.

Overrides change the recorded config, as in --config.mesh.fsdp=4 or --config.data.text_key=review.
"""

import os
import sys

from absl import flags

from bigjax.data.inputs import KINDS
from bigjax.errors import UserError

from . import cli
from .processes import distributed

EXAMPLES = (
    "python -m experiments.predict --workdir=runs/classifier --inputs=new.csv --out=answers.csv",
    "python -m experiments.predict --workdir=hf:bert-ner --inputs=sentences.txt --out=tags.jsonl",
    "python -m experiments.predict --workdir=runs/translation --inputs=new.parquet --out=new-de.parquet --beams=4",
    "echo 'A fine film.' | python -m experiments.predict --workdir=runs/classifier --inputs=- --format=txt",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("workdir", None, "the run folder, or hf:PATH of a Hugging Face folder", flag_values=flag_values)
    flags.DEFINE_string("inputs", None, "the file of records, or -", flag_values=flag_values)
    flags.DEFINE_enum("format", None, KINDS, "what --inputs is, where its suffix does not say", flag_values=flag_values)
    flags.DEFINE_string("out", "-", "the file to write", flag_values=flag_values)
    flags.DEFINE_integer("beams", 1, "hypotheses of the search for what is written", 1, flag_values=flag_values)
    flags.DEFINE_float("length_penalty", 0.0, "of --beams: above 0 favours longer texts", flag_values=flag_values)
    distributed.define_flags(flag_values)


def main(flag_values: flags.FlagValues) -> int:
    """Write every record with its answer."""
    cfg = cli.load_config(flag_values.config)
    source = cli.required(flag_values, "inputs")
    if (status := distributed.supervise(flag_values)) is not None:
        return status
    from bigjax.run import runtime

    runtime.configure_jax()
    distributed.initialize(flag_values)
    import jax

    from bigjax.data.inputs import STANDARD, open_inputs
    from bigjax.evaluate import beam_search, prediction, tables
    from bigjax.models import build
    from bigjax.tasks import named_task

    from . import trained

    # Loading takes long: what can be wrong with the flags and the first record is found out first.
    options = {"beams": flag_values.beams, "length_penalty": flag_values.length_penalty}
    prediction.check_options(cfg, **{name: flag_values[name].present for name in options})
    if flag_values.beams > 1 or flag_values.length_penalty:
        beam_search.check_beams(build(cfg.model), **options)
    processor = named_task(cfg).load_processor(trained.folder_of(flag_values.workdir))
    inputs = open_inputs(source, flag_values.format, prediction.columns(cfg, processor))
    if source == STANDARD and jax.process_count() > 1:
        raise UserError("--inputs=- is there for one process alone: give a file that all can read")
    tables.check_out(flag_values.out, inputs.path)
    if flag_values.out != tables.STANDARD:
        cli.out_path(flag_values)
    schema, records = inputs.schema(), inputs.read()
    run = trained.load(flag_values.workdir, cfg)
    predictor = prediction.Predictor(run.cfg, run.model, run.weights, processor, run.layout, **options)
    answered = predictor.answer(records)
    with jax.set_mesh(run.mesh):
        if jax.process_index():
            for _ in answered:  # what all processes compute together, the first writes
                pass
            return 0
        try:
            with tables.writing(flag_values.out, prediction.example(run.cfg), schema) as write:
                for some in answered:
                    write(some)
        except BrokenPipeError:  # whoever reads it, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for note in predictor.notes():
        print(f"note: {note}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, config_of_run=True)
