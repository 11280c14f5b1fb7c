"""`kimiajax COMMAND`: the only reader of arguments."""

import contextlib
import os
import signal
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from kimiajax import __version__
from kimiajax.cli import commands
from kimiajax.errors import UserError
from kimiajax.runtime import allocator, distributed, shell
from kimiajax.runtime.exit_codes import ended
from kimiajax.runtime.progress import for_terminal
from kimiajax.runtime.signals import Interruption
from kimiajax.text import show

if TYPE_CHECKING:
    from kimiajax.experiments.config import TableConfig

USAGE = """\
usage: kimiajax table PRESET [--flags]   the comparison table; `kimiajax table -h` lists the presets
       kimiajax sweep PRESET [--flags]   curves over training patches, augmentation, trained blocks and networks
       kimiajax blocks NETWORK [--blocks PRESET]   its blocks: parameters, FLOPs, and what trains
       kimiajax data audit --scans PATH     whether the data can be trusted: leaks, damage, counts
       kimiajax data explain --scans PATH   how many training patches each reading of the rules leaves
       kimiajax data export --scans PATH --out DIR   the patches as a folder of images with its manifest
       kimiajax data prepare NAME --manual-dir DIR   kimia_path24 or kimia_path24c as a data set of TFDS
       kimiajax report RUN                  one file with what a run shows, and how surely; or its table as text
       kimiajax compare RUN RUN             which rows of two runs differ by more than chance
       kimiajax score FILE.csv --truth PATH   predictions from anywhere, in both official forms of eta_w
       kimiajax features NETWORK --scans PATH --out DIR   a block's outputs for any patches, as an array
       kimiajax predict RUN/ROW IMAGES...   what a finished row says of other images, and where it looks
       kimiajax parity NETWORK --reference keras|torch --weights FILE|random   proof that a network is the reference's
       kimiajax bench [WORKLOAD ...] [--peers all]   how fast it runs, alone or beside others
       kimiajax --version [--verbose]   with what a report of a bug needs
`--debug` after any command shows where an error comes from."""

COMPUTING = ("table", "sweep", "blocks", "report", "compare", "score", "features", "predict", "parity", "bench")
PARITY_FAILED, PARITY_NOT_RUN = 3, 4
ROW_FAILED = 3
TERMINATED = 143


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0, 2 for bad input, 1 for a bug, 130 for Ctrl-C, 143 for SIGTERM.

    `parity` returns 3 where the networks differ, and 4 under `--require` where the reference is not installed; `table`
    returns 3, as `sweep`, where a row's training stopped, and `data audit` where a check failed.
    """
    shell.enter(argv is None)
    warnings.formatwarning = _as_line
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    command, *arguments = [argument for argument in argv if argument != "--debug"] or ["--help"]
    return ended(lambda: _run(command, arguments, debug), debug, fresh="--fresh" in arguments)


def _as_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of this program's as the line that it is; of another's with the place that it comes from."""
    return f"{message}\n" if category is UserWarning else f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _run(command: str, arguments: list[str], debug: bool) -> int:
    if command in COMPUTING:
        shell.check_xla_flags(os.environ.get("XLA_FLAGS", ""))
    match command:
        case "-h" | "--help":
            print(USAGE)
        case "--version":
            print(f"kimiajax {__version__}")
            if arguments[:1] == ["--verbose"]:
                from kimiajax.cli.bug_report import for_an_issue

                show(for_an_issue())
        case "table" | "sweep":
            return _of_preset(command, arguments, debug)
        case "blocks":
            _blocks(arguments)
        case "data" | "report" | "compare" | "score" | "features" | "predict":
            return getattr(commands, command)(arguments) or 0
        case "parity":
            return _parity(arguments)
        case "bench":
            return _bench(arguments)
        case _:
            raise UserError(f"no command {command!r}; `kimiajax --help` lists them")
    return 0


def _of_preset(command: str, arguments: list[str], debug: bool) -> int:
    """`table` or `sweep`: a preset, and flags that change it."""
    from kimiajax.experiments.config import PRESETS, TableConfig
    from kimiajax.experiments.sweep_config import SWEEPS, SweepConfig

    presets, kind = (PRESETS, TableConfig) if command == "table" else (SWEEPS, SweepConfig)
    if arguments[:1] in (["-h"], ["--help"]):
        listed = "\n".join(f"  {name:6} {description}" for name, (description, _) in presets.items())
        print(f"usage: kimiajax {command} PRESET [--flags]\n\n{listed}\n")
        print(f"`kimiajax {command} PRESET -h` lists the flags.")
        return 0
    preset = arguments[0] if arguments else ""
    if preset not in presets:
        raise UserError(f"{command} {preset or 'PRESET'}: no such preset; choose from {', '.join(presets)}")
    description, default = presets[preset]
    config = commands.parsed(kind, f"{command} {preset}", description, arguments[1:], default)
    if config.distributed.distributed:

        def work() -> int:
            status = ended(lambda: _shared(preset, config), debug, fresh=config.output.fresh)
            return distributed.finish(status, together=status in (0, ROW_FAILED, TERMINATED))

        return distributed.supervised(work)
    return _compute(preset, config, signal.SIGTERM, signal.SIGINT)


