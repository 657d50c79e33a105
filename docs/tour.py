# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of bigjax
#
# Seven questions, one CPU, about two minutes. Nothing is downloaded once bigjax is installed. Every output on this
# page is what its cell printed.
#
# | part | question |
# |---|---|
# | Config | What exactly is a run? |
# | Mesh | Where do its arrays live? |
# | A step, and a loss curve | Does it learn? |
# | Another mesh | Does the answer depend on the devices? |
# | A sweep | How does the loss change with the size of the model? |
# | A fit | How sure is that? |
# | A plan | Does a large model fit on 256 chips? |
#
# The first cell installs bigjax only where it is missing, as on Colab. There, first set `SOURCE` to what pip shall
# install: `git+` and the address of a repository that holds bigjax, or the path of a folder or a wheel that you
# uploaded.

# %%
import importlib.util
import os
import subprocess
import sys

SOURCE = os.environ.get("BIGJAX_SOURCE", "")

if importlib.util.find_spec("bigjax") is None:
    if not SOURCE:
        raise ImportError("bigjax is not installed: set SOURCE and run this cell again")
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, SOURCE], check=True)

# %% [markdown]
# A mesh wants several devices. JAX makes eight virtual devices out of one CPU if it is told so before it makes the
# first array. `configure_jax` sets what every command of bigjax sets, such as a cache of compiled programs.

# %%
import itertools
import shlex
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display

import bigjax
from bigjax.errors import UserError
from bigjax.preflight.plan import candidates, devices, page
from bigjax.preflight.plan.planner import Planner
from bigjax.run import plots, runtime
from bigjax.science import scaling_laws

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
runtime.configure_jax()

FOLDER = Path("tour")  # what this notebook writes
FOLDER.mkdir(exist_ok=True)
print(f"bigjax {bigjax.__version__}, JAX {jax.__version__}")
print(jax.device_count(), "devices")

# %% [markdown]
# ## Config
#
# A config says all that a run is. bigjax comes with several. `quickstart` is a small language model that learns the
# works of Shakespeare, which come with bigjax, too.

# %%
quickstart = bigjax.load_config("quickstart")
print(quickstart.model.num_layers, "layers of width", quickstart.model.d_model)
print(quickstart.train.steps, "steps of", quickstart.train.global_batch_size, "rows")

# %% [markdown]
# A change is a path and a value. On the command line the same change is `--config.train.steps=300`.

# %%
print(bigjax.load_config("quickstart", {"train.steps": 300}).train.steps, "steps")

# %% [markdown]
# Every field is checked before anything is compiled. A mistake is one sentence, which says what to write instead.

# %%
for mistake in ({"optim.lrr": 1e-3}, {"model.num_heads": 7}):
    try:
        bigjax.load_config("quickstart", mistake)
    except UserError as error:
        print(error)

# %% [markdown]
# The rest of the tour trains a much smaller model, which reads bytes.

# %%
SMALL = {"data.tokenizer": "bytes", "data.seq_len": 64}
SMALL |= {"model.vocab_size": 256, "model.max_seq_len": 64}
SMALL |= {"model.num_layers": 2, "model.d_model": 32, "model.num_heads": 2}
SMALL |= {"train.steps": 150, "train.global_batch_size": 16}
SMALL |= {"train.loss_chunks": 1, "train.eval_batches": 8, "log.sample_prompt": ""}
SMALL |= {"optim.name": "adamw", "optim.lr": 4e-3, "optim.weight_decay": 0.0}
cfg = bigjax.load_config("quickstart", SMALL)

# %% [markdown]
# ## Mesh
#
# A mesh puts the devices in a grid, and its axes have names. `fsdp` splits the parameters and the batch. `tensor`
# splits the matrix products inside a layer. Each axis of a parameter has a *logical* name, such as `embed` or
# `heads`, and rules say which mesh axis splits it. That is all that must be said: [Meshes](concepts/meshes.md) has
# the rules.


