"""The training launcher with a witness: `experiments.check resume` starts it, kills it and starts it again.

--order names a JSON file with the `config`, its run folder `workdir`, the file `record` for what the witness sees
(`bigjax.preflight.resume.witness`), the number of `rows` of an epoch (`bigjax.preflight.resume.excerpt`), and
`kill_at`: after that step, as soon as the newest checkpoint that is due is complete, the process kills itself with
SIGKILL (null: never).
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from absl import flags

from bigjax.config import Config, strict

from .. import cli, train
from ..processes import distributed

POLL_S = 0.005


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("order", None, "the JSON file that says what to do", flag_values=flag_values)
    distributed.define_flags(flag_values)


def main(flag_values: flags.FlagValues) -> int:
    """Do what the order says."""
    order = json.loads(Path(cli.required(flag_values, "order")).read_text())
    cfg, workdir = strict.from_dict(Config, order["config"]), Path(order["workdir"])
    from bigjax import data
    from bigjax.run import runtime

    runtime.configure_jax()
    distributed.initialize(flag_values)
    from bigjax.preflight.resume.excerpt import excerpt
    from bigjax.preflight.resume.witness import Witness, write_line

    build, record = data.build, Path(order["record"])

    def build_excerpt(*arguments: Any) -> data.TextData:
        text = excerpt(build(*arguments), cfg.data.weights, order["rows"])
        stream = text.train
        write_line(
            record,
            {
                "sources": [source.spec for source in stream.sources],
                "rows": stream.order.rows,
                "first_row": stream.rows.start,
            },
        )
        return text

    def then(step: int) -> None:
        if step == order["kill_at"]:
            kill(workdir, (step - 1) // cfg.checkpoint.every_steps * cfg.checkpoint.every_steps)

    data.build = build_excerpt
    return train.run(cfg, workdir, witness=Witness(record, then))


def kill(workdir: Path, step: int) -> None:
    """End this process with SIGKILL once the checkpoint of `step` is complete."""
    from bigjax.checkpoint.digests import complete_steps
    from bigjax.run.folder import RunFolder

    while step not in complete_steps(RunFolder(workdir).checkpoints):
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, config=False)
