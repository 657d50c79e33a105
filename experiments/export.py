"""Write the weights of a trained run as a folder that another library reads, and check what that library makes of it.

--format=hf writes config.json, safetensors files (several with an index above --max_shard_gb), the run's tokenizer and
generation_config.json, for from_pretrained of transformers' class for such a model and of AutoTokenizer. Where the run
started from a Hugging Face folder, its settings, special tokens and chat template are carried along.
Weights are those of the newest checkpoint, the averaged ones if the run keeps them, in float32 or in --dtype. Where
PyTorch is installed the folder is loaded with transformers and its logits are compared with ours; bigjax_export.json in
the folder says what came out, or that there was no PyTorch.

Exit status: 0 exported; 1 a bug; 2 bad input, such as a model that no covered architecture holds; 4 transformers
computes something else from the folder.
"""

from absl import flags

from bigjax.data.tokens.beside import PATTERNS
from bigjax.errors import UserError
from bigjax.paths import RemotePath, as_path, fetched_folder, on_disk

from . import cli

EXAMPLES = (
    "python -m experiments.export --workdir=runs/d12 --format=hf --out=exported/d12",
    "python -m experiments.export --workdir=runs/d12 --format=hf --out=exported/d12-bf16 --dtype=bfloat16",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("workdir", None, "the run folder, or hf:PATH of a Hugging Face folder", flag_values=flag_values)
    flags.DEFINE_enum("format", "hf", ("hf",), "whose format: hf is Hugging Face's", flag_values=flag_values)
    flags.DEFINE_string("out", None, "the folder to write, new or empty", flag_values=flag_values)
    flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16", "float16"), "of tensors", flag_values=flag_values)
    flags.DEFINE_float("max_shard_gb", 5.0, "the largest file in 1e9 bytes", flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Export, and say what was found."""
    cfg = cli.load_config(flag_values.config)
    out = as_path(cli.required(flag_values, "out"))
    if isinstance(out, RemotePath) and out.exists():
        raise UserError(f"--out={out} is not empty: choose another folder")
    if flag_values.max_shard_gb <= 0:
        raise UserError(f"--max_shard_gb={flag_values.max_shard_gb} must be above 0")
    from bigjax.run import runtime

    runtime.configure_jax()
    from bigjax.interop import hf
    from bigjax.interop.hf import origin as hf_origin

    from . import trained

    origin = hf_origin.origin_of(flag_values.workdir)
    with on_disk(out) as place:
        hf.check_exportable(cfg.model, place, origin)
        run = trained.load(flag_values.workdir, cfg)
        report = hf.export_checkpoint(
            run.weights,
            cfg.model,
            place,
            dtype=flag_values.dtype,
            tokenizer_from=fetched_folder(run.folder.path, *PATTERNS),
            started_from=origin,
            classes=run.cfg.data.classes,
            max_shard_bytes=int(flag_values.max_shard_gb * 1e9),
        )
    print(
        f"{report['architecture']}, {report['parameters']:,} parameters, {report['dtype']}, of step {run.step}: {out}"
    )
    if report["verified"]:
        difference, tolerance = report["max_difference"], report["tolerance"]
        print(
            f"verified: transformers' {report['compared']} differ by {difference:.2g} at most (allowed {tolerance:.2g})"
        )
    else:
        print(f"not verified: {report['reason']}")


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, config_of_run=True)
