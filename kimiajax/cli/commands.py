"""The commands that look at data and at what runs left, and those for a user's own patches, by their arguments.

What each needs is imported when it is called, so that `kimiajax --help` is quick.
"""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kimiajax.errors import UserError
from kimiajax.runtime.progress import for_terminal
from kimiajax.text import show, visible

if TYPE_CHECKING:
    from kimiajax.cli.config import AuditConfig, ExplainConfig, ExportConfig, ReportConfig
    from kimiajax.data.tfds.datasets import Dataset

AUDIT_FAILED = 3
T = TypeVar("T")


def data(arguments: list[str]) -> int:
    """The commands under `data`; the exit status."""
    from kimiajax.cli.config import AuditConfig, ExplainConfig, ExportConfig

    what = arguments[0] if arguments else ""
    commands = {
        "audit": (_audit, AuditConfig, "Whether the data can be trusted: layout, leaks, damage, counts."),
        "explain": (_explain, ExplainConfig, "How many training patches each reading of the rules leaves."),
        "export": (_export, ExportConfig, "The patches as a folder of images with its manifest."),
    }
    if what in ("-h", "--help"):
        print(
            "usage: kimiajax data audit|explain|export --scans PATH\n"
            "       kimiajax data prepare NAME --manual-dir DIR\n"
            "`kimiajax data audit -h` lists the flags"
        )
        return 0
    if what == "prepare":
        _prepare(arguments[1:])
        return 0
    if what not in commands:
        raise UserError(f"data {what or 'COMMAND'}: no such command; choose from {', '.join(commands)}, prepare")
    run, kind, description = commands[what]
    config = parsed(kind, f"data {what}", description, arguments[1:])
    config.check_scans()
    needs = f"data {what} needs --scans PATH, of a scan file, a folder of images or a folder of whole slides"
    return run(config, config.needed(needs)) or 0


def _prepare(arguments: list[str]) -> None:
    from kimiajax.cli.config import PrepareConfig

    (name,), flags = _leading(arguments, "data prepare", "NAME", 1)
    description = "Prepares kimia_path24 or kimia_path24c as a TFDS data set, from the files in a folder."
    config = parsed(PrepareConfig, "data prepare NAME", description, flags)
    config.validate()
    if config.manual_dir is None:
        raise UserError("data prepare needs --manual-dir DIR, the folder that holds the data set's files")

    from kimiajax.data.patches import Rules
    from kimiajax.data.tfds.prepare import prepare
    from kimiajax.io.cache import default_cache

    progress = for_terminal()
    done = prepare(
        name,
        config.manual_dir,
        config.data_dir,
        rules=Rules(grid=config.grid, homogeneity=config.homogeneity, background=config.background),
        patch_size=config.patch_size,
        allow_unverified=config.allow_unverified,
        beam=config.beam,
        cache=config.cache or default_cache(),
        track=progress.track,
        say=progress.say,
    )
    counts = " and ".join(f"{count:,} {split}" for split, count in done.counts.items())
    show(f"{done.full_name}: {counts} patches {'were there already' if done.reused else 'prepared'}, in {done.path}")
    if done.unverified is not None:
        show(f"NOT VERIFIED, and every result will say so: {done.unverified}")
    where = [] if config.data_dir is None else ["--data-dir", str(config.data_dir)]
    show(shlex.join(["kimiajax", "table", "quick", "--dataset", done.full_name.partition(":")[0], *where]))


def _audit(config: "AuditConfig", given: "Path | Dataset") -> int:
    from kimiajax.data.audit.audit import FAILED, run_audit
    from kimiajax.data.manifest import read_manifest
    from kimiajax.io.cache import default_cache
    from kimiajax.io.files import write_text
    from kimiajax.report.data import render_audit

    audit = run_audit(
        given,
        manifest=None if config.manifest is None else read_manifest(config.manifest),
        official=config.official,
        cache=config.cache or default_cache(),
        progress=for_terminal(),
        **config.reading(),
    )
    name = given.stem if isinstance(given, Path) else given.name.replace("/", "-").replace(":", "-")
    record = (config.out or Path("runs") / "audit" / name) / "audit.json"
    write_text(record, json.dumps(audit.as_dict(), indent=2) + "\n")
    show(render_audit(audit))
    show(f"written to {record}")
    return AUDIT_FAILED if audit.verdict == FAILED else 0


