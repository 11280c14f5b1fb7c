"""The same table in shells that say something to JAX, Flax and XLA, in an empty one, and for a user without a name."""

import os
import shutil
import subprocess
import sys

import pytest
from support.runs import predictions, rows_of

from faults.harness import Ended, alone, ask, refused

TABLE = ["table", "quick", "--rows", "cnn", "floor_histogram", "--image-size", "32", "--patches-per-scan", "4"]
TABLE += ["--epochs", "2", "--batch-size", "4", "--conv", "plain"]
SET = [
    ("JAX_DEFAULT_PRNG_IMPL=rbg", "JAX_NUMPY_DTYPE_PROMOTION=strict"),
    ("JAX_DEFAULT_PRNG_IMPL=unsafe_rbg", "JAX_DISABLE_JIT=1"),
    ("JAX_THREEFRY_PARTITIONABLE=false", "JAX_DEBUG_NANS=1", "JAX_SOMETHING_NEW=1"),
    ("JAX_ENABLE_X64=1", "JAX_TRANSFER_GUARD=disallow"),
    ("JAX_ENABLE_X64=x", "JAX_NUMPY_RANK_PROMOTION=raise", "JAX_DISABLE_MOST_OPTIMIZATIONS=1"),
    ("JAX_DEFAULT_MATMUL_PRECISION=bfloat16", "JAX_LEGACY_PRNG_KEY=error", "JAX_CHECK_TRACER_LEAKS=1"),
    ("JAX_RANDOM_SEED_OFFSET=9", "JAX_NO_TRACING=1"),
    ("FLAX_FIX_RNG_SEPARATOR=1", "FLAX_RETURN_FROZENDICT=1"),
]
RECORDED = {
    "XLA_FLAGS=--xla_cpu_enable_fast_math=true": "--xla_cpu_enable_fast_math",
    "XLA_FLAGS=--xla_backend_optimization_level=1": "--xla_backend_optimization_level",
    "NPY_DISABLE_CPU_FEATURES=AVX2": "NPY_DISABLE_CPU_FEATURES",
}
REFUSED = ["XLA_FLAGS=--xla_nothing=1", "XLA_FLAGS=nowhere", "JAX_LOG_COMPILES=x", "JAX_NUM_CPU_DEVICES=x"]
# What a process of a user without an entry finds, where a test cannot become such a user.
NAMELESS = """
import pwd
def unknown(number): raise KeyError(f"uid not found: {number}")
pwd.getpwuid = unknown
"""
SETPRIV = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", "--inh-caps=+dac_read_search"]


def plain():
    """The variables of this process without those of JAX."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}


def below():
    """What this machine's shell says to libraries of linear algebra, which another shell would not say."""
    return {name: value for name, value in os.environ.items() if name.startswith(("OPENBLAS", "NPY_", "MKL_"))}


def run(scans, cache, out, *variables, **options):
    """The table under some variables; features and heads of other runs are not there."""
    for kind in ("features", "heads"):
        shutil.rmtree(cache / kind, ignore_errors=True)
    programs = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**options.pop("env", {**plain(), **programs}), **dict(each.split("=", 1) for each in variables)}
    command = [*TABLE, "--scans", scans, "--cache", cache, "--out", out]
    return alone(*command, env=environment, **options)


@pytest.fixture(scope="module")
def base(scans, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "run"
    assert run(scans, cache, out).status == 0
    return out


def check_same(out, base):
    for row in ("cnn", "floor_histogram"):
        assert predictions(out, row) == predictions(base, row)
    now, before = (rows_of(folder)[1]["cnn"]["learnt_sha256"] for folder in (out, base))
    assert now == before
    assert "program/shell" not in ask("compare", out, base).shown


@pytest.mark.fault("shells")
@pytest.mark.parametrize("variables", SET)
def test_what_is_said_to_jax_or_flax_is_not_used_and_that_is_told(variables, scans, cache, base, tmp_path):
    ended = run(scans, cache, tmp_path / "run", *variables)
    assert ended.status == 0, ended.said
    told = {line.partition(" is not used: ")[0] for line in ended.said.splitlines() if "figures must not" in line}
    assert told == set(variables)
    check_same(tmp_path / "run", base)


@pytest.mark.fault("shells")
@pytest.mark.parametrize("variable", RECORDED)
def test_what_no_program_can_set_is_named_by_compare(variable, scans, cache, base, tmp_path):
    assert run(scans, cache, tmp_path / "run", variable).status == 0
    assert f"program/shell/{RECORDED[variable]}: " in ask("compare", tmp_path / "run", base).shown


@pytest.mark.fault("shells")
@pytest.mark.parametrize("variable", REFUSED)
def test_what_would_end_the_process_is_refused_by_name(variable, scans, cache, tmp_path):
    refused(run(scans, cache, tmp_path / "run", variable), variable.partition("=")[0])
    assert not (tmp_path / "run").exists()


@pytest.mark.fault("shells")
def test_an_empty_shell_gives_the_same_table(scans, cache, base, tmp_path):
    ended = run(scans, cache, tmp_path / "run", env={**below(), "PATH": "/usr/bin:/bin"})
    assert ended.status == 0, ended.said
    check_same(tmp_path / "run", base)


@pytest.fixture
def nameless(tmp_path):
    """Runs a command as a user without an entry and without HOME, in an empty shell; on a folder of its own."""
    tmp_path.chmod(0o777)
    for above in tmp_path.parents:
        if above.owner() == tmp_path.owner() and str(above).startswith("/tmp/"):
            above.chmod(above.stat().st_mode | 0o055)
    empty = {**below(), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}

    def run_there(*arguments):
        if os.geteuid() != 0 or shutil.which("setpriv") is None:
            return alone(*arguments, env=empty, before=NAMELESS, cwd=tmp_path)
        command = [*SETPRIV, "--ambient-caps=+dac_read_search", sys.executable, "-m", "kimiajax", *map(str, arguments)]
        done = subprocess.run(command, env=empty, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        return Ended(done.returncode, done.stderr, done.stdout)

    return run_there


@pytest.mark.fault("homes")
def test_a_user_without_a_name_or_a_home_works_as_any_other(nameless, scans, base, tmp_path):
    small = ["--image-size", "32", "--conv", "plain", "--patches-per-scan", "2"]
    commands = [
        ["data", "explain", "--scans", scans],
        [*TABLE, "--scans", scans, "--out", "run"],
        ["report", "run"],
        ["compare", "run", "run"],
        ["features", "cnn", "--weights", "random", "--scans", scans, *small, "--out", "features"],
        ["predict", "run/cnn", scans, "--split", "test"],
        ["--version", "--verbose"],
    ]
    for command in commands:
        ended = nameless(*command)
        assert ended.status == 0, (command, ended)
        assert "Traceback" not in ended.said
    check_same(tmp_path / "run", base)
    (folder,) = tmp_path.glob("kimiajax-*")
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.fault("homes")
@pytest.mark.parametrize("kind", [0o755, 0o777])
def test_a_cache_that_others_can_reach_is_refused_and_the_flag_named(nameless, scans, tmp_path, kind):
    for user in (os.geteuid(), 54321):
        (tmp_path / f"kimiajax-{user}").mkdir()
        (tmp_path / f"kimiajax-{user}").chmod(kind)
    refused(nameless("data", "explain", "--scans", scans), "no home folder", "not this user's alone", "--cache")
