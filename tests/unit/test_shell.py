"""What a shell or a caller says to JAX, Flax and XLA: set, dropped, recorded or refused, and none of it unknown."""

import os
import re
import threading

import flax
import jax
import numpy as np
import optax
import pytest
from support.networks import TWO
from support.python import run
from support.stored_runs import manifest_of, write_run

import kimiajax as kj
from kimiajax.cli.bug_report import for_an_issue
from kimiajax.cli.main import main
from kimiajax.errors import UserError
from kimiajax.evaluation.compare import compare_runs
from kimiajax.evaluation.stored import read_run
from kimiajax.features.extract import extract_taps
from kimiajax.runtime import shell
from kimiajax.runtime.environment import describe_environment

# Options of JAX that nothing here comes by: other compilers of kernels, exported programs, types of sharded arrays.
IDLE = re.compile(
    r"jax2tf_\w+|jax_(export|pallas|mosaic|ragged_dot|pgle|serialization)_\w+|jax_compilation_cache_\w+|jax_use_(magma|rgv3"
    r"|emit_pipeline_primitive|cpp_shard_args)|jax_remove_\w+|jax_auto_pcast|check_vma|jax_check_proxy_envs|\w*mock_\w+"
    r"|jax_(disable_vmap_shmap_error|mutable_array_checks|refs_to_pins|send_traceback_to_runtime|embedded_constants_max"
    r"_bytes|debug_leaked_clients_on_clear_backends|sort_devices_by_process_index|raise_on_ppermute_sort_diff"
    r"|remat_barrier_no_cotangents|no_collectives|default_device)"
)
OTHERS = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_enable_x64": True,
    "jax_default_matmul_precision": "bfloat16",
    "jax_random_seed_offset": 5,
    "jax_softmax_custom_jvp": True,
    "jax_debug_nans": True,
    "jax_disable_jit": True,
    "jax_transfer_guard": "disallow",
    "jax_disable_most_optimizations": True,
}


@pytest.fixture
def others():
    """Other values of the process, as a caller sets them."""
    before = {name: jax.config.values[name] for name in OTHERS}
    for name, value in OTHERS.items():
        jax.config.update(name, value)
    flax.config.update("flax_fix_rng_separator", True)
    yield {**OTHERS, "flax_fix_rng_separator": True}
    flax.config.update("flax_fix_rng_separator", False)
    for name, value in before.items():
        jax.config.update(name, getattr(value, "name", value).lower() if hasattr(value, "name") else value)


def values():
    return {**jax.config.values, "flax_fix_rng_separator": flax.config.flax_fix_rng_separator}


def test_every_option_of_this_version_of_jax_is_set_kept_or_idle():
    of = {
        name: [name in shell.STANDARD, bool(shell.KEPT.fullmatch(name.upper())), bool(IDLE.fullmatch(name))]
        for name in jax.config.values
    }
    assert not [name for name, kinds in of.items() if sum(kinds) == 0]
    assert not [name for name, kinds in of.items() if kinds[0] and kinds[1]]


def test_the_settings_are_those_that_jax_and_flax_begin_with():
    code = "import flax; from kimiajax.runtime import shell; print(shell._differing(), shell._options().keys())"
    done = run(f"import os; [os.environ.pop(name) for name in list(os.environ) if name.startswith('JAX_')]; {code}")
    assert done.stdout.startswith("{} "), done
    assert {"jax_enable_x64", "flax_fix_rng_separator"} <= set(re.findall(r"\w+", done.stdout))


def test_within_the_settings_hold_and_afterwards_what_the_caller_set(others):
    with shell.standard_settings(), shell.standard_settings():
        assert shell.recorded().keys() & others.keys() == set()
        assert jax.random.key(0).dtype == jax.random.key(0, impl="threefry2x32").dtype
        assert jax.numpy.asarray(np.zeros(1, np.float64)).dtype == np.float32
    assert {name: getattr(value, "value", value) for name, value in values().items() if name in others} == others
    assert shell.recorded().keys() >= others.keys()  # of what runs outside, a library's building block say


def test_they_hold_in_threads_of_the_work_and_until_the_last_of_two_ends(others):
    inside, leave, seen = threading.Event(), threading.Event(), []

    def work():
        with shell.standard_settings():
            inside.set()
            leave.wait(20)
            seen.append(jax.config.jax_enable_x64)

    worker = threading.Thread(target=work)
    with shell.standard_settings():
        worker.start()
        assert inside.wait(20)
    assert not jax.config.jax_enable_x64
    leave.set()
    worker.join()
    assert seen == [False]
    assert jax.config.jax_enable_x64


