"""Kimia Path24 and its colour release as TFDS sets, from a user's files: in this process, or through Apache Beam."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kimiajax.data.open_scans import open_scans
from kimiajax.data.patches import CUTTING, Rules
from kimiajax.data.sources.source import Track, no_track
from kimiajax.data.tfds.datasets import about_of, check_home, name_of, owners_by_number, quiet_tfds
from kimiajax.errors import UserError

if TYPE_CHECKING:
    from kimiajax.data.tfds.patch_set import PatchSet


class Preparation(NamedTuple):
    """What was prepared.

    Attributes:
        full_name: NAME/CONFIG:VERSION.
        path: its folder.
        counts: records by split.
        unverified: what about the files is not what was published; None where nothing is.
        reused: whether it was there already.
    """

    full_name: str
    path: Path
    counts: dict[str, int]
    unverified: str | None
    reused: bool


def prepare(
    name: str,
    manual_dir: Path,
    data_dir: Path | None = None,
    *,
    rules: Rules | None = None,
    patch_size: int | None = None,
    allow_unverified: bool = False,
    beam: Sequence[str] | None = None,
    cache: Path | None = None,
    track: Track = no_track,
    say: Callable[[str], None] = lambda text: None,
) -> Preparation:
    """Prepares one of the sets from a user's files.

    Args:
        name: one of `BUILDERS`.
        manual_dir: the folder that holds the files; or the scan file itself.
        data_dir: the folder to prepare into; None for TFDS's own, `~/tensorflow_datasets` or TFDS_DATA_DIR.
        rules: of the gray set, its grid, homogeneity and background.
        patch_size: side of a patch in pixels, which is checked; None for what the files have.
        allow_unverified: go on where the files are not the official ones.
        beam: options of an Apache Beam pipeline, "runner=FlinkRunner"; None to prepare in this process.
        cache: a folder for what reading the scans told.
        say: is told of a preparation that died and is done anew.

    Raises:
        UserError: whatever is wrong with the files, a set of other files under the same name, or no Apache Beam.
    """
    from kimiajax.data.tfds.builders import BUILDERS

    if name not in BUILDERS:
        raise UserError(f"data prepare {name}: no such set; choose from {', '.join(BUILDERS)}")
    if not manual_dir.exists():
        raise UserError(f"--manual-dir {manual_dir}: no such folder; give the one that holds the data set's files")
    check_home(data_dir)
    kind, rules = BUILDERS[name], rules or Rules()
    if not kind.CUTS and (lost := [each for each in CUTTING if getattr(rules, each) != getattr(Rules, each)]):
        raise UserError(
            f"data prepare {name}: --{lost[0]} {getattr(rules, lost[0])}: is for scans; these patches were cut before"
        )
    found = kind.find(manual_dir)
    with open_scans(found, patch_size) as source:
        config = kind.config_of(source, rules)
    through = _pipeline(beam)
    options = {"allow_unverified": allow_unverified, "cache": cache, "track": track, "say": say}
    with quiet_tfds(), owners_by_number():
        builder = kind(data_dir=data_dir and str(data_dir), config=config, found=found, **options)
        if not builder.is_prepared():
            import tensorflow_datasets as tfds

            folder = manual_dir if manual_dir.is_dir() else manual_dir.parent
            options = tfds.download.DownloadConfig(manual_dir=str(folder), **through)
            builder.download_and_prepare(download_config=options)
    if not builder.wrote:
        _check_same(builder, found)
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    about = about_of(Path(builder.data_dir), ours=True)
    return Preparation(name_of(builder), Path(builder.data_dir), counts, about["unverified"], not builder.wrote)


def _check_same(builder: "PatchSet", found: Path) -> None:
    with open_scans(found.resolve()) as source:
        builder.check(source)
        before, now = about_of(Path(builder.data_dir), ours=True)["origin"], builder.origin_of(source)
    if before != now:
        raise UserError(
            f"{builder.data_dir}: was prepared from other files ({before}, and now {now}); remove it, or choose "
            "another --data-dir"
        )


def _pipeline(options: Sequence[str] | None) -> dict[str, Any]:
    """What TFDS takes to run through Apache Beam.

    Raises:
        UserError: there is no Apache Beam, no such runner, or no such option.
    """
    if options is None:
        return {}
    try:
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]  # optional
        from apache_beam.runners.runner import create_runner  # pyright: ignore[reportMissingImports]  # optional
    except ModuleNotFoundError as error:
        raise UserError('--beam needs Apache Beam: `pip install "kimiajax[beam]"`') from error
    named = {name: value for name, _, value in (option.partition("=") for option in options)}
    runner = named.pop("runner", "")
    if not runner:
        raise UserError("--beam: name the runner: runner=DirectRunner, runner=FlinkRunner, ...")
    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--beam runner={runner}: no such runner ({error})") from error
    pipeline = PipelineOptions([f"--{name}={value}" if value else f"--{name}" for name, value in named.items()])
    every = pipeline.get_all_options(drop_default=True, retain_unknown_options=True)
    if unknown := sorted(every.keys() - pipeline.get_all_options(drop_default=True).keys()):
        raise UserError(f"--beam {unknown[0]}: Apache Beam knows no such option of a pipeline")
    return {"beam_runner": runner, "beam_options": pipeline}