def _explain(config: "ExplainConfig", given: "Path | Dataset") -> None:
    from kimiajax.data.audit.rule_counts import BACKGROUND, count_patches
    from kimiajax.data.open_scans import open_scans
    from kimiajax.data.patches import survey
    from kimiajax.data.sources.source import Gridded
    from kimiajax.io.cache import default_cache
    from kimiajax.report.data import render_counts

    progress = for_terminal()
    with open_scans(given, **config.reading(), say=progress.say) as source:
        if not isinstance(source, Gridded):
            raise UserError(f"{source.path}: a {source.kind} holds patches that were cut already; give the scans")
        surveys = survey(source, BACKGROUND, cache=config.cache or default_cache(), track=progress.track)
        test = source.test_patches()
        held_out = None if test is None else [sum(p.scan == scan for p in test) for scan in range(len(source))]
    show(render_counts(count_patches(surveys), source.names, held_out, config.background))


def _export(config: "ExportConfig", given: "Path | Dataset") -> None:
    from kimiajax.data.export import export_patches
    from kimiajax.data.manifest import read_manifest
    from kimiajax.data.open_scans import open_scans
    from kimiajax.data.patches import cut_patches
    from kimiajax.io.cache import default_cache

    config.check_patches()
    if config.out is None:
        raise UserError("data export needs --out DIR, the folder to write")
    progress, cache = for_terminal(), config.cache or default_cache()
    track = progress.track
    with open_scans(given, **config.reading(), cache=cache, track=track, say=progress.say) as source:
        if config.manifest is not None:
            manifest = read_manifest(config.manifest)
        else:
            manifest = cut_patches(source, config.rules(), cache=cache, track=track)
        manifest = export_patches(source, manifest, config.out, track=track)
    train, test = (len(manifest.split(split)) for split in ("train", "test"))
    show(f"{train:,} training and {test:,} test patches written to {config.out}")


def report(arguments: list[str]) -> None:
    """What a run shows, and how surely."""
    from kimiajax.cli.config import ReportConfig

    (folder,), flags = _leading(arguments, "report", "RUN", 1)
    config = parsed(ReportConfig, "report RUN", "What a run shows, and how surely, from its stored results.", flags)

    from kimiajax.evaluation.analysis import analyse
    from kimiajax.evaluation.stored import read_run, with_newest_audits
    from kimiajax.io.cache import default_cache
    from kimiajax.report.formats import FORMATS
    from kimiajax.runs.sweep_file import SWEEP

    _check_file(config.out)
    if (Path(folder) / SWEEP).is_file():
        _report_sweep(folder, config)
        return
    run = with_newest_audits(read_run(folder), config.cache or default_cache())
    if config.format == "html":
        from kimiajax.experiments.config import PRESETS, as_dicts
        from kimiajax.report.html import write_report

        show(f"written to {write_report(run, analyse(run), config.out, presets=as_dicts(PRESETS))}")
        return
    _write_text(config.out, FORMATS[config.format](run, analyse(run)))


def _report_sweep(folder: str, config: "ReportConfig") -> None:
    from kimiajax.experiments.config import as_dicts
    from kimiajax.experiments.sweep_config import SWEEPS
    from kimiajax.report.sweep import sweep_csv, write_sweep_report
    from kimiajax.runs.sweep_file import read_sweep

    results = read_sweep(folder)
    if config.format == "html":
        show(f"written to {write_sweep_report(folder, results, config.out, presets=as_dicts(SWEEPS))}")
    elif config.format == "csv":
        _write_text(config.out, sweep_csv(results))
    else:
        raise UserError(f"--format {config.format}: a sweep is told as html or csv; its places are runs, told as any")


def compare(arguments: list[str]) -> None:
    """Which rows of two runs differ by more than chance."""
    from kimiajax.cli.config import CompareConfig

    folders, flags = _leading(arguments, "compare", "RUN RUN", 2)
    config = parsed(CompareConfig, "compare RUN RUN", "Which rows of two runs differ by more than chance.", flags)

    from kimiajax.evaluation.compare import compare_runs
    from kimiajax.evaluation.stored import read_run
    from kimiajax.report.comparison import render_comparison

    _check_file(config.out)
    a, b = map(read_run, folders)
    comparison = compare_runs(a, b)
    show(render_comparison(comparison))
    _write_json(config.out, comparison.as_dict())


