"""Time one train step on the CPU, alone or side by side with Hugging Face GPT-2 on eager PyTorch.

    python -m benchmarks.train_step --workload=w1
    python -m benchmarks.train_step --workload=w1 --against=hf [--peer_python=OTHER/bin/python]
    python -m benchmarks.train_step --workload=w1 --launcher

Every side is a process of its own and they take turns, a few steps each, so that a slow minute of a shared machine
slows all of them. One JSON line a side: tokens_per_s and step_ms are of the median step, first_step_s runs from process
start to the end of the first step, ratio_to_hf is the median over the turns. With --launcher experiments.train takes
turns, too, with the packaged text, metrics and progress line, and ratio_to_launcher compares the bare step with it.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any, TextIO

SIDES = ("bigjax", "hf", "launcher")
WARM_UP = 3
"""Steps after the first that are not timed."""


def main() -> None:
    """Parse the command line, run the sides in turns, print a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=("w1", "w2"), required=True)
    parser.add_argument("--against", choices=("hf",), help="another side to take turns with")
    parser.add_argument("--launcher", action="store_true", help="experiments.train takes turns, too")
    parser.add_argument("--peer_python", default=sys.executable, help="the interpreter of the hf side")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="steps a turn")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        _work(args.worker, args.workload, args.steps * args.turns)
        return
    others = [name for name in SIDES[1:] if name == args.against or (name == "launcher" and args.launcher)]
    sides = [Side(name, args) for name in (SIDES[0], *others)]
    for _ in range(args.turns):
        for side in sides:
            side.turn(args.steps)
    ours = [statistics.median(turn) for turn in sides[0].turns]
    for side in sides:
        report = {"workload": args.workload, "side": side.name, **side.finish()}
        for other in sides[1:] if side is sides[0] else []:
            ratios = [statistics.median(turn) / mine for turn, mine in zip(other.turns, ours, strict=True)]
            report[f"ratio_to_{other.name}"] = round(statistics.median(ratios), 3)
            report[f"ratio_range_{other.name}"] = [round(min(ratios), 3), round(max(ratios), 3)]
        print(json.dumps(report), flush=True)


class Side:
    """One process that times steps when asked to."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.name = name
        self.turns: list[list[float]] = []
        python = args.peer_python if name == "hf" else sys.executable
        command = [python, "-m", "benchmarks.train_step", f"--workload={args.workload}", f"--worker={name}"]
        command += [f"--steps={args.steps}", f"--turns={args.turns}"]
        self._start = time.time()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._ready = self._read()

    def turn(self, steps: int) -> None:
        """Time `steps` steps."""
        self._write({"steps": steps})
        self.turns.append(self._read()["seconds"])

    def finish(self) -> dict[str, Any]:
        """End the process and return what it measured."""
        self._write({"steps": 0})
        last = self._read()
        self._process.wait()
        step_s = statistics.median(seconds for turn in self.turns for seconds in turn)
        rate = self._ready["tokens_per_step"] / step_s
        report = {"tokens_per_s": round(rate, 1), "step_ms": round(1000 * step_s, 1)}
        report["first_step_s"] = round(self._ready["first_step_at"] - self._start, 2)
        report["peak_rss_mb"] = last["peak_rss_mb"]
        if "flops_per_step" in self._ready:
            report["flops_per_step"] = self._ready["flops_per_step"]
            report["mfu_of_matmul_peak"] = round(self._ready["flops_per_step"] / step_s / last["peak_flops"], 3)
        return report | {"version": self._ready["version"]}

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())


def _work(name: str, workload: str, steps: int) -> None:
    """Be one side: announce the first step, then time steps on request."""
    # Only the protocol may reach stdout.
    out, sys.stdout = sys.stdout, sys.stderr
    if name == "launcher":
        _launch(workload, steps, out)
        return
    step, ready, peak_flops = {"bigjax": _bigjax, "hf": _hf}[name](workload, steps)
    for _ in range(WARM_UP):
        step()
    # Only now, so that no side warms up while another is timed.
    print(json.dumps(ready), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)["steps"]
        if not asked:
            break
        seconds = []
        for _ in range(asked):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds}), file=out, flush=True)
    print(json.dumps({"peak_rss_mb": _peak_rss_mb(), "peak_flops": peak_flops()}), file=out, flush=True)


def _peak_rss_mb() -> int:
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _bigjax(workload: str, steps: int):
    """The train step of the library on a mesh of one device, as the launcher jits it."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from bigjax.run import runtime

    runtime.configure_jax()
    import jax

    from benchmarks.trainer import Trainer
    from benchmarks.workloads import workload as config_of
    from bigjax.train import flops

    cfg = config_of(workload, steps)
    trainer = Trainer(cfg)
    trainer.advance()
    tokens = cfg.train.global_batch_size * cfg.data.seq_len
    per_token = flops.model_flops_per_token(cfg.model, trainer.model.specs, cfg.data.seq_len)
    ready = {"first_step_at": time.time(), "tokens_per_step": tokens, "flops_per_step": per_token * tokens}
    return trainer.advance, ready | {"version": f"jax {jax.__version__}"}, lambda: flops.peak_flops(jax.devices())


