"""`experiments.plan` as a user calls it: the page, the JSON, the exit status, and one sentence for each mistake."""

import json
import re
import sys
from typing import Any

import pytest

from bigjax import sharding
from bigjax.config import Config, replace
from bigjax.config.strict import from_dict
from bigjax.preflight.plan import devices, planner, report
from experiments import cli, config_source, plan
from tests.commands import ROOT, TINY, Commands, shared_cache

LLAMA = "--config=configs/llama.py:8b"
GIVEN = (
    "--config.mesh.fsdp=-1", "--config.mesh.data=1", "--config.train.microbatches=1", "--config.train.loss_chunks=1",
    "--config.model.attention=reference", "--config.model.remat=full",
)  # fmt: skip
"""What `auto` would choose."""
ODD = ("--config.data.seq_len=8191",)


@pytest.fixture
def call(tmp_path_factory, monkeypatch, capsys):
    """Call the command in this process; return exit status, stdout and stderr."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache(tmp_path_factory)))

    def run(*arguments: object) -> tuple[int, str, str]:
        argv = ["plan", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        status = 0
        try:
            cli.main(plan.main, doc=plan.__doc__, define_flags=plan.define_flags, argv=argv)
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def documented_keys() -> set[str]:
    """Return the keys that the module's documentation promises; those inside braces belong to lists."""
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", report.__doc__ or "")
    return set(re.findall(r"`(\w+)`", text))


