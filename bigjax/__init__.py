"""bigjax: scaling experiments in JAX whose answers can be trusted.

The library in a few lines. Models, losses and steps are functions of arrays; a parameter tree is a nested dict.

>>> import bigjax, jax, numpy
>>> small = {"model.vocab_size": 256, "model.num_layers": 1, "model.d_model": 32, "model.num_heads": 2}
>>> small |= {"data.tokenizer": "bytes", "data.seq_len": 16, "train.global_batch_size": 8, "train.loss_chunks": 1}
>>> cfg = bigjax.load_config("gpt:d12", small)  # or "quickstart", a config file, the folder of a run, hf:PATH

A model's parameters and its logits, `(batch, sequence, vocabulary)`:

>>> model = bigjax.models.build(cfg.model)
>>> params = jax.jit(model.init)(jax.random.key(0))
>>> tokens = numpy.random.default_rng(0).integers(256, size=(8, 17))
>>> jax.jit(model.apply)(params, tokens[:, :-1]).shape
(8, 16, 256)

The loss that training minimises, in nats per token, which starts near log(256), and its gradient:

>>> batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": numpy.ones((8, 16))}
>>> loss_and_gradient = jax.jit(jax.value_and_grad(bigjax.train.loss), static_argnums=2)
>>> loss, gradient = loss_and_gradient(params, batch, cfg)
>>> bool(abs(loss - numpy.log(256)) < 0.2)
True

The train step, with the config's optimizer and schedule; the state given to it is used up:

>>> init, step = bigjax.train.build(cfg)
>>> state, metrics = step(init(), batch)
>>> int(state.step), sorted(metrics)[:2]
(1, ['grad_norm', 'grad_norms'])

Text, as token ids:

>>> [written] = bigjax.generate(model, params, [[82, 79, 77, 69, 79]], max_new_tokens=4, key=jax.random.key(2))
>>> len(written)
4

On several devices the same lines stand under a mesh, which alone says where arrays live:

>>> with jax.set_mesh(bigjax.make_mesh(bigjax.config.MeshConfig(fsdp=-1))):
...     params = jax.jit(model.init)(jax.random.key(0))
...     logits = jax.jit(model.apply)(params, tokens[:, :-1])

Weights to a Hugging Face folder, compared there with what transformers computes from them, and of one:

>>> report = bigjax.interop.hf.export_checkpoint(params, cfg.model, "exported/gpt")
>>> model_config, params = bigjax.import_checkpoint("exported/gpt")
>>> model = bigjax.models.build(model_config)
>>> params = model.place(params)

`bigjax train`, `bigjax plan` and the other commands are listed by `bigjax --help`. The rooms: `config`, `data`,
`models`, `tasks`, `train`, `checkpoint`, `evaluate`, `interop`, `science` (sweeps, laws, reports), `preflight` (plans
and checks before a launch), `run` (run folders), and `sharding` and `params` below them.
"""

from typing import TYPE_CHECKING, Any

from bigjax import lazy

if TYPE_CHECKING:
    from bigjax.evaluate.generation import generate as generate
    from bigjax.experiments.config_source import load_config as load_config  # pyright: ignore[reportMissingImports]
    from bigjax.interop.hf import import_checkpoint as import_checkpoint
    from bigjax.sharding import make_mesh as make_mesh
    from bigjax.version import __version__ as __version__

_ROOMS = (
    *("config", "data", "models", "tasks", "train", "checkpoint", "evaluate", "interop", "science", "preflight", "run"),
    *("sharding", "params"),
)

_room, _rooms = lazy.handing_on(__name__, {f"{__name__}.{room}": () for room in _ROOMS})
_name, _names = lazy.handing_on(
    __name__,
    {
        "bigjax.evaluate.generation": ("generate",),
        "bigjax.experiments.config_source": ("load_config",),
        "bigjax.interop.hf": ("import_checkpoint",),
        "bigjax.sharding": ("make_mesh",),
        "bigjax.version": ("__version__",),
    },
)

__all__ = sorted([*_rooms, *_names])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    return _room(name) if name in _rooms else _name(name)


def __dir__() -> list[str]:
    return __all__