def _hf(workload: str, steps: int):
    """GPT2LMHeadModel and torch.optim.AdamW, eager, on as many threads as there are cores."""
    del steps
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from benchmarks.workloads import workload as config_of

    cfg = config_of(workload, 1)
    model_cfg, B, S = cfg.model, cfg.train.global_batch_size, cfg.data.seq_len
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model_cfg.vocab_size,
            n_positions=S,
            n_embd=model_cfg.d_model,
            n_layer=model_cfg.num_layers,
            n_head=model_cfg.num_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.optim.lr)
    ids = torch.randint(0, model_cfg.vocab_size, (B, S))

    def one() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    one()
    ready = {"first_step_at": time.time(), "tokens_per_step": B * S, "version": f"torch {torch.__version__}"}
    return one, ready, lambda: None


def _launch(workload: str, steps: int, out: TextIO) -> None:
    """Train through the launcher on the packaged text, holding it between its turns."""
    import tempfile
    from pathlib import Path

    from benchmarks.workloads import workload as config_of
    from bigjax.run import runtime
    from experiments import train

    os.environ["JAX_PLATFORMS"] = "cpu"
    runtime.configure_jax()
    cfg = config_of(workload, steps + WARM_UP + 2)
    turns = Turns(out, cfg.train.global_batch_size * cfg.data.seq_len)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Over):
        train.run(cfg, Path(folder) / "run", witness=turns)
    print(json.dumps({"peak_rss_mb": _peak_rss_mb()}), file=out, flush=True)


class Over(Exception):
    """No more turns are asked for."""


class Turns:
    """A witness of the launcher that lets it take the steps that are asked for, and says how long a turn took.

    Within a turn nothing waits for a step but the launcher itself: a step counts as the turn divided by its steps.
    """

    def __init__(self, out: TextIO, tokens_per_step: int):
        self._out, self._tokens = out, tokens_per_step
        self._asked, self._left, self._start, self._first_step_at = 0, 0, 0.0, 0.0

    def __call__(self, step: int, batch: Any, state: Any) -> None:
        """See the state after a step; return when the next one may be taken."""
        import jax

        self._left -= 1
        if step > 1 + WARM_UP and self._left:
            return
        jax.block_until_ready(state)
        if step == 1:
            self._first_step_at = time.time()
        if step > 1 + WARM_UP:
            self._say({"seconds": [(time.perf_counter() - self._start) / self._asked] * self._asked})
        if step >= 1 + WARM_UP:
            if step == 1 + WARM_UP:
                version = f"jax {jax.__version__}"
                ready = {"first_step_at": self._first_step_at, "tokens_per_step": self._tokens, "version": version}
                self._say(ready)
            self._left = self._asked = json.loads(sys.stdin.readline())["steps"]
            if not self._asked:
                raise Over
            self._start = time.perf_counter()

    def _say(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self._out, flush=True)


if __name__ == "__main__":
    main()
