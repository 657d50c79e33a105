"""`experiments.check`: what every check says of mistakes, its help, and the check of checkpoints."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the first argument names a check: the checks are equivalence, resume, mup, checkpoint and replay"),
        (
            ("equivalense",),
            "there is no check 'equivalense': the checks are equivalence, resume, mup, checkpoint and replay; did you",
        ),
        (("equivalence",), "--config=FILE[:ARG] is missing"),
        (("equivalence", "--config=configs/quickstart.py", "--meshes=daat=8"), "'daat=8' is not AXIS=SIZE"),
        (("equivalence", "--config=configs/quickstart.py", "--meshes=data=16"), "needs 16 devices, but there are 8"),
        (("checkpoint",), "--workdir is missing"),
        (("checkpoint", "--workdir=no/run"), "no/run is not the folder of a run"),
    ],
)
def test_mistakes_are_one_sentence(call_check, arguments, message):
    status, _, said = call_check(*arguments)
    assert status == 2 and message in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("name", [(), ("equivalence",), ("resume",), ("mup",), ("checkpoint",)])
def test_help(call_check, name):
    status, said, _ = call_check(*name, "--help")
    assert status == 0 and "python -m experiments.check" in said and "4 " in said


def test_checkpoints_of_a_run(call_check, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert call_check("checkpoint", f"--workdir={tmp_path}")[::2] == (2, f"error: {tmp_path} holds no checkpoint\n")
    # Orbax's files without digests, as a save leaves them that was killed.
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    status, said, _ = call_check("checkpoint", f"--workdir={tmp_path}")
    assert status == 4 and said.startswith("step 8: digests.json is missing")
