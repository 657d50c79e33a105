"""The recorded outputs of the documentation are what the commands say today."""

import pytest

from benchmarks.recorded import chain, declared, differences, made, shortened

KNOWN = declared()

CHECKED = [
    name
    for name, recording in KNOWN.items()
    if not recording.long and not any(earlier.until or earlier.long for earlier in chain(recording, KNOWN)[:-1])
]
"""The recordings that do not go on from one which takes too long for a test."""


def test_what_is_another_output_and_what_is_the_clock():
    recorded = ["step 180/180  loss 6.608  4.1k tok/s  MFU 47.4 %  left 2m50s", "run 4161107e4f713f9b: 1,234 tokens"]
    again = ["step 180/180  loss 6.612  12k tok/s  MFU 7.4 %  left 9s", "run 4161107e4f713f9b: 1,234 tokens"]
    assert differences(recorded, again) == []
    for old, new in (("6.608", "6.808"), ("180/", "181/"), ("1,234", "1,235"), ("4161", "4162"), ("left", "right")):
        assert differences(recorded, [line.replace(old, new) for line in recorded])
    assert differences(recorded, recorded[:1]) and differences(recorded[:1], recorded)


def test_a_slow_machine_may_show_more_of_the_steps_in_between():
    recorded = ["step  1/40  loss 5.555", "step 40/40  loss 3.311  17.4k tok/s  left 0s"]
    slow = [recorded[0], "step 20/40  loss 3.561  6.2k tok/s  MFU 48.3 %  left 9s", recorded[1]]
    assert differences(recorded, slow) == []
    assert differences(recorded, slow[1:])


def test_a_long_one_is_followed_to_the_line_that_is_declared():
    assert shortened(["a", "b 1", "b 2"], "b") == ["a", "b 1"]
    assert shortened(["a", "b"], "") == ["a", "b"]


def test_each_is_declared_after_what_it_goes_on_from():
    for recording in KNOWN.values():
        assert [each.name for each in chain(recording, KNOWN)][-1] == recording.name


@pytest.mark.exhaustive
def test_the_commands_say_what_is_recorded(tmp_path):
    found = {}
    for recording, lines in made(CHECKED, tmp_path, whole=False):
        recorded = recording.file.read_text().splitlines()
        assert recorded[0].startswith("# 20")
        found[recording.name] = differences(shortened(recorded[1:], recording.until), lines)
    assert {name: said for name, said in found.items() if said} == {}
