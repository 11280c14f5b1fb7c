"""Whole slides as people have them: read as they were drawn, or refused with the cause."""

import pytest
from support.slide_kinds import READ, REFUSED, assert_read, given

from faults.harness import ask, nothing_changes, refused


@pytest.mark.fault("slides")
@pytest.mark.parametrize("kind", READ.values(), ids=READ)
def test_slides_are_read_as_they_were_drawn(kind, tmp_path):
    assert_read(kind, tmp_path / "slides")


@pytest.mark.fault("slides")
@pytest.mark.parametrize(("write", "words", "flags"), REFUSED.values(), ids=REFUSED)
def test_slides_that_say_or_hold_too_little_are_refused_by_name(write, words, flags, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    write(folder)
    options = given(folder, flags)
    asked = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    with nothing_changes(tmp_path):
        refused(ask("data", "explain", "--scans", folder, *asked), *words)
