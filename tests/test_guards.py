"""The list of guards that `tests/faults/guards.py` takes away: each stands where the list says, once."""

import pytest
from faults.guards import ROOT, all_guards


@pytest.mark.parametrize("guard", all_guards(), ids=lambda guard: guard.against.strip())
def test_every_guard_stands_where_the_list_says(guard):
    text = (ROOT / guard.file).read_text(encoding="utf-8")
    assert text.count(guard.old) == 1
    compile(text.replace(guard.old, guard.new), guard.file, "exec")