def test_analytic_plan_is_one_page_and_the_same_as_json(call, tmp_path):
    out = tmp_path / "new" / "plan.json"
    status, page, _ = call(LLAMA, *GIVEN, "--topology=v5p:8x8x4", "--analytic", "--tokens=2e11", f"--out={out}")
    found = json.loads(out.read_text())
    assert status == 0 and found["fits"] and len(page.splitlines()) < 60
    assert documented_keys() == {*found, "params_active"}  # which only a sparse model has
    assert found["auto"] == {"mesh.shard_sequence": False}  # nothing to split over
    assert found["params_total"] == 8_030_261_248 and f"{8_030_261_248:,}" in page
    assert (found["chips"], found["mesh"]["fsdp"], found["num_slices"]) == (256, 256, 1)
    # 512 rows of 8,192 tokens.
    assert found["tokens_per_step"] == 2**22 and found["steps"] == -(-2e11 // 2**22)
    assert set(found["source"].values()) == {"analytic"} and found["compile_s"] is None
    assert found["days"] * 24 * 256 == pytest.approx(found["chip_hours"])
    assert found["tokens_per_s"] == pytest.approx(2**22 / found["step_seconds_estimate"]["mid"])
    for name in ("FITS", "memory per chip", "sharding", "traffic", "roofline", "MFU at most", "chip-hours"):
        assert name in page


@pytest.mark.exhaustive
def test_compiled_plan_of_virtual_devices(call, tmp_path):
    out = tmp_path / "plan.json"
    asked = (*TINY, "--config.mesh.fsdp=2", "--config.mesh.data=2", "--topology=cpu:4", f"--out={out}")
    status, page, _ = call(*asked)
    found = json.loads(out.read_text())
    assert status == 0 and found["fits"], page
    assert found["source"] == {"memory": "compiler", "flops": "compiler", "traffic": "compiler"}
    assert found["largest_buffers"] and found["versions"]["jax"] and found["compile_s"] > 0
    origins = [(b["op_name"] or b["name"], b["source"], *b["shape"], b["dtype"]) for b in found["largest_buffers"]]
    assert len(set(origins)) == len(origins)
    # 8 batches of 8 rows of 32 bytes; the works that are trained on have 4,744,475 (its source's page counts them).
    assert found["epochs"] == pytest.approx(8 * 8 * 32 / 4_744_475, rel=1e-3) and "epochs" in page
    assert found["seconds"] is None and "no figures for this device" in page
    first_compile_s = found["compile_s"]
    call(*asked)
    assert json.loads(out.read_text())["compile_s"] == first_compile_s  # from the cache


def test_a_batch_that_grows_counts_its_own_tokens_and_microbatches(call, tmp_path):
    out = tmp_path / "plan.json"
    # 4, 8, 12 and 16 rows of 1,024 tokens: of 4 microbatches of 4 rows they fill 1, 2, 3 and 4.
    ramp = ("--config.train.global_batch_size=16", "--config.train.microbatches=4", "--config.train.ramp_batch_size=4")
    ramp += ("--config.train.ramp_tokens=49152", "--config.mesh.data=4", "--config.optim.warmup=1")
    asked = ("--config=configs/gpt.py:d12", "--topology=v5e:2x2", "--analytic", f"--out={out}", *ramp)
    # Stages start at 0, 16, 32 and 48 rows of the 48 that the ramp takes: after 4, 2 and (16 by 12) 2 steps, at 56.
    for how, steps, seen, work in (
        (("--config.train.steps=10",), 10, 56 + 2 * 16, (4 * 1 + 2 * 2 + 2 * 3 + 2 * 4) / 4),
        ((f"--tokens={30 * 1024}",), 6, 16 + 2 * 8, (4 * 1 + 2 * 2) / 4),
    ):
        call(*asked, *how)
        found = json.loads(out.read_text())
        assert (found["steps"], found["run_tokens"]) == (steps, seen * 1024)
        assert found["days"] * 86400 == pytest.approx(work * found["step_seconds_estimate"]["mid"])
        assert found["chip_hours"] == pytest.approx(found["days"] * 24 * 4)


def test_an_analytic_plan_counts_epochs_of_packaged_bytes_only(call):
    tiny = [argument for argument in TINY if "attention" not in argument]
    status, page, err = call(*tiny, "--topology=v5e:1x1", "--analytic")
    assert status == 0 and re.search(r"= [\d.e-]+ epochs", page) and not err
    assert "less than 1 second, less than 1 chip-second" in page  # 8 steps of a tiny model
    assert "v5e:1x1: 1 chip, mesh one device" in page and "\n  program" not in page  # no compiler, no program
    _, page, _ = call(*tiny, "--topology=v5e:1x1", "--analytic", "--config.data.tokenizer=bpe:300")
    assert "epochs not known: the text was not read" in page


def test_too_large_a_model_says_what_would_help(call, tmp_path):
    out = tmp_path / "plan.json"
    status, page, _ = call(
        "--config=configs/llama.py:70b", *GIVEN, "--topology=v5e:4x4", "--analytic", "--config.train.global_batch_size=16",
        f"--out={out}",
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert status == 5 and not found["fits"] and "DOES NOT FIT: needs" in page
    assert found["hbm_bytes_per_chip_needed"] > 4 * found["hbm_bytes_per_chip"]
    assert found["advice"] and not any(advice["fits"] for advice in found["advice"])
    assert "--config.model.attention=splash saves" in page


def test_advice_keeps_its_promise(call, tmp_path):
    out = tmp_path / "plan.json"
    base = ("--config=configs/gpt.py:d12", *GIVEN, "--config.model.remat=none", "--topology=v5e:4x4", "--analytic")
    base = (*base, f"--out={out}")
    assert call(*base)[0] == 5
    found = json.loads(out.read_text())
    enough = [advice for advice in found["advice"] if advice["fits"]]
    assert enough
    for advice in enough:
        assert call(*base, *advice["change"].split())[0] == 0, advice
        needed = json.loads(out.read_text())["hbm_bytes_per_chip_needed"]
        assert found["hbm_bytes_per_chip_needed"] - needed == advice["saves_bytes_per_chip"]


def test_a_parameter_that_a_broken_rule_leaves_whole_is_named(call, monkeypatch):
    monkeypatch.setattr(sharding, "PARAM_RULES", {**sharding.PARAM_RULES, "embed": ()})
    status, _, err = call(LLAMA, *GIVEN, "--topology=v5e:4x4", "--analytic")
    assert status == 3
    assert re.search(r"^error: blocks/attn/k \([\d.]+ MiB\) would be whole on every device although mesh.fsdp=16", err)


def test_a_mesh_axis_that_splits_nothing_is_named(call, monkeypatch):
    rules = {axis: tuple(a for a in mesh_axes if a != "tensor") for axis, mesh_axes in sharding.PARAM_RULES.items()}
    monkeypatch.setattr(sharding, "PARAM_RULES", rules)
    asked = ("--config.mesh.fsdp=4", "--config.mesh.tensor=4", "--topology=v5e:4x4", "--analytic")
    status, page, _ = call("--config=configs/llama.py:1b", *asked)
    assert status == 3 and "silent replication: mesh.tensor=4 splits nothing" in page


def test_means_of_adafactor_may_be_whole(call):
    """Of keys they are 24 layers x 128 heads x 128 features x 4 bytes, 1.5 MiB, beside 1.5 GiB that are split."""
    status, page, _ = call("--config=configs/t5.py:11b", "--topology=v5p:4x4x8", "--analytic")
    assert status in (0, 5) and "silent replication" not in page


def test_a_parameter_that_would_be_padded_is_named(call):
    # 8 key-value heads over 16 devices; a batch that does not divide is the user's mistake, see below.
    status, page, err = call(
        LLAMA, "--topology=v5e:4x4", "--analytic", "--config.mesh.fsdp=1", "--config.mesh.tensor=16"
    )
    assert status == 3 and not page
    assert err.startswith("error: blocks/attn/k: axis kv_heads of size 8 is not divisible by mesh.tensor=16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LLAMA,), "--topology is missing"),
        ((LLAMA, "--topology=v9:2x2"), "there is no chip 'v9'"),
        ((LLAMA, "--topology=v5p:8x8"), "v5p:8x8 has 2 sizes and v5p needs 3"),
        ((LLAMA, "--topology=v5e:64x64"), "has 4096 chips and v5e has at most 256"),
        ((LLAMA, "--topology=cpu:0"), "write cpu:N"),
        ((LLAMA, "--topology=v5e:4x4", "--tokens=-1"), "--tokens=-1 must be a number above 0"),
        ((LLAMA, "--topology=v5e:4x4", "--tokens=nan"), "--tokens=nan must be a number above 0"),
        ((LLAMA, "--topology=v5e:4x4", "--search", "--budget_s=0"), "--budget_s=0 must be a number above 0"),
        ((LLAMA, "--topology=v5e:4x4", "--timeout_s=inf"), "--timeout_s=inf must be a number above 0"),
        ((LLAMA, "--topology=v5e:4x4", "--sweep_chips=4,x"), "--sweep_chips=4,x is not a list of numbers"),
        ((LLAMA, "--topology=v5e:4x4", "--sweep_chips=²"), "--sweep_chips=² is not a list of numbers"),
        ((LLAMA, "--topology=v5e:4x4", "--sweep_chips="), "--sweep_chips= is not a list of numbers"),
        ((LLAMA, "--topology=v5e:4x4", "--sweep_chips=4", "--search"), "--search and --sweep_chips are different"),
        ((LLAMA, "--topology=v5e:4x4", "--analytic", "--sweep_chips=4", "--out=a.png"), "name the JSON file beside it"),
        ((LLAMA, "--topology=v5e:4x4", "--analytic", "--sweep_chips=9", "--num_slices=2"), "of --num_slices=2"),
        ((LLAMA, "--topology=cpu:4", "--search"), "--search compares step times, and there are no figures for cpu:4"),
        ((LLAMA, "--topology=v5e:4x4", "--analytic", "--num_slices=2", "--config.mesh.slice=4"), "form 2 slices, but"),
        ((LLAMA, "--topology=v5e:4x4", "--analytic", "--config.mesh.fsdp=32"), "mesh.fsdp=32 does not divide the 16 devices"),
        ((LLAMA, *GIVEN, "--topology=v5e:4x4", "--analytic", "--config.train.global_batch_size=15"), "gives 15 rows, not"),
        ((LLAMA, "--topology=v5e:4x4", "--analytic", "--search"), "leave --analytic out"),
        ((LLAMA, "--topology=v5e:4x4", "--analytic", "--compare=configs/lama.py"), "there is no config file"),
        ((LLAMA, "--topology=v5e:4x4", "--analytic", "--compare="), "a config is missing"),
        ((LLAMA, "--topology=v5e:8x8", "--analytic", "--compare=configs/rnn.py:large"), "rnn.py:large: train.global"),
        ((LLAMA, "--topology=h100:2x8", "--analytic", "--config.model.attention=splash"), "platform 'gpu'; these do"),
        ((LLAMA, "--topology=v5e:4x4", "--analytic", *ODD, "--config.model.attention=splash"), "a multiple of 128 as"),
        ((LLAMA, "--topology=v5e:4x4", "--noanalytic=3"), "--noanalytic=3 does not take an argument"),
        ((LLAMA, "--topology=h100:2x8", "--analytic", "--num_slices=2"), "num_slices=2 is for TPUs"),
        ((LLAMA, "--topology=v5e:4x4", "--analytic", "--out=/dev/null/x.json"), "/x.json cannot be written"),
        ((LLAMA, "--topology=v5e:4x4", "--analytic", "--out="), "cannot be written: Is a directory"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_mistake_is_one_sentence(call, arguments, message):
    status, page, err = call(*arguments)
    assert status == 2 and not page  # no work is thrown away
    assert err.startswith("error: ") and message in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(("topology", "extra"), [("v5e:4x4", "plan-tpu"), ("h100:2x8", "plan-gpu")])
def test_a_missing_compiler_is_a_sentence_with_the_command(call, monkeypatch, topology, extra):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    status, _, err = call(LLAMA, f"--topology={topology}")
    assert status == 2 and f"pip install 'bigjax[{extra}]'" in err and "--analytic" in err


def test_what_would_help_is_what_can_run(call):
    """The splash kernel takes multiples of 128 tokens."""
    _, page, _ = call(LLAMA, *GIVEN, "--topology=v5e:16x16", "--analytic", *ODD)
    assert "DOES NOT FIT" in page and "microbatches=2 saves" in page and "splash" not in page


def test_averaged_parameters_are_state_of_the_optimizer(call, tmp_path):
    out, plans = tmp_path / "plan.json", []
    for average in ("None", "0.99"):
        call(*TINY, "--topology=v5e:1x1", "--analytic", f"--config.optim.ema_decay={average}", f"--out={out}")
        plans.append(json.loads(out.read_text()))
    (plain, params), (averaged, same) = ((p["optimizer_bytes_per_chip"], p["params_bytes_per_chip"]) for p in plans)
    assert same == params == averaged - plain == 4 * plans[0]["params_total"]


def test_two_configs_side_by_side(call, tmp_path):
    out = tmp_path / "both.json"
    status, page, _ = call(LLAMA, "--topology=v5p:8x8x4", "--analytic", "--compare=configs/llama.py:1b", f"--out={out}")
    found = json.loads(out.read_text())
    a, b = found["plans"]
    assert found["difference"] is None  # the analytic model has no operations
    assert status == 0 and (a["config"], b["config"]) == ("configs/llama.py:8b", "configs/llama.py:1b")
    row = next(line for line in page.splitlines() if line.startswith("params_total"))
    assert row.split()[-1] == f"{1_235_814_400 / 8_030_261_248:.3f}"


def test_chips_are_swept_as_a_table_and_a_picture(call, tmp_path):
    out = tmp_path / "scale.json"
    status, table, _ = call(LLAMA, "--topology=v5p:4x4x4", "--analytic", "--sweep_chips=16,64,256", f"--out={out}")
    found = json.loads(out.read_text())
    assert status == 0 and out.with_suffix(".png").stat().st_size > 10_000
    assert [(row["scaling"], row["chips"], row["global_batch_size"]) for row in found] == [
        ("weak", 16, 128), ("weak", 64, 512), ("weak", 256, 2048),
        ("strong", 16, 512), ("strong", 64, 512), ("strong", 256, 512),
    ]  # fmt: skip
    weak, strong = found[:3], found[3:]
    # More chips hold less of the state each; with strong scaling also fewer rows.
    for some in (weak, strong):
        needed = [row["hbm_bytes_per_chip_needed"] for row in some]
        assert needed == sorted(needed, reverse=True)
    assert weak[2]["step_seconds_estimate"] == pytest.approx(weak[0]["step_seconds_estimate"], rel=0.01)
    assert strong[2]["step_seconds_estimate"] < strong[0]["step_seconds_estimate"] / 8
    assert len(table.splitlines()) == 1 + 6 + 2


def test_slices_are_swept_as_slices(call, tmp_path):
    out = tmp_path / "scale.json"
    asked = ("--config=configs/gpt.py:d12", "--topology=v5e:4x4", "--num_slices=2", "--analytic")
    status, _, _ = call(*asked, "--config.model.attention=splash", "--sweep_chips=8,32", f"--out={out}")
    found = json.loads(out.read_text())
    # 512 rows on the 32 chips of two slices; gradients travel between them however few chips each has.
    assert status == 0 and [row["global_batch_size"] for row in found] == [128, 512, 512, 512]
    assert all(row["dcn_bytes_per_chip"] > 0 for row in found)


def test_a_sweep_of_what_fits_nowhere_does_not_fit(call):
    status, table, _ = call(LLAMA, *GIVEN, "--topology=v5e:4x4", "--analytic", "--sweep_chips=8,16")
    assert status == 5 and table.count("GiB!") == 4


def test_a_search_without_time_judges_nothing(call, monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: name)
    status, _, err = call(
        *TINY, "--config.model.attention=reference", "--topology=v5e:2x2", "--search", "--budget_s=1e-9"
    )
    assert status == 2 and "--budget_s=1e-09 was over before the first plan was compiled" in err


def test_what_does_not_fit_this_machine_says_what_would_help(call):
    status, page, _ = call(LLAMA, *GIVEN, "--topology=cpu:8", "--analytic")
    assert status == 5 and "--config.model.remat=full" not in page and "--config.train.microbatches=64 saves" in page


def test_a_preset_is_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    preset: dict[str, Any] = {"config": "configs/llama.py:8b", "changes": {"mesh.fsdp": 64, "model.remat": "dots"}}
    path = tmp_path / "preset.json"
    path.write_text(json.dumps(preset))
    cfg = from_dict(Config, config_source.load(str(path)))
    assert (cfg.mesh.fsdp, cfg.model.remat, cfg.model.num_layers) == (64, "dots", 32)
    path.write_text(json.dumps({**preset, "changes": {"mesh.fspd": 64}}))
    with pytest.raises(cli.UserError, match=r"mesh\.fspd is not a field .*: did you mean mesh\.fsdp\?"):
        config_source.load(str(path))
    path.write_text("[]")
    with pytest.raises(cli.UserError, match="is not a preset"):
        config_source.load(str(path))


def test_training_with_plan_plans_its_own_step_and_stops(tmp_path, monkeypatch, capsys, one_device):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sharding, "make_mesh", lambda cfg: one_device)
    cfg = from_dict(Config, config_source.load("configs/quickstart.py"))
    small = replace(
        cfg,
        model={"vocab_size": 256, "num_layers": 1, "d_model": 32, "head_dim": 8, "d_ff": 128},
        data={"tokenizer": "bytes", "seq_len": 32},
        train={"loss_chunks": 1, "global_batch_size": 8},
    )
    before = list(tmp_path.iterdir())
    assert plan.here(small, "configs/quickstart.py") == 0
    said = capsys.readouterr().out
    assert said.startswith("configs/quickstart.py on cpu:1") and "FITS: " in said
    assert "memory per chip [compiler]" in said and list(tmp_path.iterdir()) == before
    judged = planner.of_traced
    for verdict, status in (({"fits": False}, 5), ({"silent_replication": ["all of it"]}, 3)):
        monkeypatch.setattr(planner, "of_traced", lambda *given, verdict=verdict: judged(*given) | verdict)
        assert plan.here(small, "") == status


def test_train_plan_trains_nothing(tmp_path, tmp_path_factory):
    commands = Commands(shared_cache(tmp_path_factory))
    workdir = tmp_path / "run"
    done = commands.run("experiments.train", *TINY, "--plan", f"--workdir={workdir}")
    assert "FITS: " in done.stdout and not workdir.exists()