def _shared(preset: str, config: "TableConfig") -> int:
    """The table or the sweep, as one of several processes."""
    from kimiajax.experiments.selection import rows_of

    rows_of(config)  # which refuses settings before the others are waited for
    shared = config.distributed
    distributed.start(shared.coordinator, shared.processes, shared.process, shared.peer_timeout)
    try:
        return _compute(preset, config, signal.SIGINT)  # JAX's runtime tells of SIGTERM
    except Exception as error:
        if not distributed.is_loss(error):
            raise
        distributed.say_lost()
        return distributed.LOST


def _compute(preset: str, config: "TableConfig", *signals: int) -> int:
    """Runs the table or the sweep, and prints it."""
    from kimiajax.experiments.runner import run_table
    from kimiajax.experiments.sweep import run_sweep
    from kimiajax.experiments.sweep_config import SweepConfig
    from kimiajax.io.cache import default_cache
    from kimiajax.report.sweep import failed, render_sweep
    from kimiajax.report.table import render_table
    from kimiajax.runtime.compilation_cache import keep_programs

    progress, interruption = for_terminal(), Interruption()
    keeps = allocator.keep_freed()
    kept = keep_programs(config.data.cache or default_cache())
    if kept and distributed.is_first():
        progress.say(f"compiled programs: {kept.count} found in {kept.folder}, new ones go there")
    if keeps and distributed.is_first():
        progress.say("memory: what is freed is kept for the next use (mallopt)")
    with interruption.on_signals(*signals):
        if isinstance(config, SweepConfig):
            results = run_sweep(preset, config, progress, interruption)
            render, failure = render_sweep, failed(results)
        else:
            results = run_table(preset, config, progress, interruption)
            render, failure = render_table, any(row["failure"] for row in results["rows"] if row["family"] == "table")
    if distributed.is_first():
        show(render(results))
        print(f"\nwritten to {config.folder(preset)}")
    return ROW_FAILED if failure else 0


def _blocks(arguments: list[str]) -> None:
    from kimiajax.cli.config import BlocksConfig
    from kimiajax.data.config import check_least
    from kimiajax.experiments.table1 import SCRATCH
    from kimiajax.models.registry import BACKBONES
    from kimiajax.training.freezing import PRESETS, blocks_of

    network = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if not network and arguments[:1] not in (["-h"], ["--help"]):
        raise UserError(f"blocks NETWORK: name one of {', '.join(BACKBONES)}")
    if network and network not in BACKBONES:
        raise UserError(f"blocks {network}: no such network; choose from {', '.join(BACKBONES)}")
    presets = [(name, what) for name, (what, _, _) in PRESETS.items()]
    presets.append(("last2", "the last two blocks, or as many as you write, and the head"))
    for name in BACKBONES:
        with contextlib.suppress(UserError):  # another package's, which cannot be loaded
            presets += [(cut, f"of {name}: Keras' layers[172:]") for cut, _ in BACKBONES[name].cuts]
    description = "\n\n".join(["A network's blocks and what trains.", *(f"{name}: {what}" for name, what in presets)])
    flags = arguments[1:] if network else arguments
    config = commands.parsed(BlocksConfig, "blocks NETWORK", description, flags)

    from kimiajax.report.blocks import render_blocks, rows_of_blocks
    from kimiajax.training.summary import list_blocks

    check_least(config, image_size=1, classes=1)
    backbone = BACKBONES[network]
    blocks = blocks_of(backbone, config.blocks, config.frozen_bn, config.trained_bn)
    entries = list_blocks(backbone, blocks, config.image_size, config.classes)
    chosen = f"{network} at {config.image_size} x {config.image_size}, {' '.join(config.blocks)}"
    mode = f"; frozen batch normalisation: {blocks.frozen_bn}" if backbone.statistics else ""
    mode += f", trained: {blocks.trained_bn}" if blocks.trained_normalises(backbone) else ""
    after = [block for block in backbone.blocks if block not in backbone.trunk]
    show(render_blocks(entries, f"{chosen}{mode}.", None if network in SCRATCH else rows_of_blocks(network, after)))


def _parity(arguments: list[str]) -> int:
    from kimiajax.parity.config import ParityConfig

    network = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    flags = arguments[1:] if network else arguments
    description = "The same images through a network here and in a reference framework, stage by stage."
    config = commands.parsed(ParityConfig, "parity NETWORK", description, flags)

    from kimiajax.parity.certificate import FAILED, NOT_RUN
    from kimiajax.parity.certificate_text import render
    from kimiajax.parity.run import run_parity

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that what it began is put away
    try:
        certificate = run_parity(network, config, for_terminal())
    finally:
        signal.signal(signal.SIGTERM, before)
    show(render(certificate))
    print(f"written to {certificate.write(config.folder(network))}")
    if certificate.verdict == NOT_RUN:
        return PARITY_NOT_RUN if config.require else 0
    return PARITY_FAILED if certificate.verdict == FAILED else 0


def _bench(arguments: list[str]) -> int:
    """The benchmarks lie beside this package in the source tree and inside it in the wheel."""
    installed = find_spec("kimiajax.benchmarks") is not None
    return import_module("kimiajax.benchmarks.suite" if installed else "benchmarks.suite").main(arguments)
