"""From a run to a Hugging Face folder and back into a run, by command."""

import json

import pytest

from bigjax.config import Config, strict
from bigjax.interop.hf.config import disagreements
from experiments import cli, config_source
from tests.commands import TINY, Commands, contents, read, rows, shared_cache

TRAIN, EXPORT, GENERATE = "experiments.train", "experiments.export", "experiments.generate"
LLAMA = (
    *TINY,
    "--config.data.tokenizer=bpe:300",
    "--config.model.vocab_size=300",
    "--config.model.activation=swiglu",
    "--noconfig.model.qk_norm",
    "--config.log.sample_tokens=0",
)
BRIEFLY = (
    "--config.data.seq_len=32",
    "--config.train.steps=2",
    "--config.train.global_batch_size=8",
    "--config.optim.warmup=1",
)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def workdir(commands, tmp_path_factory):
    """A finished run of Llama's architecture."""
    folder = tmp_path_factory.mktemp("runs") / "llama"
    commands.run(TRAIN, *LLAMA, f"--workdir={folder}")
    return folder


@pytest.fixture(scope="module")
def exported(commands, workdir, tmp_path_factory):
    """That run's Hugging Face folder."""
    folder = tmp_path_factory.mktemp("exported") / "llama"
    before = contents(workdir)
    said = commands.run(EXPORT, f"--workdir={workdir}", "--format=hf", f"--out={folder}").stdout.splitlines()
    assert contents(workdir) == before
    report = read(folder / "bigjax_export.json")
    assert said[0] == f"LlamaForCausalLM, {report['parameters']:,} parameters, float32, of step 8: {folder}"
    if report["verified"] is None:
        assert said[1] == f"not verified: {report['reason']}"
    else:
        assert said[1].startswith("verified: transformers' logits differ by ")
        assert report["verified"] is True
    return folder


def test_the_folder_has_the_runs_tokenizer(workdir, exported):
    assert (exported / "tokenizer.json").read_bytes() == (workdir / "tokenizer.json").read_bytes()
    assert sorted(path.name for path in exported.iterdir()) == [
        "bigjax_export.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_folder_is_a_config_of_a_run_that_starts_from_it(workdir, exported):
    cfg = strict.from_dict(Config, config_source.load(f"hf:{exported}"))
    before = strict.from_dict(Config, read(workdir / "config.json")["config"])
    assert disagreements(cfg.model, before.model) == []
    assert (cfg.init_from, cfg.data.tokenizer) == (f"hf:{exported}", f"hf:{exported}/tokenizer.json")
    assert cli.default_workdir(["train", f"--config=hf:{exported}/"]) == "runs/llama"


@pytest.mark.exhaustive
def test_a_run_starts_where_the_exported_one_ended(commands, workdir, exported, tmp_path):
    again = f"--config.data.tokenizer=hf:{workdir}/tokenizer.json"
    from_hf = (f"--config=hf:{exported}", *BRIEFLY, f"--workdir={tmp_path}/a")
    from_run = (*LLAMA, again, f"--config.init_from={workdir}", f"--workdir={tmp_path}/b")
    commands.run(TRAIN, *from_hf)
    commands.run(TRAIN, *from_run)
    first = [rows(tmp_path / name)[0] for name in "ab"]
    assert first[0]["step"] == first[1]["step"] == 1
    assert first[0]["train/loss"] == pytest.approx(first[1]["train/loss"], rel=1e-6)
    resumed = commands.run(TRAIN, *from_hf)
    assert "is complete" in resumed.stderr


@pytest.mark.exhaustive
def test_text_is_generated_from_the_folder_as_from_the_run(commands, workdir, exported):
    how = ("--prompt=ROMEO", "--max_new_tokens=8", "--temperature=0")
    texts = [commands.run(GENERATE, f"--workdir={source}", *how).stdout for source in (workdir, f"hf:{exported}")]
    assert texts[0] == texts[1]


def test_a_run_of_another_model_is_told_the_fields(commands, exported, tmp_path):
    done = commands.run(
        TRAIN,
        *LLAMA,
        f"--config.data.tokenizer=hf:{exported}/tokenizer.json",
        f"--config.init_from=hf:{exported}",
        "--config.model.d_ff=64",
        "--config.model.norm_eps=1e-6",
        f"--workdir={tmp_path}/run",
        code=2,
    )
    message = [line for line in done.stderr.splitlines() if not line.startswith("bigjax: run ")]
    assert message == [
        f"error: {exported} holds another model; --config=hf:{exported} is a config for it. It differs in",
        "  model.d_ff: 128 there, 64 here",
        "  model.norm_eps: 1e-05 there, 1e-06 here",
    ]
    assert not (tmp_path / "run").exists()


def test_mistakes_are_one_sentence(call_command, workdir, exported, tmp_path):
    def said(*arguments: str) -> str:
        status, _, said = call_command(EXPORT, *arguments)
        assert status == 2
        return said.removeprefix("error: ").rstrip("\n")

    assert said(f"--workdir={workdir}") == "--out is missing: the folder to write, new or empty"
    assert said(f"--workdir={workdir}", f"--out={exported}") == (
        f"{exported} is not an empty folder: choose another for the export"
    )
    assert said("--workdir=hf:/nowhere", f"--out={tmp_path}/out") == "there is no folder /nowhere"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert said(f"--workdir=hf:{tmp_path}", "--out=x").endswith(
        "the architecture 'mamba' is not covered; covered are gpt2, llama, mistral, qwen2, qwen3, mixtral, gemma2, "
        "bert, t5"
    )


def test_a_model_without_a_counterpart_is_refused_before_its_weights_are_read(call_command, workdir, tmp_path):
    record = read(workdir / "config.json")
    record["config"]["model"]["activation"] = "relu_squared"
    (tmp_path / "config.json").write_text(json.dumps({"config": record["config"]}))
    status, _, said = call_command(EXPORT, f"--workdir={tmp_path}", f"--out={tmp_path}/out")
    assert status == 2 and said.splitlines() == [
        "error: no covered Hugging Face architecture holds this model; the nearest, LlamaForCausalLM, differs in",
        "  model.activation: 'swiglu' there, 'relu_squared' here",
    ]
