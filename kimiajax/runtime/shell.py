"""What the shell, or a caller, says to JAX, Flax and XLA: figures must not depend on it without anybody knowing.

Each setting is one of three. What changes no figure is left as it is: devices, logs, caches, the network (`KEPT`). What
the program can set, it sets (`STANDARD`): commands drop the variables of the others before JAX reads them, and library
functions compute within `standard_settings`, those that train and extract in double precision too where the caller has
it. What the program cannot set is recorded with each result (`recorded`).
"""

import contextlib
import enum
import functools
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kimiajax.errors import UserError
from kimiajax.runtime import streams
from kimiajax.text import first_line, quoted

OFF = (
    *("enable_x64", "enable_custom_prng", "threefry_gpu_kernel_lowering", "high_dynamic_range_gumbel"),
    *("softmax_custom_jvp", "disable_jit", "disable_most_optimizations", "disable_bwd_checks", "no_execution"),
    *("no_tracing", "check_tracer_leaks", "debug_key_reuse", "debug_nans", "debug_infs", "enable_checks"),
    *("check_static_indices", "thread_guard", "accurate_erf_inv", "bcoo_cusparse_lowering", "scan3", "remat3"),
    *("custom_vjp3", "custom_jvp3", "use_simplified_jaxpr_constants", "enable_pgle", "raise_persistent_cache_errors"),
    *("experimental_unsafe_xla_runtime_errors", "disallow_mesh_context_manager"),
)
STANDARD: dict[str, Any] = {  # options of JAX, of which a version may lack some, with JAX's own defaults
    **{f"jax_{name}": False for name in OFF},
    "eager_constant_folding": False,
    "jax_threefry_partitionable": True,
    "jax_allow_f16_reductions": True,
    "jax_compiler_enable_remat_pass": True,
    "jax_use_direct_linearize": True,
    "jax_use_shardy_partitioner": True,
    "jax_default_prng_impl": "threefry2x32",
    "jax_random_seed_offset": 0,
    "jax_legacy_prng_key": "allow",
    "jax_numpy_rank_promotion": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_explicit_x64_dtypes": "warn",
    "jax_default_matmul_precision": None,  # `products_in` says it where products are traced
    "jax_use_hlo_logistic_lowering": None,
    "jax_exec_time_optimization_effort": 0.0,
    "jax_memory_fitting_effort": 0.0,
    "jax_optimization_level": "UNKNOWN",
    "jax_memory_fitting_level": "O2",
    "jax_xla_profile_version": 0,
    **{f"jax_error_checking_behavior_{what}": "ignore" for what in ("nan", "divide", "oob")},
    **{f"jax_transfer_guard{way}": None for way in ("", "_host_to_device", "_device_to_device", "_device_to_host")},
    "jax_array_garbage_collection_guard": None,
}
DOUBLES = ("jax_enable_x64",)  # which who trains in double precision means
FLAX = {"flax_fix_rng_separator": False, "flax_preserve_adopted_names": False, "flax_return_frozendict": False}

