"""`kimiajax bench`, the same as `python -m benchmarks`: what is timed, against whom, and what comes of it."""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kimiajax.errors import UserError
from kimiajax.runtime import allocator
from weights_convert.mappings import all_files

from .compare import SCHEMA_VERSION
from .interleaved import write_record
from .race import OURS, Case, race
from .show import line_of, lines_of

WORKLOADS = ("features", "finetune_step", "head", "augment", "svm", "metrics", "distance", "table")
# Modules with a `main` of their own.
SIDE = ("roofline", "scaling", "compare", "cut", "resize", "choices", "curves", "plots", "show")
ROUNDS, QUICK_ROUNDS = 5, 2
INVALID = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Races some workloads and returns the exit status: 1 where any is INVALID.

    Raises:
        UserError: no such workload.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    allocator.keep_freed()  # and so do all whom this one starts
    if argv and argv[0] in SIDE:
        return importlib.import_module(f".{argv[0]}", __package__).main(argv[1:]) or 0
    options = _parser().parse_args(argv)
    unknown = [name for name in options.workloads if name not in WORKLOADS]
    if unknown:
        raise UserError(f"bench {unknown[0]}: no such workload; choose from {', '.join((*WORKLOADS, *SIDE))}")
    given = {
        name: tuple(value)
        for name in ("networks", "sizes", "batches", "precisions", "engines", "scopes")
        if (value := getattr(options, name))
    }
    results, rounds = [], options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    started = time.perf_counter()
    for workload in options.workloads or WORKLOADS:
        for case in importlib.import_module(f".workloads.{workload}", __package__).cases(full=options.full, **given):
            case = _with_peers(_convolving(case, options.conv), options.peers, options.in_place, options.full)
            result = race(case, rounds, _say)
            results.append(result)
            print("\n".join([line_of(result), *lines_of(result)]), flush=True)
            if options.out:
                write_record(options.out, results, schema_version=SCHEMA_VERSION)
    if len(results) > 1:
        print(f"\n{len(results)} races in {(time.perf_counter() - started) / 60:.0f} minutes")
        print("\n".join(map(line_of, results)))
    return INVALID if any(result["verdict"] == "INVALID" for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kimiajax bench",
        description="Times this project, alone or beside others on the same work. Further: "
        + "; ".join(f"`kimiajax bench {name} -h`" for name in SIDE),
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"by default all: {', '.join(WORKLOADS)}")
    parser.add_argument("--peers", nargs="*", default=[], help="`all`, or names, as `torch` and `keras/jax`")
    parser.add_argument(
        "--in-place", action="store_true", help="peers are installed in this environment, and run in it"
    )
    parser.add_argument("--quick", action="store_true", help="two rounds in place of five")
    parser.add_argument("--full", action="store_true", help="every batch size, image size and scope")
    parser.add_argument("--rounds", type=int, help="turns that each contender takes")
    parser.add_argument("--networks", nargs="+", choices=[name for name, _ in all_files("keras")])
    parser.add_argument("--sizes", nargs="+", type=int, help="sides of the networks' input")
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--precisions", nargs="+", choices=("float32", "tf32", "bfloat16"))
    parser.add_argument("--engines", nargs="+", choices=("jit", "pmap"))
    parser.add_argument("--scopes", nargs="+", choices=("step", "tail", "whole"))
    parser.add_argument("--conv", default="auto", choices=("auto", "plain", "fast"), help="how this project convolves")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


def _convolving(case: Case, conv: str) -> Case:
    """The case with ours told how to convolve, where it was not."""
    told = [
        replace(each, options=(("conv", conv), *each.options)) if each.name.startswith(OURS) else each
        for each in case.contenders
    ]
    return replace(case, contenders=tuple(told))


def _with_peers(case: Case, peers: Sequence[str], in_place: bool, full: bool) -> Case:
    """The case with ours and the peers that are asked for, in environments of their own or in this one."""
    meant = {each.name for each in case.contenders if full or each.name not in case.full_only} if "all" in peers else ()
    kept = [each for each in case.contenders if each.name.startswith(OURS) or each.name in (*peers, *meant)]
    return replace(case, contenders=tuple(replace(each, environment=None) if in_place else each for each in kept))


def _say(line: str) -> None:
    print(f"# {line}", flush=True)
