"""Does every mesh compute what one device computes?

The config, shrunk (same code, small sizes), takes one step on each mesh; the batch, initial parameters, losses,
gradients and updated parameters are compared tensor by tensor, within bounds derived from float rounding. GELU stands
in for ReLU: the derivative of that jumps at 0, and a sum within rounding of 0 may be on either side. Without
--meshes: all ways to split 8 virtual CPU devices, or the devices at hand, over data, fsdp, tensor, for a mixture of
experts expert and for families that can split rows context, with each way in which the parts of a row attend to each
other; and, where the layers can be split into stages, 2, 4 and 8 of them with each of the other axes, for which the
model has as many layers as that takes. Before them one device takes the same batch in microbatches. Devices at hand are
those of the accelerator if there is one; with JAX_PLATFORMS=cpu they are virtual.

With --against one device is compared with transformers on PyTorch instead: logits, loss and gradients. --against=hf
takes the shrunk config with random weights, --against=hf:PATH the model and the weights of a Hugging Face folder as
they are, on 2 rows of at most 64 tokens; --config is then by default that folder. Dropout and what transformers' loss
does not have are left out.

Exit status: 0 all the same; 1 a bug; 2 bad input; 4 something differs, or a mesh's step cannot be traced, compiled or
run.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags

from bigjax.config import Config
from bigjax.errors import UserError
from bigjax.interop.hf import config as hf_config

from .. import cli, config_source

EXAMPLES = (
    "python -m experiments.check equivalence --config=llama:8b",
    "python -m experiments.check equivalence --config=gpt:d12 --meshes='data=8;fsdp=4,tensor=2'",
    "python -m experiments.check equivalence --config=mine.py --meshes=tensor=2,shard_sequence --out=eq.json",
    "python -m experiments.check equivalence --config=llama:8b --against=hf",
    "python -m experiments.check equivalence --against=hf:SmolLM2-135M",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of `check equivalence`."""
    flags.DEFINE_string("meshes", None, "meshes to check, separated by ';'", flag_values=flag_values)
    against = "compare with transformers on PyTorch instead: hf, or hf:PATH"
    flags.DEFINE_string("against", None, against, flag_values=flag_values)
    flags.DEFINE_string("out", None, "also write the report to this JSON file", flag_values=flag_values)


def run(flag_values: flags.FlagValues) -> int:
    """Check every mesh against one device, or one device against PyTorch."""
    source, against = cli.config_of(sys.argv), flag_values.against
    if against is not None and not against.startswith(hf_config.PREFIX) and against != "hf":
        raise UserError(f"--against={against} is neither hf nor hf:PATH")
    if against is not None and flag_values.meshes is not None:
        raise UserError("--against compares one device with PyTorch: check the --meshes by another command")
    given = flag_values.config
    if source is None and against is not None and hf_config.folder_of(against):
        source, given = against, config_source.load(against)
    cfg, out = cli.load_config(given), cli.out_path(flag_values)
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # read when JAX is imported; devices of other kinds ignore it
    from bigjax.run import runtime

    runtime.configure_jax()
    from bigjax.preflight.equivalence import compare as eq

    checks, references = [], []
    for expected, check in _against_meshes(cfg, flag_values.meshes) if against is None else _against_hf(cfg, against):
        if expected not in references:
            references.append(expected)
            print(_header(expected), flush=True)
        if check is not None:
            checks.append(check)
            print("\n".join(lines(check)), flush=True)
    if all(check.status == "does not fit" for check in checks):
        raise UserError("no mesh of these devices fits the shrunk config: the reasons are above")
    report = eq.Report(source or "", tuple(checks), tuple(references))
    print(_verdict(report, "one device" if against is None else "PyTorch"))
    cli.write_out(out, report.as_json())
    return report.exit_code