@pytest.mark.parametrize(
    ("context", "name"),
    [
        (lambda: jax.enable_x64(True), "jax_enable_x64=True"),
        (lambda: jax.default_prng_impl("rbg"), "jax_default_prng_impl=rbg"),
        (lambda: jax.numpy_rank_promotion("raise"), "jax_numpy_rank_promotion=raise"),
        (lambda: jax.debug_nans(True), "jax_debug_nans=True"),
    ],
)
def test_a_context_around_the_call_is_refused_by_name(context, name):
    with context(), pytest.raises(UserError, match=name), shell.standard_settings():
        pass
    assert not shell._differing()


@pytest.mark.parametrize(
    ("variables", "dropped"),
    [
        ({"JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg"}, ["JAX_DEFAULT_PRNG_IMPL=unsafe_rbg"]),
        ({"JAX_ENABLE_X64": "maybe", "JAX_NO_SUCH": "1"}, ["JAX_ENABLE_X64=maybe", "JAX_NO_SUCH=1"]),
        ({"FLAX_FIX_RNG_SEPARATOR": "true", "EAGER_CONSTANT_FOLDING": "1"}, None),
        ({"JAX_DEFAULT_DEVICE": "cpu", "JAX_DEBUG_INFS": "a\x1b[31m"}, None),
    ],
)
def test_variables_that_change_figures_are_dropped_and_told(variables, dropped):
    environ = {**variables, "JAX_PLATFORMS": "cpu", "JAX_LOG_COMPILES": "1", "JAX_COORDINATOR_ADDRESS": "a:1", "A": "b"}
    said = shell.drop_variables(environ)
    assert len(said) == len(variables)
    assert dropped is None or said == dropped
    assert not any("\x1b" in line for line in said)
    assert set(environ) == {"JAX_PLATFORMS", "JAX_LOG_COMPILES", "JAX_COORDINATOR_ADDRESS", "A"}


def test_variables_that_say_what_holds_anyway_are_dropped_in_silence():
    environ = {"JAX_ENABLE_X64": "0", "JAX_THREEFRY_PARTITIONABLE": "on", "JAX_NUMPY_RANK_PROMOTION": "allow"}
    environ |= {"JAX_RANDOM_SEED_OFFSET": "0", "JAX_DEFAULT_MATMUL_PRECISION": ""}
    assert shell.drop_variables(environ) == []
    assert environ == {}


def test_a_command_tells_what_it_drops_and_needs_no_jax_for_it(monkeypatch, capsys):
    monkeypatch.setenv("JAX_DEFAULT_PRNG_IMPL", "rbg")
    assert main(["--version"]) == 0
    assert capsys.readouterr().err == "JAX_DEFAULT_PRNG_IMPL=rbg is not used: figures must not depend on it\n"
    assert "JAX_DEFAULT_PRNG_IMPL" not in os.environ


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("", {}),
        ("--xla_dump_to=/x --xla_force_host_platform_device_count=8", {}),
        ("--xla_cpu_enable_fast_math", {"--xla_cpu_enable_fast_math": "true"}),
        ("--xla_a=1 --xla_dump_hlo_as_text --xla_a=2", {"--xla_a": "2"}),
        ("--xla_b='x y' --xla_a=", {"--xla_a": "true", "--xla_b": "x y"}),
        ("--xla_a='", {"--xla_a": "'"}),
    ],
)
def test_flags_of_xla_are_read_as_xla_reads_them(text, flags, tmp_path):
    (tmp_path / "flags").write_text(text)
    assert shell.xla_flags(text) == flags
    assert shell.xla_flags(str(tmp_path / "flags")) == flags
    assert shell.xla_flags("elsewhere") == {"XLA_FLAGS": "elsewhere"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("--xla_no_such_flag=1", "Unknown flag"),
        ("--xla_cpu_enable_fast_math=maybe", "interpret value maybe"),
        ("/nowhere/flags", "Could not open file"),
    ],
)
def test_flags_that_would_end_the_process_are_refused_by_name(text, why):
    with pytest.raises(UserError, match=rf"^XLA_FLAGS=.*{why}.*correct the variable"):
        shell.check_xla_flags(text)


def test_flags_that_jaxlib_knows_are_not_refused():
    shell.check_xla_flags("--xla_cpu_enable_fast_math=true")