def score(arguments: list[str]) -> None:
    """Predictions from anywhere."""
    from kimiajax.cli.config import ScoreConfig

    (predictions,), flags = _leading(arguments, "score", "PREDICTIONS.csv", 1)
    config = parsed(ScoreConfig, "score PREDICTIONS.csv", "Scores of predictions, in both forms of eta_w.", flags)

    from kimiajax.evaluation.scoring import score
    from kimiajax.report.scores import render_score

    _check_file(config.out)
    scored = score(predictions, config.truth)
    show(render_score(scored))
    _write_json(config.out, scored.as_dict())


def features(arguments: list[str]) -> None:
    """A network's features of patches from anywhere."""
    from kimiajax.cli.config import FeaturesConfig

    (network,), flags = _leading(arguments, "features", "NETWORK or NETWORK@BLOCK", 1)
    description = (
        "A network's features for all patches, or those of a block as rows of a table read them, as one array."
    )
    config = parsed(FeaturesConfig, "features NETWORK[@BLOCK[.flat]]", description, flags)
    config.validate()
    given = config.needed("features needs --scans PATH, of a scan file, a folder of whole slides, an image or a folder")
    if config.out is None:
        raise UserError("features needs --out DIR, the folder to write")

    from kimiajax.data.manifest import read_manifest
    from kimiajax.features.export import export_features
    from kimiajax.io.cache import default_cache
    from kimiajax.runtime.compilation_cache import keep_programs

    cache = config.cache or default_cache()
    keep_programs(cache)
    record = export_features(
        network,
        given,
        config.out,
        tap=config.tap,
        weights=config.weights,
        image_size=config.image_size,
        resize=config.resize,
        rules=config.rules(),
        manifest=None if config.manifest is None else read_manifest(config.manifest),
        precision=config.precision,
        conv=config.conv,
        seed=config.seed,
        cache=cache,
        progress=for_terminal(),
        **config.reading(),
    )
    shape = " x ".join(map(str, record["shape"]))
    show(f"{record['tap']} of {record['network']}, {shape}, written to {config.out}")


def predict(arguments: list[str]) -> None:
    """What a finished row says of patches from anywhere."""
    from kimiajax.cli.config import PredictConfig

    named = next((k for k, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    (row, *images), flags = _leading(arguments, "predict", "RUN/ROW and IMAGES", max(named, 2))
    command = "predict RUN/ROW IMAGES..."
    config = parsed(PredictConfig, command, "What a finished row of a run predicts for patches from anywhere.", flags)
    config.validate()

    from kimiajax.experiments.inference import apply_row
    from kimiajax.io.cache import default_cache
    from kimiajax.report.predictions import render_applied
    from kimiajax.runs.predictions import write_predictions_csv
    from kimiajax.runtime.compilation_cache import keep_programs

    cache = config.cache or default_cache()
    keep_programs(cache)
    applied = apply_row(
        row,
        images,
        weights=config.weights,
        split=config.split,
        patches_per_scan=config.patches_per_scan,
        pictures=config.grad_cam,
        layer=config.layer,
        cache=cache,
        progress=for_terminal(),
        **config.reading(),
    )
    show(render_applied(applied))
    if config.out is not None:
        write_predictions_csv(config.out, applied)
        show(f"written to {config.out}")
    if config.grad_cam is not None:
        show(f"pictures written to {config.grad_cam}")


def _leading(arguments: list[str], command: str, names: str, count: int) -> tuple[list[str], list[str]]:
    """The first arguments of a command, which are no flags, and the others."""
    if arguments[:1] in (["-h"], ["--help"]):
        return [""] * count, arguments
    given = [argument for argument in arguments[:count] if not argument.startswith("-")]
    if len(given) < count:
        raise UserError(f"{command}: needs {names} before any flag; `kimiajax {command} -h` lists the flags")
    return given, arguments[count:]


def parsed(kind: type[T], command: str, description: str, arguments: list[str], default: T | None = None) -> T:
    """`parse` of `kimiajax.cli.flags`, which is imported when it is called."""
    from kimiajax.cli.flags import parse

    return parse(kind, command, description, arguments, default)


def _check_file(path: Path | None) -> None:
    """Raises UserError, before any work, for a file to write that is a folder."""
    if path is not None and path.is_dir():
        raise UserError(f"--out {path}: is a folder; name the file to write")


def _write_text(path: Path | None, text: str) -> None:
    """Writes a text to a file, or prints it."""
    from kimiajax.io.files import write_text

    if path is None:
        show(text)
    else:
        write_text(path, visible(text) + "\n")


def _write_json(path: Path | None, content: dict[str, object]) -> None:
    from kimiajax.io.files import write_text

    if path is not None:
        write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
        show(f"written to {path}")