# %%
def on_mesh(**sizes):
    """Return the config for 60 steps on another mesh."""
    return bigjax.config.replace(cfg, mesh=sizes, train={"steps": 60})


split = on_mesh(fsdp=4, tensor=2)
model = bigjax.models.build(split.model)
with jax.set_mesh(bigjax.make_mesh(split.mesh)):
    params = jax.jit(model.init)(jax.random.key(0))

declared, stored = model.specs["blocks"]["attn"]["q"], params["blocks"]["attn"]["q"]
print("logical axes   ", declared.axes)
print("mesh axes      ", tuple(stored.sharding.spec))
print("shape          ", stored.shape)
print("on each device ", stored.addressable_data(0).shape)

# %% [markdown]
# ## A step, and a loss curve
#
# `bigjax.train.build` returns two functions. `init` makes the state: parameters and optimizer. `step` takes a state
# and a batch, and returns the next state and the metrics. The batch of a step depends on the config and on the number
# of the step, and on nothing else: [The walk of one batch](concepts/batch.md) follows one.


# %%
def train(cfg):
    """Return the loss of every step, in nats per byte."""
    losses, mesh = [], bigjax.make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
        rows = bigjax.sharding.local_rows(mesh, cfg.train.global_batch_size)
        text = bigjax.data.build(cfg, rows)
        init, step = bigjax.train.build(cfg)
        state = init()
        with text.train.batches(start_step=0) as batches:
            for batch in itertools.islice(batches, cfg.train.steps):
                state, metrics = step(state, batch.arrays)
                losses.append(float(metrics["loss"]))
    return np.array(losses)


losses = train(split)
print(f"log(256): {np.log(256):.3f}")
print(f"step 1: {losses[0]:.3f}, step {len(losses)}: {losses[-1]:.3f}")

# %% [markdown]
# An untrained model can only guess one of 256 bytes, so its loss is near log(256). Then it learns.

# %%
picture = FOLDER / "loss.png"
plots.draw_loss(picture, list(enumerate(losses, start=1)), title="fsdp 4, tensor 2")
display(Image(picture, width=600))

# %% [markdown]
# ## The same losses on another mesh
#
# The same run again, on another mesh: every device has all parameters, and an eighth of each batch. A sum in another
# order is rounded in another way. Nothing else may differ.

# %%
difference = np.abs(train(on_mesh(data=8)) - losses)
print(f"difference at step 1: {difference[0]:.1e} nats")
print(f"largest of {len(losses)} steps:   {difference.max():.1e} nats")

# %% [markdown]
# Training amplifies what rounding does: after some hundred steps the losses of two meshes may differ as those of two
# seeds do. A proof must therefore look at one step. `bigjax check equivalence` does: it compares every gradient on
# every mesh of eight devices, within bounds that follow from the arithmetic.
# [What can be trusted](concepts/trust.md) has more.
#
# ## A sweep
#
# A sweep is a config file with one more function. This one asks how the loss changes with the width of the model.

# %%
(FOLDER / "width.py").write_text(f'''"""How does the loss change with the width?"""

import bigjax
from bigjax.config.strict import to_config_dict
from bigjax.science.sweeps import grid


def get_config():
    return to_config_dict(bigjax.load_config("quickstart", {SMALL}))


def sweep(add):
    add(grid({{"model.d_model": [32, 48, 64, 96]}}))
''')


def command(line, last):
    """Run a command as in a terminal, and show the last lines of what it prints."""
    words = [sys.executable, "-m", *shlex.split(line)]
    done = subprocess.run(words, capture_output=True, text=True)
    print(f"$ {line}", *done.stdout.splitlines()[-last:], sep="\n")
    if done.returncode:
        raise RuntimeError(done.stderr)


SWEEP = "bigjax sweep --config=tour/width.py --workdir=tour/width"
command(f"{SWEEP} --runner=inline", last=5)

