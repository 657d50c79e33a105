"""Write text with a trained run, from the weights of its newest checkpoint (the averaged ones if the run keeps them).

Prints each sample as the prompt followed by what the model writes after it, or what an encoder-decoder makes of it, to
the end of its text, to --stop, or for --max_new_tokens. The same seed gives the same text. With --beams the likeliest
text is searched for, and nothing is drawn. Overrides change the recorded config, as in --config.mesh.tensor=2.
"""

from typing import Any

from absl import flags

from bigjax.errors import UserError

from . import cli
from .processes import distributed

EXAMPLES = (
    "python -m experiments.generate --workdir=runs/quickstart --prompt='ROMEO:'",
    "python -m experiments.generate --workdir=runs/d12 --prompt='The' --temperature=0 --max_new_tokens=50",
    "python -m experiments.generate --workdir=runs/d12 --prompt='The' --top_k=50 --top_p=0.95 --num_samples=4 --seed=1",
    "python -m experiments.generate --workdir=runs/translation --prompt='Good morning.' --beams=4 --length_penalty=0.6",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("workdir", None, "the run folder, or hf:PATH of a Hugging Face folder", flag_values=flag_values)
    flags.DEFINE_string("prompt", None, "the text to continue", flag_values=flag_values)
    flags.DEFINE_integer("max_new_tokens", 200, "the most tokens to write", flag_values=flag_values)
    flags.DEFINE_float("temperature", 0.8, "divides the logits; 0 takes the likeliest token", flag_values=flag_values)
    flags.DEFINE_integer("top_k", None, "choose among the k likeliest tokens only", flag_values=flag_values)
    flags.DEFINE_float("top_p", None, "choose among the likeliest tokens that sum to p only", flag_values=flag_values)
    flags.DEFINE_float("min_p", None, "choose among tokens with this share of the likeliest's", flag_values=flag_values)
    flags.DEFINE_multi_string("stop", [], "end before this text; may be repeated", flag_values=flag_values)
    flags.DEFINE_integer("beams", 0, "search for the likeliest text with so many hypotheses", flag_values=flag_values)
    flags.DEFINE_float("length_penalty", 0.0, "of --beams: above 0 favours longer texts", flag_values=flag_values)
    flags.DEFINE_integer("num_samples", 1, "texts to write", flag_values=flag_values)
    flags.DEFINE_integer("seed", 0, "draws the tokens", 0, 2**32 - 1, flag_values=flag_values)
    distributed.define_flags(flag_values)


def main(flag_values: flags.FlagValues) -> int:
    """Print the samples, with a line of dashes between two."""
    cfg = cli.load_config(flag_values.config)
    prompt = cli.required(flag_values, "prompt")
    if not prompt:
        raise UserError("--prompt is empty: give at least one character to continue")
    if flag_values.num_samples < 1:
        raise UserError(f"--num_samples={flag_values.num_samples} must be at least 1")
    if (status := distributed.supervise(flag_values)) is not None:
        return status
    from bigjax.run import runtime

    runtime.configure_jax()
    distributed.initialize(flag_values)
    import jax

    from bigjax import data, models
    from bigjax.evaluate import beam_search, generation, writing
    from bigjax.interop.hf import config as hf_config
    from bigjax.interop.hf import origin as hf_origin

    from . import trained

    tokenizer = data.load_tokenizer(trained.folder_of(flag_values.workdir))
    asking = tokenizer.with_special()  # of which a chat is made up
    settings = _settings(flag_values, asking)
    foreign = hf_config.end_ids(folder) if (folder := hf_origin.origin_of(flag_values.workdir)) else []
    ids, ends = writing.prompt_of(cfg, asking, prompt)
    prompts, model = [ids] * flag_values.num_samples, models.build(cfg.model)
    # Loading takes long: what can be wrong with the flags is found out first.
    if flag_values.beams:
        generation.check(model, prompts, max_new_tokens=flag_values.max_new_tokens)
        beam_search.check_beams(model, flag_values.beams, flag_values.length_penalty)
    else:
        generation.check(model, prompts, **settings)
    run = trained.load(flag_values.workdir, cfg)
    end = ends.end if ends else tokenizer.eos_id
    common = {"eos_id": [*foreign, *([] if end is None else [end])], "layout": run.layout}
    common |= {"start_id": ends.start} if ends else {}
    with jax.set_mesh(run.mesh):
        if flag_values.beams:
            texts = beam_search.beam_search(run.model, run.weights, prompts, **settings, **common)
        else:
            key = jax.random.key(flag_values.seed)
            texts = generation.generate(run.model, run.weights, prompts, key=key, **settings, **common)
    if jax.process_index() == 0:
        before = "" if ends else prompt
        print("\n--------\n".join(before + writing.until(tokenizer.decode(ids), flag_values.stop) for ids in texts))
    return 0


def _settings(flag_values: flags.FlagValues, tokenizer: Any) -> dict[str, Any]:
    """Return how to write, by the names that `generate` or `beam_search` has for it.

    Raises:
        UserError: a flag is of no use with --beams, or the other way round.
    """
    drawn = {name: flag_values[name].value for name in ("temperature", "top_k", "top_p", "min_p")}
    given = [name for name in (*drawn, "seed", "stop", "num_samples") if flag_values[name].present]
    if flag_values.beams and given:
        raise UserError(f"--{given[0]} has no use with --beams, which finds one text, the likeliest, to its end")
    if not flag_values.beams and flag_values.length_penalty:
        raise UserError("--length_penalty needs --beams")
    length = {"max_new_tokens": flag_values.max_new_tokens}
    if flag_values.beams:
        return length | {"beams": flag_values.beams, "length_penalty": flag_values.length_penalty}
    return length | drawn | {"stop": [tokenizer.encode(text).tolist() for text in flag_values.stop]}


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, config_of_run=True)
