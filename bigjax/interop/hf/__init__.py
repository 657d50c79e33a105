"""Weights from Hugging Face folders and to them, safetensors only, bit for bit.

    cfg, params = import_checkpoint("SmolLM2-135M")
    report = export_checkpoint(params, cfg, "out", started_from="SmolLM2-135M")

Read `reading` and `writing` first. On the way, each idea has its file: `architecture` (what a table says), `gpt2`,
`llama`, `mixtral`, `gemma`, `bert`, `t5` (the tables), `config` (config.json), `files` (safetensors), `tensors` (names,
shapes and order of numbers), `labels` (the order of classes), `origin` (what a model keeps of the folder that it came
from), `tokenizer` (its special tokens), `verify` and `outputs` (is what was exported the same model?). Another
architecture is another table, and its line in `config.ARCHITECTURES`.
"""

from typing import TYPE_CHECKING

from bigjax import lazy

if TYPE_CHECKING:
    from bigjax.interop.hf.architecture import HuggingFaceError as HuggingFaceError
    from bigjax.interop.hf.reading import check_same_model as check_same_model
    from bigjax.interop.hf.reading import import_checkpoint as import_checkpoint
    from bigjax.interop.hf.reading import load_params as load_params
    from bigjax.interop.hf.writing import check_exportable as check_exportable
    from bigjax.interop.hf.writing import export_checkpoint as export_checkpoint

# What reads a config.json alone needs no JAX.
__getattr__, __all__ = lazy.handing_on(
    __name__,
    {
        "bigjax.interop.hf.architecture": ("HuggingFaceError",),
        "bigjax.interop.hf.reading": ("check_same_model", "import_checkpoint", "load_params"),
        "bigjax.interop.hf.writing": ("check_exportable", "export_checkpoint"),
    },
)