def _against_meshes(cfg: Config, meshes: str | None) -> Iterator[tuple[Any, Any]]:
    """Yield what one device computes and None, then the same and the check of each mesh."""
    import jax

    from bigjax.preflight.equivalence import compare as eq
    from bigjax.preflight.equivalence.meshes import all_meshes, devices, mesh_name, parse

    asked = [parse(text) for text in (meshes or "").split(";") if text.strip()]
    axes, sparse = cfg.model.named_family.mesh_axes, cfg.model.moe.num_experts > 0
    stages = "stage" in axes and cfg.model.layers == "scan"
    chosen = asked or list(all_meshes(len(jax.devices()), sparse, "context" in axes, stages))
    for mesh in chosen:
        devices(mesh)  # too few devices is found before anything compiles
    for small in eq.small(eq.smooth(cfg)):
        unfit, staged = set(), [mesh for mesh in chosen if mesh.stage > 1]
        deep = eq.for_stages(small, staged) if staged else small
        for own, group in ((small, [mesh for mesh in chosen if mesh.stage == 1]), (deep, staged)):
            if not group:
                continue
            expected = eq.reference(own)
            yield expected, None
            if not asked and own is small:
                yield expected, eq.in_microbatches(expected)
            for mesh in group:
                check = eq.compare(expected, mesh)
                if check.status == "does not fit":
                    if asked:
                        raise UserError(f"--meshes: {check.mesh} does not fit the shrunk config: {check.reason}")
                    unfit.add(check.mesh)
                yield expected, check
        # What does not fit is said once, not again for the next dtype.
        chosen = [mesh for mesh in chosen if mesh_name(mesh) not in unfit]


def _against_hf(cfg: Config, against: str) -> Iterator[tuple[Any, Any]]:
    """Yield what one device computes and None, then the same and its check against transformers."""
    from bigjax.preflight.equivalence import against_hf
    from bigjax.preflight.equivalence import compare as equivalence

    against_hf.require()
    folder = hf_config.folder_of(against)
    if folder is None:
        # What is covered is said of the config itself, not of what shrinking makes of it.
        exact, weights = equivalence.small(against_hf.comparable(cfg))[0], None
    else:
        exact, weights = against_hf.of_folder(folder, against_hf.comparable(cfg))
        exact = against_hf.comparable(exact)
    expected = equivalence.reference(exact, weights)
    yield expected, None
    yield expected, against_hf.compare(expected, folder)


def _header(expected: Any) -> str:
    from bigjax.preflight.equivalence.bounds import precision

    cfg, limits = expected.cfg, expected.bounds
    stored = f" and {limits.stored:,} stored results" if limits.stored else ""
    stored += f" and {limits.quantised:,} operands of products" if limits.quantised else ""
    return (
        f"{precision(cfg)}: {cfg.model.num_layers} layers, d_model {cfg.model.d_model}, "
        f"{cfg.train.global_batch_size} rows of {cfg.data.seq_len}; bound {limits.relative:.1e} of a tensor's terms "
        f"(rounding of {limits.terms:,} terms{stored})"
    )


def lines(check: Any) -> list[str]:
    """Return what is said of one check."""
    if check.status in ("does not fit", "fails"):
        what = "does not fit" if check.status == "does not fit" else "FAILS"
        return [f"  {check.mesh:<38} {what}: {check.reason.splitlines()[0]}"]
    if check.status == "same":
        worst = f"largest error/bound {check.largest_ratio:.3f}, {check.largest_at}"
        return [f"  {check.mesh:<38} same    {worst} ({check.seconds:.0f} s)"]
    first, *others = check.differences
    said = [f"  {check.mesh:<38} DIFFERS first in {first}"]
    said += [f"{'':<41}then {other}" for other in others]
    wrong = [one.tensor for one in check.differences if one.quantity == "gradient"]
    if first.quantity == "gradient":
        said.append(f"{'':<41}the losses agree; going backward, {wrong[-1]} is the first gradient that does not")
    return said


def _verdict(report: Any, other: str) -> str:
    count = dict.fromkeys(("same", "differs", "fails", "does not fit"), 0)
    for check in report.checks:
        count[check.status] += 1
    said = ", ".join(f"{number} {status}" for status, number in count.items() if number)
    bad = next((check for check in report.checks if check.status in ("differs", "fails")), None)
    if bad is None:
        return f"SAME as {other}: {said}"
    what = bad.differences[0] if bad.differences else bad.reason
    where = f"first on {bad.mesh} in {bad.dtype}: " if other != bad.mesh else ""
    return f"NOT THE SAME as {other}: {said}; {where}{what}"
