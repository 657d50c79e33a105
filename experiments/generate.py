"""Write text with a trained run, from the weights of its newest checkpoint (the averaged ones if the run keeps them).

Prints each sample as the prompt followed by what the model writes after it, to the end of its text or for
--max_new_tokens. The same seed gives the same text. Overrides change the recorded config, as in --config.mesh.tensor=2.
"""

from absl import flags

from bigjax.errors import UserError
from experiments import cli, distributed

EXAMPLES = (
    "python -m experiments.generate --workdir=runs/quickstart --prompt='ROMEO:'",
    "python -m experiments.generate --workdir=runs/d12 --prompt='The' --temperature=0 --max_new_tokens=50",
    "python -m experiments.generate --workdir=runs/d12 --prompt='The' --top_k=50 --top_p=0.95 --num_samples=4 --seed=1",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("workdir", None, "the run folder, or hf:PATH of a Hugging Face folder", flag_values=flag_values)
    flags.DEFINE_string("prompt", None, "the text to continue", flag_values=flag_values)
    flags.DEFINE_integer("max_new_tokens", 200, "the most tokens to write", flag_values=flag_values)
    flags.DEFINE_float("temperature", 0.8, "divides the logits; 0 takes the likeliest token", flag_values=flag_values)
    flags.DEFINE_integer("top_k", None, "choose among the k likeliest tokens only", flag_values=flag_values)
    flags.DEFINE_float("top_p", None, "choose among the likeliest tokens that sum to p only", flag_values=flag_values)
    flags.DEFINE_integer("num_samples", 1, "texts to write", flag_values=flag_values)
    flags.DEFINE_integer("seed", 0, "draws the tokens", flag_values=flag_values)
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
    from bigjax import runtime

    runtime.configure_jax()
    distributed.initialize(flag_values)
    import jax

    from bigjax import data, models
    from bigjax.evaluate import generation
    from experiments import trained

    settings = {
        "max_new_tokens": flag_values.max_new_tokens,
        "temperature": flag_values.temperature,
        "top_k": flag_values.top_k,
        "top_p": flag_values.top_p,
    }
    tokenizer = data.load_tokenizer(trained.folder_of(flag_values.workdir))
    prompts = [tokenizer.encode(prompt).tolist()] * flag_values.num_samples
    # Loading takes long: what can be wrong with the flags is found out first.
    generation.check(models.build(cfg.model), prompts, **settings)
    run = trained.load(flag_values.workdir, cfg)
    with jax.set_mesh(run.mesh):
        texts = generation.generate(
            run.model,
            run.weights,
            prompts,
            key=jax.random.key(flag_values.seed),
            eos_id=tokenizer.eos_id,
            layout=run.layout,
            **settings,
        )
    if jax.process_index() == 0:
        print("\n--------\n".join(prompt + tokenizer.decode(written) for written in texts))
    return 0


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, config_of_run=True)
