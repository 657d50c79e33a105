"""The table of chips is complete and sourced, and topologies are read as written or refused in one sentence."""

import dataclasses
import math
import re
import types

import pytest

from bigjax.preflight.plan.gpu_targets import gpu_target_config
from bigjax.run.chips import PEAK_FALLBACK, PlanError, chip, chip_data, chip_of_device_kind, chips, parse_topology
from bigjax.train.flops import peak_flops

NAMES = sorted(chips())
GPUS = [name for name in NAMES if chip(name).platform == "gpu"]


def test_the_ten_chips():
    assert set(NAMES) == {"v4", "v5e", "v5p", "v6e", "tpu7x", "a100", "h100", "h200", "b200", "gb200"}


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_positive_and_has_a_source(name):
    known = chip(name)
    figures = {
        field.name
        for field in dataclasses.fields(known)
        if field.name
        not in ("name", "vendor_name", "platform", "device_kind", "same_peak_kinds", "peak_flops", "sources", "note")
    } - ({"clock_hz"} if known.clock_hz is None else set())
    assert set(known.sources) == figures | {f"peak_flops.{dtype}" for dtype in known.peak_flops}
    assert all(getattr(known, figure) > 0 for figure in figures)
    assert all(peak > 0 for peak in known.peak_flops.values())
    assert all(len(source) > 20 for source in known.sources.values() if not source.startswith("JAX"))
    assert known.note


@pytest.mark.parametrize(("name", "units"), [("v4", 8), ("v5e", 4), ("v5p", 8)])
def test_the_clock_times_what_matrix_units_do_in_a_cycle_is_the_peak(name, units):
    # Each unit multiplies and adds 128 x 128 numbers a cycle (Jouppi et al. 2023, section 2.1).
    known = chip(name)
    assert known.clock_hz and known.clock_hz * units * 2 * 128 * 128 == pytest.approx(known.peak("bfloat16"), rel=0.002)


def test_every_source_is_used():
    data = chip_data()
    rows = [
        cell["source"]
        for row in data["chips"].values()
        for cell in (*row["peak_flops"].values(), *row["numbers"].values())
    ]
    rows += [row["gpu_target"]["source"] for row in data["chips"].values() if "gpu_target" in row]
    assert set(rows) == set(data["sources"])


@pytest.mark.parametrize("name", NAMES)
def test_bandwidths_fall_from_memory_to_the_slow_link(name):
    known = chip(name)
    assert known.hbm_bytes_per_s > known.ici_bytes_per_s > known.dcn_bytes_per_s


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
        ("TPU7x", 2307 / 2),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
    ],
)
def test_the_peak_of_devices_at_hand_is_that_of_their_data_sheet(kind, tflops):
    device = types.SimpleNamespace(device_kind=kind, platform="other")
    assert peak_flops([device] * 8) == 8 * tflops * 1e12


def test_what_has_other_memory_or_another_peak_is_no_chip_of_the_table():
    assert chip_of_device_kind("NVIDIA A100-SXM4-40GB") is None
    assert chip_of_device_kind("NVIDIA H100 PCIe", same_peak=True) is None
    assert chip_of_device_kind("TPU v5 lite") == chip("v5e")
    assert chip_of_device_kind("TPU v5") == chip("v5p")


def test_peaks_fall_back_by_the_stated_rule():
    assert chip("v5p").peak("float32") == chip("v5p").peak("bfloat16") == 459e12
    assert chip("h100").peak("float32") == chip("h100").peak_flops["tensorfloat32"] == 494.5e12
    for known in chips().values():
        assert all(known.peak(dtype) for dtype in PEAK_FALLBACK[known.platform])
    with pytest.raises(PlanError, match="float64"):
        chip("v4").peak("float64")


@pytest.mark.parametrize(
    ("text", "slices", "num_chips", "num_devices", "per_slice"),
    [
        ("v5p:8x8x4", 1, 256, 256, 256),
        ("v5e:16x16", 4, 1024, 1024, 256),
        ("tpu7x:4x4x4", 2, 128, 256, 128),
        ("v4:2x2x1", 1, 4, 4, 4),
        ("v6e:1x1", 1, 1, 1, 1),
        ("h100:8x8", 1, 64, 64, 8),
        ("a100:3x4", 1, 12, 12, 4),
        ("gb200:18x4", 1, 72, 72, 72),
        ("gb200:36x4", 1, 144, 144, 72),
        ("gb200:2x4", 1, 8, 8, 8),
    ],
)
def test_topologies(text, slices, num_chips, num_devices, per_slice):
    topology = parse_topology(text, slices)
    assert (topology.num_chips, topology.num_devices, topology.devices_per_slice) == (num_chips, num_devices, per_slice)
    assert topology.platform == topology.chip.platform
    assert hash(topology) == hash(parse_topology(text, slices))


