"""The cache of compiled programs, each process of its own: JAX settles on one when it first compiles."""

import os
import subprocess
import sys

import pytest

from kimiajax.runtime import compilation_cache

PROGRAM = """
import sys, jax, jax.numpy as jnp
from pathlib import Path
from kimiajax.runtime import compilation_cache
compilation_cache.LEAST_SECONDS = 0
kept = compilation_cache.keep_programs(Path(sys.argv[1]))
jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))))
print(None if kept is None else kept.count)
"""


def count(cache, **variables):
    own = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-c", PROGRAM, str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, env={**own, **variables}, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    assert count(tmp_path) == "0"
    assert int(count(tmp_path)) > 0


@pytest.mark.parametrize("variables", [{"JAX_COMPILATION_CACHE_DIR": "own"}, {"JAX_ENABLE_COMPILATION_CACHE": "false"}])
def test_a_cache_of_the_users_own_or_none_stands(tmp_path, variables):
    if "JAX_COMPILATION_CACHE_DIR" in variables:
        variables = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    assert count(tmp_path / "ours", **variables) == "None"
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert count(tmp_path / "file") == "None"


def test_the_oldest_programs_go_beyond_the_limit(tmp_path, monkeypatch):
    for age, name in enumerate(("new", "middle", "old")):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - age, 1000 - age))
    monkeypatch.setattr(compilation_cache, "LIMIT", 20)
    assert sorted(path.name for path in compilation_cache._bounded(tmp_path)) == ["middle-cache", "new-cache"]
    assert not (tmp_path / "old-cache").exists()
