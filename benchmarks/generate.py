"""Time greedy generation with a key-value cache on the CPU, alone or side by side with Hugging Face GPT-2.

    python -m benchmarks.generate
    python -m benchmarks.generate --against=hf [--peer_python=OTHER/bin/python]

The model is w1 of `benchmarks.workloads` with 1024 positions, in float32. Every side is a process of its own and they
take turns, so that a slow minute of a shared machine slows all of them. One JSON line: per side and batch size the
tokens a second of the median turn, reading the prompt included, after a turn to warm up; `ratio_to_hf` is the median
over the turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

PROMPT_TOKENS = 32


def main() -> None:
    """Parse the command line, run the sides in turns, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=("hf",), help="another side to take turns with")
    parser.add_argument("--peer_python", default=sys.executable, help="the interpreter of the hf side")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--worker", choices=tuple(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        _work(SIDES[args.worker], args.new_tokens)
        return
    names = ["bigjax", *([args.against] if args.against else [])]
    sides = {name: _start(name, args) for name in names}
    report: dict[str, object] = {"new_tokens": args.new_tokens, "prompt_tokens": PROMPT_TOKENS, "cpus": os.cpu_count()}
    report |= {f"{name}_version": _ask(side, 0) for name, side in sides.items()}
    for batch in args.batches:
        turns = [{name: _ask(side, batch) for name, side in sides.items()} for _ in range(args.turns + 1)][1:]
        rates = {name: [batch * args.new_tokens / turn[name] for turn in turns] for name in names}
        report |= {f"batch_{batch}/{name}/tokens_per_s": round(statistics.median(rates[name]), 1) for name in names}
        if args.against:
            ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
            report[f"batch_{batch}/ratio_to_hf"] = round(statistics.median(ratios), 2)
            report[f"batch_{batch}/ratio_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
    for side in sides.values():
        assert side.stdin
        side.stdin.close()
        side.wait()
    print(json.dumps(report))


def _start(name: str, args: argparse.Namespace) -> subprocess.Popen:
    python = args.peer_python if name == "hf" else sys.executable
    command = [python, "-m", "benchmarks.generate", f"--worker={name}", f"--new_tokens={args.new_tokens}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(side: subprocess.Popen, batch: int):
    """Return the seconds that one generation took, or for batch 0 the version of the side."""
    assert side.stdin and side.stdout
    print(batch, file=side.stdin, flush=True)
    return json.loads(side.stdout.readline())


def _work(build: Callable[[int], tuple[str, Callable[[int], None]]], new_tokens: int) -> None:
    """Be one side: generate when asked to."""
    # Only the protocol may reach stdout.
    out, sys.stdout = sys.stdout, sys.stderr
    version, generate = build(new_tokens)
    for line in sys.stdin:
        batch = int(line)
        start = time.perf_counter()
        if batch:
            generate(batch)
        print(json.dumps(time.perf_counter() - start if batch else version), file=out, flush=True)


def _bigjax(new_tokens: int) -> tuple[str, Callable[[int], None]]:
    os.environ["JAX_PLATFORMS"] = "cpu"
    from bigjax.run import runtime

    runtime.configure_jax()
    import jax

    from benchmarks.workloads import workload
    from bigjax import config, models
    from bigjax import params as param_tree
    from bigjax.evaluate.generation import generate

    cfg = config.replace(workload("w1", 1), model={"max_seq_len": 1024}).model
    model = models.build(cfg)
    params = jax.jit(lambda: param_tree.init(model.specs, jax.random.key(0)))()

    def run(batch: int) -> None:
        prompts = [[row + 1] * PROMPT_TOKENS for row in range(batch)]
        written = generate(model, params, prompts, max_new_tokens=new_tokens, temperature=0)
        assert [len(row) for row in written] == [new_tokens] * batch

    return f"jax {jax.__version__}", run


def _hf(new_tokens: int) -> tuple[str, Callable[[int], None]]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from benchmarks.workloads import workload

    cfg = workload("w1", 1).model
    torch.manual_seed(0)
    # Typed Any: the annotations of transformers hide what its mixins add.
    model: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=cfg.vocab_size,
            n_positions=1024,
            n_embd=cfg.d_model,
            n_layer=cfg.num_layers,
            n_head=cfg.num_heads,
        )
    ).eval()

    def run(batch: int) -> None:
        ids = torch.arange(1, batch + 1)[:, None].repeat(1, PROMPT_TOKENS)
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        assert written.shape == (batch, PROMPT_TOKENS + new_tokens)

    return f"torch {torch.__version__}, {torch.get_num_threads()} threads", run


SIDES = {"bigjax": _bigjax, "hf": _hf}


if __name__ == "__main__":
    main()
