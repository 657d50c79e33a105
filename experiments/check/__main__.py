"""Prove, before it costs anything, what a run relies on. The first argument names the check:

  equivalence --config=FILE[:ARG]   every mesh computes the losses, gradients and update of one device, and one
                                    device (--against=hf) those of transformers on PyTorch
  resume --config=FILE[:ARG]        killed and resumed, also elsewhere, a run goes on as if nothing had been
  mup --config=FILE[:ARG]           activations, and what training changes in them, do not depend on the width
  checkpoint --workdir=RUN          what is saved is what was written
  data --workdir=RUN                what is trained on is what it was, to the last byte
  replay --workdir=RUN --event=E    a step that diverged does so again, bit for bit

`python -m experiments.check NAME --help` lists a check's flags. Exit status: 0 all is well; 1 a bug; 2 bad input;
4 something differs or is damaged.
"""

import difflib
import sys
from collections.abc import Sequence

from absl import flags

from bigjax.errors import UserError
from bigjax.paths import as_path
from bigjax.run.folder import RunFolder

from .. import cli, help_text
from ..processes import distributed
from . import data as check_data
from . import equivalence as check_equivalence
from . import mup as check_mup
from . import resume as check_resume

CHECKPOINT = """Are the checkpoints of a run what was written? Every file is read and compared with its digest.

Exit status: 0 all are sound; 1 a bug; 2 there is nothing to check; 4 damage found."""

REPLAY = """Does a step that diverged do so again? The steps from the nearest earlier checkpoint, or from the start if
none is left, up to that of the event (a folder in RUN/forensics) are taken again, with the same batches; loss, gradient
norms and parameter norms are compared with what was recorded. Use as many devices and processes as the run did. Nothing
is written.

Exit status: 0 the same, bit for bit; 1 a bug; 2 bad input; 4 something differs."""

EXAMPLES = {
    "equivalence": check_equivalence.EXAMPLES,
    "resume": check_resume.EXAMPLES,
    "mup": check_mup.EXAMPLES,
    "checkpoint": ("python -m experiments.check checkpoint --workdir=runs/quickstart",),
    "data": check_data.EXAMPLES,
    "replay": ("python -m experiments.check replay --workdir=runs/quickstart --event=step-12",),
}


def define_checkpoint_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of `check checkpoint`."""
    flags.DEFINE_string("workdir", None, "the run folder", flag_values=flag_values)


def checkpoint(flag_values: flags.FlagValues) -> int:
    """Print one line for every checkpoint of a run, the newest first."""
    from bigjax.checkpoint.digests import verify

    folder = RunFolder.existing(cli.required(flag_values, "workdir"))
    reports = verify(folder.checkpoints)
    if not reports:
        raise UserError(f"{folder.path} holds no checkpoint")
    for one in reports:
        print(one)
    return 4 if any(one.problems for one in reports) else 0


def define_replay_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of `check replay`."""
    flags.DEFINE_string("workdir", None, "the run folder", flag_values=flag_values)
    flags.DEFINE_string("event", None, "the name of a folder in RUN/forensics", flag_values=flag_values)
    distributed.define_flags(flag_values)


def replay(flag_values: flags.FlagValues) -> int:
    """Take the step of an event again and print what it gives."""
    workdir, event = as_path(cli.required(flag_values, "workdir")), cli.required(flag_values, "event")
    if (status := distributed.supervise(flag_values)) is not None:
        return status
    from bigjax.run import runtime

    runtime.configure_jax()
    distributed.initialize(flag_values)
    import jax

    from . import replay as again

    found = again.replay(workdir, event)
    if jax.process_index() == 0:
        step, loss, norm = found.recorded["step"], found.observed["loss"], found.observed["grad_norm"]
        start = f"the checkpoint of step {found.start}" if found.start else "the initial state"
        print(f"step {step}, from {start}: loss {loss!r}, gradient norm {norm!r}")
        for line in found.differences:
            print(f"  {line}")
        print("NOT THE SAME as recorded" if found.differences else "the same as recorded, bit for bit")
    return 4 if found.differences else 0


CHECKS = {
    "equivalence": (check_equivalence.run, check_equivalence.define_flags, check_equivalence.__doc__, True),
    "resume": (check_resume.run, check_resume.define_flags, check_resume.__doc__, True),
    "mup": (check_mup.run, check_mup.define_flags, check_mup.__doc__, True),
    "checkpoint": (checkpoint, define_checkpoint_flags, CHECKPOINT, False),
    "data": (check_data.run, check_data.define_flags, check_data.__doc__, False),
    "replay": (replay, define_replay_flags, REPLAY, False),
}
"""Name -> what runs, its flags, its help, whether it takes --config."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the check that the first argument names; the rest are its flags.

    Raises:
        SystemExit: the exit status is not 0.
    """
    program, *arguments = sys.argv if argv is None else argv
    name = arguments[0] if arguments else ""
    if name in ("-h", "-help", "--help"):
        examples = "\n".join(f"  {example}" for examples in EXAMPLES.values() for example in examples)
        print(help_text.as_typed(f"{(__doc__ or '').strip()}\n\nExamples:\n{examples}"))
        return
    if name not in CHECKS:
        *others, last = CHECKS
        names, near = f"{', '.join(others)} and {last}", difflib.get_close_matches(name, CHECKS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        what = (
            f"there is no check {name!r}" if name and not name.startswith("-") else "the first argument names a check"
        )
        print(f"error: {what}: the checks are {names}{hint}", file=sys.stderr)
        sys.exit(UserError.exit_code)
    run, define_flags, doc, config = CHECKS[name]
    rest = [program, *arguments[1:]]
    cli.main(run, doc=doc, define_flags=define_flags, examples=EXAMPLES[name], config=config, argv=rest)


if __name__ == "__main__":
    main()