# Variables that change no figure: which devices there are, what is told, what is kept, how processes meet.
KEPT = re.compile(
    r"JAX_(PLATFORMS|PLATFORM_NAME|XLA_BACKEND|BACKEND_TARGET|FORCE_TPU_INIT|GPU_MAGMA_PATH|\w+_VISIBLE_DEVICES"
    r"|NUM_CPU_DEVICES|CPU_ENABLE_ASYNC_DISPATCH|PJRT_CLIENT_CREATE_OPTIONS"
    r"|ENABLE_COMPILATION_CACHE|COMPILATION_CACHE_(DIR|MAX_SIZE)|PERSISTENT_CACHE_\w+"
    r"|LOG_\w+|LOGGING_LEVEL|DEBUG_LOG_MODULES|COMPILER_DETAILED_LOGGING_\w+|EXPLAIN_CACHE_MISSES|DUMP_\w+|INCLUDE_\w+"
    r"|CAPTURED_CONSTANTS_\w+|PPRINT_USE_COLOR|TRACEBACK_\w+|TRACER_ERROR_\w+|SOURCE_URL_SCHEMA|HLO_SOURCE_\w+"
    r"|COORDINATOR_\w+|LOCAL_DEVICE_IDS|NUM_PROCESSES|PROCESS_ID|PARTITION_INDEX|SLICE_INDEX|CPU_COLLECTIVES_\w+"
    r"|CPU_GET_\w+|CROSS_HOST_\w+|FORCE_DCN_\w+|SHARE_BINARY_\w+|MTLS_\w+|DISTRIBUTED_\w+|ENABLE_PREEMPTION_SERVICE"
    r"|ENABLE_RECOVERABILITY|TEST_\w+|SKIP_\w+)"
    r"|FLAX_(PROFILE|FILTER_FRAMES|MAX_REPR_DEPTH)"
)
OF_JAX = re.compile(r"JAX\w*|FLAX_\w+|EAGER_CONSTANT_FOLDING|CHECK_VMA|MOCK_NUM_GPU_PROCESSES")
# What libraries below JAX and NumPy read, and no program can take back; but for what they tell, and memory. XLA cuts
# its sums by the threads of NPROC.
BELOW = re.compile(
    r"NPROC|LIBTPU_INIT_ARGS|NVIDIA_TF32_OVERRIDE|GLIBC_TUNABLES|OPENBLAS_CORETYPE|KMP_DETERMINISTIC_REDUCTION"
    r"|(NCCL|CUBLAS|CUBLASLT|CUDNN|HIPBLASLT|ROCBLAS|MIOPEN|TENSILE|XLA|ONEDNN|DNNL|MKL|NPY)_\w+"
    r"|TF_(XLA_FLAGS|CUDNN_\w+|ENABLE_\w+|DISABLE_\w+|USE_\w+|DETERMINISTIC_\w+|CUBLAS_\w+|NUMERICS_\w+)"
)
TELLING = re.compile(
    r"XLA_FLAGS|XLA_(PYTHON_)?CLIENT_\w+|\w+_(LOG\w*|LOGINFO\w*|VERBOSE)"
    r"|\w+_(NUM|DYNAMIC)(_THREADS)?|\w+_CACHE_(DIR|PATH|CAPACITY)"
)
QUIET_FLAGS = re.compile(  # of XLA
    r"xla_dump_\w+|xla_force_host_platform_device_count|xla_hlo_profile|xla_hlo_print_\w+|xla_embed_ir_in_executable"
    r"|xla_gpu_(per_fusion_autotune_cache_dir|cuda_data_dir|force_compilation_parallelism|generate_\w+"
    r"|experimental_dump_\w+)|xla_cpu_parallel_codegen_split_count"
)
# Makes jaxlib read XLA_FLAGS, over which it aborts the process where it knows a flag or a value not.
READ_FLAGS = "from jaxlib import _jax; _jax.CompileOptions()"

_lock = threading.Lock()
_before: dict[str, Any] = {}
_within = 0


def enter(began_here: bool) -> None:
    """Settles the streams and the variables of a program, which calls this before it imports JAX.

    Args:
        began_here: the program is this process, and not a function of another one's.
    """
    if began_here:
        streams.in_utf8()
    streams.settle()
    for variable in drop_variables(os.environ):
        streams.tell(f"{variable} is not used: figures must not depend on it")


def drop_variables(environ: MutableMapping[str, str]) -> list[str]:
    """Removes the variables that JAX and Flax must not read, for a command to call before it imports JAX.

    Returns:
        Those that said something else than the program's settings, as NAME=value.
    """
    names = [name for name in environ if OF_JAX.fullmatch(name) and not KEPT.fullmatch(name)]
    given = {name: environ.pop(name) for name in sorted(names)}
    known = {**STANDARD, **FLAX}
    return [
        f"{name}={quoted(value)[1:-1]}"
        for name, value in given.items()
        if name.lower() not in known or _read_as(value) != _read_as(str(known[name.lower()]))
    ]


def _read_as(value: str) -> str:
    """A variable's value in one of the ways in which JAX takes it."""
    value = value.lower()
    switches = {"true": ("y", "yes", "t", "on", "1"), "false": ("n", "no", "f", "off", "0", "0.0"), "none": ("",)}
    return next((name for name, ways in switches.items() if value in ways), value)