def test_names_for_the_compilers():
    assert parse_topology("tpu7x:4x4x8", 2).libtpu_name == "tpu7x:4x4x8"
    assert parse_topology("h100:16x8").xla_gpu_name == "1x16x8"
    with pytest.raises(PlanError, match="libtpu"):
        _ = parse_topology("h100:16x8").libtpu_name
    with pytest.raises(PlanError, match="libtpu"):
        _ = parse_topology("v5e:4x4").xla_gpu_name


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("v4:2x2x1", (False, False, False)),
        ("v4:2x4x4", (False, False, False)),
        ("v4:4x4x4", (True, True, True)),
        ("v4:4x4x12", (True, True, True)),
        ("v5p:2x4x4", (False, False, False)),
        ("v5p:4x4x8", (True, True, True)),
        ("v5p:12x24x24", (True, True, True)),
        ("tpu7x:2x4x4", (False, False, False)),
        ("tpu7x:4x4x4", (True, True, True)),
        ("v5e:8x8", (False, False)),
        ("v5e:8x16", (False, True)),
        ("v5e:16x16", (True, True)),
        ("v6e:8x16", (False, True)),
        ("v6e:16x16", (True, True)),
        ("h100:16x8", (False, False)),
    ],
)
def test_which_axes_of_a_slice_close(text, closed):
    """As in the table of TPU types that MaxText compiles for, `accelerator_to_spec_map.py`, column `wrap`."""
    assert parse_topology(text).closed_axes == closed


@pytest.mark.parametrize(
    ("text", "slices", "words"),
    [
        ("v5:8x8", 1, ("'v5'", "v5p")),
        ("H100:8x8", 1, ("h100",)),
        ("nothing", 1, ("v5e", "h100")),
        ("v5p:8x8", 1, ("2 sizes", "3", "v5p:AxBxC")),
        ("v5e:8x8x8", 1, ("3 sizes", "v5e:AxB")),
        ("h100:8", 1, ("1 sizes", "h100:HOSTSxGPUS")),
        ("v5p", 1, ("v5p:AxBxC",)),
        ("v5p:8x8x2.5", 1, ("whole numbers",)),
        ("v5p:8x8x-4", 1, ("whole numbers",)),
        ("v5p:8x0x8", 1, ("at least 1",)),
        ("v5e:4x4", 0, ("num_slices=0",)),
        ("v4:16x16x32", 1, ("8192", "4096")),
        ("v5e:32x8", 1, ("at most 16",)),
        ("v6e:4x6", 1, ("power of two",)),
        ("v5p:3x4x4", 1, ("multiple of 4",)),
        ("h100:8x8", 2, ("num_slices=2", "HOSTSxGPUS")),
        ("h100:8x16", 1, ("at most 8",)),
        ("gb200:20x4", 1, ("18",)),
    ],
)
def test_what_is_refused_and_the_sentence(text, slices, words):
    with pytest.raises(PlanError) as caught:
        parse_topology(text, slices)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not re.search(r"[.!?]\s", message), "one sentence"


@pytest.mark.parametrize("name", GPUS)
def test_gpu_targets_agree_with_the_data_sheets(name):
    text, known = gpu_target_config(name), chip(name)
    figure = {key: float(value) for key, value in re.findall(r"(\w+): ([\d.]+)", text)}
    assert text.count("{") == text.count("}")
    assert figure["core_count"] in (108, 132, 148, 152)
    assert math.isclose(figure["memory_bandwidth"], known.hbm_bytes_per_s, rel_tol=0.05)
    assert math.isclose(figure["device_memory_size"], known.hbm_bytes, rel_tol=0.08)
    assert (figure["major"] >= 9) == ("ACCELERATED_FEATURES" in text)
    assert known.device_kind in text


def test_float32_rate_of_the_a100_follows_from_its_target():
    """19.5 TFLOP/s (A100 data sheet) = cores x units x 2 x clock."""
    figure = {key: float(value) for key, value in re.findall(r"(\w+): ([\d.]+)", gpu_target_config("a100"))}
    rate = 2 * figure["core_count"] * figure["fpus_per_core"] * figure["clock_rate_ghz"] * 1e9
    assert math.isclose(rate, 19.5e12, rel_tol=0.01)


def test_a_tpu_has_no_gpu_target():
    with pytest.raises(PlanError, match="libtpu"):
        gpu_target_config("v5p")