# %% [markdown]
# Each point is a run with a folder of its own. It is known by its *fingerprint*, a hash of everything that changes
# its numbers. So the sweep knows what is done already; `--explain` says what it would do.

# %%
command(f"{SWEEP} --explain", last=4)
command(f"{SWEEP} --explain --config.train.steps=300", last=4)

# %% [markdown]
# ## A fit
#
# Over a short range the loss is nearly a power of the number of parameters: L = c · N^a. The fit is a line through
# the logarithms. Its interval is Student's t interval: four runs and two numbers to find leave two degrees of
# freedom.

# %%
counted = {"params": "non_embedding", "flops": "6ND", "recompute": False}
points = scaling_laws.read_runs("tour/width/*", **counted)
fit = scaling_laws.fit_power_law(points.params, points.loss)
low, high = fit.ci95["exponent"]
law = f"a = {fit.exponent:.3f}, 95 % interval [{low:.3f}, {high:.3f}]"
print(f"{fit.n_points} runs: {law}")

# %%
sizes = np.geomspace(points.params.min() / 1.5, points.params.max() * 1.5)
figure, axes = plt.subplots(figsize=(6, 3.4), dpi=100, layout="constrained")
axes.semilogx(points.params, points.loss, "o", label="runs")
axes.semilogx(sizes, fit.predict(sizes), label=law)
axes.set_xticks(points.params, [f"{n:,.0f}" for n in points.params])
axes.minorticks_off()
axes.set(xlabel="parameters N, without embeddings", ylabel="held-out loss (nats)")
axes.legend()
plt.show()

# %% [markdown]
# The loss falls with the size: the interval does not hold 0. But it is wide, and it knows nothing of other seeds,
# longer runs or a better learning rate. [Scaling laws](concepts/scaling-laws.md) shows a fit to 17 larger runs that
# predicted the loss of a run it had not seen.
#
# ## A plan for 256 chips, without a chip
#
# `plan` lays the real train step out for chips that are not here. By default the TPU compiler says what it needs;
# `analytic` does without, in seconds. Does Llama 3 8B fit on 256 chips of TPU v5e? Its config says `auto` of attention,
# of what is recomputed and of the mesh, so the plan also says what is best on these chips:

# %%
v5e = devices.parse("v5e:16x16")


def plan(changes):
    llama = candidates.pinned(bigjax.load_config("llama:8b", changes), v5e)
    return Planner(v5e, "llama:8b", analytic=True).plan(llama)


first = plan({})
step_s = first["step_seconds_estimate"]
print(first["verdict"])
for path, value in first["auto"].items():
    print(f"  {path} = {value}")
print(f"a step takes {step_s['mid']:.1f} s, if the program is as good as published ones,")
print(f"with an 80 % interval of {step_s['low']:.1f} to {step_s['high']:.1f} s")

# %% [markdown]
# What you set yourself stays as you set it. Attention that stores all its scores does not fit, and the plan says what
# would help:

# %%
given = {
    "model.attention": "reference",
    "model.remat": "full",
    "train.microbatches": 1,
    "mesh.data": 1,
    "mesh.fsdp": -1,
}
second = plan(given)
print(second["verdict"])
for advice in second["advice"]:
    print(advice["change"])
    print("  saves", page.gib(advice["saves_bytes_per_chip"]), "and fits:", advice["fits"])

# %% [markdown]
# ## Where to go on
#
# - [Start](start/index.md): the same from a terminal, from a clone to the comparison of two runs.
# - How-to: [your own data](how-to/data.md), [your own model](how-to/model.md), [sweeps](how-to/sweep.md),
#   [plans](how-to/plan.md), [a cluster](how-to/cluster.md).
# - Concepts: [what can be trusted](concepts/trust.md), and how that is proven.
# - [Glossary](glossary.md): the words of the field, each explained once.