def test_what_no_program_can_set_is_recorded_and_what_changes_no_figure_is_not(monkeypatch):
    monkeypatch.setattr(os, "environ", {"HOME": "/", "MKL_NUM_THREADS": "2", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"})
    assert shell.recorded() == {}
    assert "shell" not in describe_environment()
    said = {
        "NPROC": "1",
        "NVIDIA_TF32_OVERRIDE": "1",
        "LIBTPU_INIT_ARGS": "--xla_tpu_a",
        "NPY_DISABLE_CPU_FEATURES": "AVX2",
    }
    said |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "JAX_NO_SUCH": "1", "NPROC": "1"}
    os.environ.update(said, XLA_FLAGS="--xla_cpu_ftz=false", TF_CPP_MIN_LOG_LEVEL="3", CUDNN_LOGINFO_DBG="1")
    assert describe_environment()["shell"] == {"--xla_cpu_ftz": "false", **said}


def test_a_report_of_a_bug_names_the_variables_and_no_folder(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_a=/home/somebody")
    told = for_an_issue()
    assert "LIBTPU_INIT_ARGS" in next(line for line in told.splitlines() if line.startswith("shell: "))
    assert "/home/somebody" not in told


def test_compare_names_what_the_shells_of_two_runs_said(tmp_path):
    scans = manifest_of([3, 3])
    rows, told = {"cnn": scans.labels("test")}, {}
    for name, environment in {
        "old": {"xla_flags": "--xla_cpu_enable_fast_math=true --xla_dump_to=/x"},
        "none": {"xla_flags": None},
        "now": {"xla_flags": None, "shell": {"NVIDIA_TF32_OVERRIDE": "1"}},
    }.items():
        base = {"kimiajax": "0.1.0", "revision": "abc", "devices": ["cpu"], "packages": {"jax": "1"}}
        write_run(tmp_path / name, scans, rows, environment={**base, **environment})
        told[name] = read_run(tmp_path / name)
    found = compare_runs(told["old"], told["now"], draws=50).differences
    assert found == [
        'program/shell/--xla_cpu_enable_fast_math: "true" in A, null in B',
        'program/shell/NVIDIA_TF32_OVERRIDE: null in A, "1" in B',
    ]
    assert compare_runs(told["none"], told["none"], draws=50).differences == []


def test_compare_names_another_processor_and_other_cores(tmp_path):
    """By which XLA cuts its sums."""
    scans = manifest_of([3, 3])
    base = {"kimiajax": "0.1.0", "revision": "abc", "devices": ["cpu"], "packages": {}, "processor": "x"}
    for cores in (1, 2):
        rows = {"cnn": scans.labels("test")}
        write_run(tmp_path / f"{cores}", scans, rows, environment={**base, "cores": cores})
    one, two = (read_run(tmp_path / name) for name in ("1", "2"))
    assert compare_runs(one, two, draws=50).differences == ["machine/cores: 1 in A, 2 in B"]


def test_training_by_a_building_block_is_the_same_under_another_callers_settings(rng, request):
    """Another kind of keys among them."""
    training = kj.Training(kj.Classifier(TWO, (), 2), optax.sgd(0.1), kj.TrainableBlocks(("head",)))
    layers = {"hidden": (8, 8), "logits": (8, 2)}
    dense = lambda shape: {"kernel": rng.random(shape, np.float32), "bias": np.zeros(shape[1], np.float32)}  # noqa: E731
    start = {"params": {"head": {name: dense(shape) for name, shape in layers.items()}}}
    inputs, labels = rng.random((8, 8), np.float32), np.arange(8) % 2
    train = lambda: kj.fit(training, start, inputs, labels, epochs=2, batch_size=4, seed=0)[1]  # noqa: E731
    expected = [epoch.loss for epoch in train()]
    request.getfixturevalue("others")
    jax.config.update("jax_enable_x64", False)  # which a caller of these may mean
    assert [epoch.loss for epoch in train()] == expected


def test_features_of_another_shell_are_not_found_in_the_cache(tmp_path, monkeypatch, rng):
    variables, images = TWO.init(rng, 32), rng.integers(0, 255, (2, 32, 32), np.uint8)
    found = [extract_taps(TWO, variables, images, [TWO.features], cache=tmp_path).cached for _ in range(2)]
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    found += [extract_taps(TWO, variables, images, [TWO.features], cache=tmp_path).cached for _ in range(2)]
    assert found == [False, True, False, True]
