"""The page of a report in headless Chromium: charts are drawn, sorting and filtering work, the console stays silent."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments import cli
from experiments import report as command
from tests.scaling_points import HOFFMANN, loss_of
from tests.synthetic_runs import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--enable-logging=stderr"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1600"),
)

PROBE = Path(__file__).with_name("report_probe.js")
"""Uses the page as a reader would, and leaves what it saw in `<pre id="probe">`."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Four widths by three lengths by two seeds of a law with noise, and a run that diverged."""
    root = tmp_path_factory.mktemp("page") / "runs"
    for i, width in enumerate((64, 128, 256, 512)):
        for j, steps in enumerate((20, 40, 80)):
            size, tokens = 1e7 * 4**i, 5e8 * 4 ** (i + j)
            for seed in (0, 1):
                loss = float(loss_of(HOFFMANN, size, tokens)) + 0.004 * (seed - 0.5) * (-1) ** (i + j)
                how = {"train": {"steps": steps}, "model": {"d_model": width}, "params": size, "tokens": tokens}
                write_run(root / f"w{width}-n{steps}-s{seed}", loss, seed=seed, **how)
    write_run(root / "diverged <b>&amp;", None, seed=9, last=float("nan"))
    return root


@pytest.fixture(scope="module")
def browsed(runs, tmp_path_factory) -> tuple[dict, list[str]]:
    """What the probe saw on the page, and the lines of the console."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    out = tmp_path_factory.mktemp("browser")
    argv = ["report", f"--runs={runs}/*", f"--out={out}", "--question=Is <b>wider</b> better?"]
    cli.main(command.main, doc=command.__doc__, define_flags=command.define_flags, config=False, argv=argv)
    page = (out / "index.html").read_text(encoding="utf-8")
    (out / "probed.html").write_text(
        page.replace("</body>", f"<script>{PROBE.read_text()}</script></body>"), encoding="utf-8"
    )
    flags = (*FLAGS, f"--user-data-dir={out / 'profile'}", "--virtual-time-budget=10000", "--dump-dom")
    done = subprocess.run(
        [CHROMIUM, *flags, (out / "probed.html").as_uri()], capture_output=True, text=True, timeout=300
    )
    found = re.findall(r'<pre id="probe">(\{.*?\})</pre>', done.stdout, re.DOTALL)
    assert found, f"the page did not come to its end:\n{done.stderr[-3000:]}"
    return json.loads(html.unescape(found[0])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_nothing_but_the_probe_is_on_the_console(browsed):
    seen, console = browsed
    assert "error" not in seen, seen["error"]
    assert len(console) == 1 and "the probe has ended" in console[0], console
    assert seen["fetched"] == []


def test_charts_are_drawn(browsed):
    seen, _ = browsed
    assert seen["charts"] == {"curves": 25 * 2, "ablation": 2, "parallel": 24}
    assert seen["heat"] == 1 and seen["line"] == 1
    assert len(seen["images"]) >= 3 and all(seen["images"])
    assert seen["overflow"] <= 0


def test_curves_follow_their_controls(browsed):
    seen, _ = browsed
    step = seen["ends"]["step"]  # of the run that diverged, whose FLOPs are those of the others of its width
    assert step == 20
    assert seen["ends"]["tokens"] == step * 4 * 256 and seen["ends"]["time"] == 0.5 * step
    assert seen["ends"]["flops"] == pytest.approx(step * 4 * 256 * 6 * 1.6e8, rel=1e-6)
    assert seen["axes"] == ["log", "log"] and seen["linear"] == "linear" and seen["smoother"]


def test_tables_sort_by_number_and_by_name(browsed):
    seen, _ = browsed
    rising = [float(text) for text in seen["ascending"] if text]
    assert len(rising) == 24 and rising == sorted(rising) and seen["ascending"][-1] == ""
    assert seen["sorted"] == "ascending"
    falling = [float(text) for text in seen["descending"] if text]
    assert falling == sorted(rising, reverse=True) and seen["descending"][-1] == ""
    assert (
        seen["byName"][:3] == ["diverged <b>&amp;", "w64-n20-s0", "w64-n20-s1"] and seen["byName"][-1] == "w512-n80-s1"
    )


def test_the_filter_chooses_rows_and_curves(browsed):
    seen, _ = browsed
    widths, seeds, losses = seen["filtered"]
    assert set(widths) == {"256", "512"} and set(seeds) == {"1"} and len(losses) == 6
    assert seen["curves"] == 12, "six curves, and each of them before it is smoothed"
    assert seen["diverged"] == ["diverged <b>&amp;"]


def test_a_row_opens_to_its_folder_and_command(browsed, runs):
    seen, _ = browsed
    assert f"{runs}/diverged <b>&amp;" in seen["opened"] and "$ python -m bigjax train --config=" in seen["opened"]
    assert "left out of statistics: diverged: train/loss is nan after 20 of 40 steps" in seen["opened"]


def test_the_theme_can_be_changed(browsed):
    seen, _ = browsed
    assert [seen["theme"], *seen["dark"]] == ["light", "dark", "rgb(17, 21, 27)"]
