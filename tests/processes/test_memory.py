"""How freed memory is kept, each process of its own: what is set holds until it ends."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from kimiajax.runtime import allocator

kept = sys.argv[1] == "keep" and allocator.keep_freed()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)  # 64 MiB, beyond what glibc would keep
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, allocator.settings())
"""


def told(what, **variables):
    """Whether it keeps, the page faults of the second array, and the settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    own.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what], capture_output=True, text=True, env={**own, **variables}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    kept, faults, settings = done.stdout.split(maxsplit=2)
    return kept == "True", int(faults), settings.strip()


def test_a_large_array_that_was_freed_is_handed_out_again_without_page_faults():
    kept, faults, settings = told("keep")
    if kept:  # another C library keeps as it likes
        assert faults < 100
        assert "MALLOC_MMAP_MAX_" in settings
    assert told("leave")[2] == "{}"


def test_the_variables_say_to_a_child_process_what_the_options_say_to_this_one():
    from kimiajax.runtime import allocator

    kept, faults, settings = told("keep", **allocator.VARIABLES)
    assert not kept
    assert settings == str(allocator.VARIABLES)
    if told("keep")[0]:
        assert faults < 100 < told("leave")[1]


@pytest.mark.parametrize("variables", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}])
def test_a_setting_of_the_users_own_stands(variables):
    assert told("keep", **variables)[::2] == (False, str(variables))