@contextlib.contextmanager
def standard_settings(but: Collection[str] = ()) -> Iterator[None]:
    """Within, JAX and Flax compute by the program's settings, whatever was set before, which then holds again.

    Args:
        but: options that stay as the caller has them.

    Raises:
        UserError: a context of the caller's, such as `jax.enable_x64(True)`, rules this thread.
    """
    global _within
    import jax

    with _lock:
        if not _within:
            with ThreadPoolExecutor(1) as fresh:  # a thread within no context: the values of the process
                _before.update(fresh.submit(_differing, but).result())
            _set({name: _wanted(name) for name in _before})
        _within += 1
    try:
        if ruled := [f"{name}={value}" for name, value in _differing(but).items()]:
            raise UserError(
                f"{', '.join(ruled)}: a context around this call, or this version of JAX ({jax.__version__}), holds to "
                "it, and figures would differ; call from outside that context"
            )
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                _set(_before)
                _before.clear()


def _wanted(name: str) -> Any:
    return STANDARD[name] if name in STANDARD else FLAX[name]


def _options() -> dict[str, Any]:
    """The values that hold in this thread of what the program sets; of Flax where it is imported."""
    import jax

    found = {name: value for name, value in jax.config.values.items() if name in STANDARD}
    if "flax" in sys.modules:
        import flax

        found |= {name: getattr(flax.config, name) for name in FLAX if hasattr(flax.config, name)}
    return {name: _plain(value) for name, value in found.items()}


def _differing(but: Collection[str] = ()) -> dict[str, Any]:
    """Those that are not as the program sets them."""
    return {name: value for name, value in _options().items() if value != _wanted(name) and name not in but}


def _plain(value: Any) -> Any:
    return value.name.lower() if isinstance(value, enum.Enum) else value


def _set(values: dict[str, Any]) -> None:
    import jax

    for name, value in values.items():
        if name in FLAX:
            import flax

            flax.config.update(name, value)
        else:
            jax.config.update(name, value)


def recorded() -> dict[str, str]:
    """Returns what holds here, may change figures, and the program does not set: values by variable, flag or option."""
    odd = {name: str(value) for name, value in _differing().items()}
    unknown = {
        name: value
        for name, value in os.environ.items()
        if OF_JAX.fullmatch(name) and not KEPT.fullmatch(name) and name.lower() not in {**STANDARD, **FLAX}
    }
    below = {name: value for name, value in os.environ.items() if BELOW.fullmatch(name) and not TELLING.fullmatch(name)}
    return {**xla_flags(os.environ.get("XLA_FLAGS", "")), **dict(sorted({**odd, **unknown, **below}.items()))}


def xla_flags(text: str) -> dict[str, str]:
    """The flags of XLA that may change figures, "--xla_cpu_enable_fast_math", with their values; the last one counts.

    Args:
        text: what XLA_FLAGS says, or the file that it names.
    """
    if text and not text.lstrip().startswith("-"):
        try:
            text = Path(text).read_text(encoding="utf-8", errors="replace")
        except OSError:  # of another machine, say
            return {"XLA_FLAGS": text}
    try:
        flags = shlex.split(text)
    except ValueError:  # a quotation mark alone
        flags = text.split()
    pairs = {name: value for name, _, value in (flag.partition("=") for flag in flags)}
    return {
        name: value or "true" for name, value in sorted(pairs.items()) if not QUIET_FLAGS.fullmatch(name.lstrip("-"))
    }


@functools.cache
def check_xla_flags(text: str) -> None:
    """Raises UserError for flags that jaxlib does not take, which would end this process without a word of ours."""
    if not text:
        return
    tried = [sys.executable, "-c", READ_FLAGS]
    done = subprocess.run(
        tried, env={**os.environ, "XLA_FLAGS": text}, capture_output=True, text=True, errors="replace"
    )
    said = [line.partition("] ")[2] for line in done.stderr.splitlines() if re.match(r"[EF]\d{4} ", line)]
    if done.returncode and said:
        why = first_line(said[0])
        raise UserError(f"XLA_FLAGS={quoted(text)}: jaxlib does not take it ({why}); correct the variable, or unset it")
