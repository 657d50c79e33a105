"""The benchmark of accelerators: it finds an attention back end that is wrong, and says what did not run."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator, accelerator_parts
from bigjax.config import MeshConfig, replace
from bigjax.models.attention import backends
from bigjax.preflight.equivalence import compare


@pytest.fixture(scope="module")
def cfg():
    """A small llama in float32 that attends by the back end `xla`."""
    whole = replace(accelerator_parts.config("160m", "cpu", 1, 8, True), model={"attention": "xla"})
    return dataclasses.replace(compare.small(whole)[0], mesh=MeshConfig(data=1))


def test_a_back_end_that_sees_other_documents_is_found(cfg, monkeypatch):
    device = jax.devices()[0]
    right = backends.BACKENDS["xla"]
    assert accelerator_parts.against_cpu(cfg, device, device)["same"]

    def leaking(q, k, v, mask, **how):
        return right.attend(q, k, v, dataclasses.replace(mask, segments_BS=jnp.zeros_like(mask.segments_BS)), **how)

    monkeypatch.setitem(backends.BACKENDS, "xla", dataclasses.replace(right, attend=leaking))
    found = accelerator_parts.against_cpu(cfg, device, device)
    assert not found["same"] and found["reason"].startswith("mean loss: off by ")


def test_what_was_not_timed_is_left_out_of_the_table():
    timed = {
        "parameters": 162_417_408,
        "tokens_per_s": 98_304.0,
        "step_s": 0.5,
        "mfu": 0.412,
        "plan_step_s": {"low": 0.4, "mid": 0.5, "high": 0.6},
        "plan_bytes": 2**30,
        "compiler_bytes": 2**31,
        "peak_bytes": None,
    }
    lines = accelerator.table({"seconds": 3.0, "160m": timed, "1b": {"error": "no time was left"}}).splitlines()
    assert len(lines) == 3
    assert "| 160m | 162,417,408 | 98,304 | 41.2% | 500 ms | 400-600 ms |" in lines[2]
    assert "1.00 GiB, 2.00 GiB by the compiler" in lines[2]


def test_a_part_that_fails_is_said(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["accelerator", "--tiny", "--parts=160m", "--budget_s=0"])
    assert accelerator.main() == 1
    assert "no time was left: --budget_s allows more" in capsys.readouterr().out
