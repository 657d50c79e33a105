"""What a Hugging Face folder says beside its weights comes out of any number of runs as transformers reads it there."""

import json
import shutil

import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs PyTorch")

from transformers import AutoConfig, AutoTokenizer  # noqa: E402

from bigjax.config import (  # noqa: E402
    Config,
    replace,
    strict,
)
from bigjax.data import load_tokenizer, save_tokenizer  # noqa: E402
from bigjax.interop import hf  # noqa: E402
from bigjax.interop.hf import origin as hf_origin  # noqa: E402
from bigjax.interop.hf.config import end_ids  # noqa: E402
from experiments import config_source, train  # noqa: E402
from tests.parity import folders  # noqa: E402

EXPORT = "experiments.export"
CHAT = [{"role": "user", "content": "the sea"}, {"role": "assistant", "content": "a wave"}]


def in_settings(folder):
    folders.edit(folder / "tokenizer_config.json", chat_template=folders.TEMPLATE)


def in_a_file(folder):
    (folder / "chat_template.jinja").write_text(folders.TEMPLATE)


def of_several(folder):
    in_a_file(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tools.jinja").write_text("tools: " + folders.TEMPLATE)


PLACES = (in_settings, in_a_file, of_several)


def llama(folder, place):
    """Save a Llama with a tokenizer that has settings of its own, and without generation_config.json."""
    folders.save("llama", folder)
    folders.bpe(folder)
    said = {"pad_token": "the", "model_max_length": 77, "padding_side": "left"}
    folders.edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **said)
    place(folder)
    (folder / "generation_config.json").unlink()
    others = {"num_beams": 3, "task_specific_params": {"summary": {"max_length": 9}}, "use_cache": False}
    folders.edit(folder / "config.json", eos_token_id=[2, 5], bos_token_id="absent", pad_token_id=None, **others)
    return folder


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("origin") / "llama", of_several)


def trained(source, tokenizer, workdir):
    """Train two steps from a folder or a run."""
    cfg = strict.from_dict(Config, config_source.load(source))
    text = workdir.parent / "text.txt"
    text.write_text(folders.TEXT * 40)
    cfg = replace(
        cfg,
        data={
            "sources": (f"text:{text}",),
            "holdout": 0.0,
            "seq_len": 16,
            "tokenizer": f"hf:{tokenizer}/tokenizer.json",
        },
        train={"steps": 2, "global_batch_size": 8, "eval_every_steps": 0},
        optim={"warmup": 1},
        log={"plot": False, "tensorboard": False, "sample_tokens": 0},
    )
    if not source.startswith("hf:"):
        cfg = strict.from_dict(Config, strict.to_dict(cfg) | {"init_from": source})
    assert train.run(cfg, workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def runs(origin, tmp_path_factory):
    """A run from the folder, and a run from that run, which is gone when anything is exported."""
    base = tmp_path_factory.mktemp("runs")
    first = trained(f"hf:{origin}", origin, base / "first")
    second = trained(str(first), first, base / "second")
    return first, second


def same_tokenizer(found, wanted):
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (found, wanted))
    assert type(ours) is type(theirs)
    assert ours.special_tokens_map == theirs.special_tokens_map
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "padding_side", "model_max_length", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.apply_chat_template(CHAT, tokenize=False) == theirs.apply_chat_template(CHAT, tokenize=False)
    texts = ["the sea", "a wave of light, by the moon"]
    assert ours(texts, padding=True) == theirs(texts, padding=True)


def test_through_runs_and_without_one(call_command, origin, runs, tmp_path):
    first, second = runs
    for name, source in (("direct", f"hf:{origin}"), ("first", first), ("second", second)):
        status, said, error = call_command(EXPORT, f"--workdir={source}", f"--out={tmp_path}/{name}")
        assert status == 0 and "verified: " in said, error
        same_tokenizer(tmp_path / name, origin)
        assert end_ids(tmp_path / name) == [2, 5]
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / name / file).read_bytes() == (origin / file).read_bytes()
        values, wanted = (json.loads((place / "config.json").read_text()) for place in (tmp_path / name, origin))
        for key in ("bos_token_id", "eos_token_id", "num_beams", "task_specific_params", "use_cache"):
            assert values.get(key, "absent") == wanted.get(key, "absent"), (name, key)
    assert end_ids(hf_origin.origin_of(second)) == [2, 5]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_template_wherever_it_stands(tmp_path, place):
    folder, runs = llama(tmp_path / "folder", place), (tmp_path / "first", tmp_path / "second")
    for before, run in zip((folder, runs[0]), runs, strict=True):
        save_tokenizer(load_tokenizer(before), run)
    cfg, params = hf.import_checkpoint(folder)
    for name, source in (("direct", folder), ("run", runs[1])):
        hf.export_checkpoint(params, cfg, tmp_path / name, tokenizer_from=source, started_from=folder)
        same_tokenizer(tmp_path / name, folder)


def test_a_generation_config_goes_through_runs(origin, tmp_path):
    shutil.copytree(origin, tmp_path / "folder")
    said = {"eos_token_id": [2, 7], "bos_token_id": 3, "temperature": 0.6, "do_sample": True}
    folders.edit(tmp_path / "folder/generation_config.json", **said)
    cfg, params = hf.import_checkpoint(tmp_path / "folder")
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    hf_origin.keep(f"hf:{tmp_path}/folder", tmp_path / "first")
    hf_origin.keep(str(tmp_path / "first"), tmp_path / "second")
    shutil.rmtree(tmp_path / "folder")
    hf.export_checkpoint(params, cfg, tmp_path / "out", started_from=tmp_path / "second")
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == said
    found = AutoConfig.from_pretrained(tmp_path / "out")
    assert (found.eos_token_id, found.bos_token_id, found.use_cache) == ([2, 5], 1, False)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "llama"])
def test_the_architecture_is_that_of_the_folder(tmp_path, kind):
    """Also where several hold the model, as Llama's does a Mistral without a window."""
    folders.save(kind, tmp_path / "folder", **({"sliding_window": None} if kind == "mistral" else {}))
    cfg, params = hf.import_checkpoint(str(tmp_path / "folder"))
    report = hf.export_checkpoint(params, cfg, str(tmp_path / "out"), started_from=str(tmp_path / "folder"))
    assert report["verified"] and AutoConfig.from_pretrained(tmp_path / "out").model_type == kind
