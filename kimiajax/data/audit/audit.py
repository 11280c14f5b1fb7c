"""Whether data can be trusted: that they are what they are said to be, whole, and that no test patch leaks.

An audit is a list of checks. Each passes, fails, notes something, or cannot tell; what cannot be told fails nothing,
and says so. The record is kept in the cache as well, where `kimiajax table` finds it by the files' identity: whatever
is computed from data whose audit failed is marked.
"""

import contextlib
import datetime
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kimiajax import __version__
from kimiajax.data.audit import checks
from kimiajax.data.audit.alignment import fit_places
from kimiajax.data.audit.checks import FAILED, PASSED, Check
from kimiajax.data.audit.copy_detection import CopyFinder
from kimiajax.data.audit.near_duplicates import THUMBNAIL
from kimiajax.data.manifest import SPLITS, Manifest, Split
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import check_of, read_patches
from kimiajax.data.patches import Rules, cut_patches, key_of, survey
from kimiajax.data.sources.scan_file import Scans
from kimiajax.data.sources.source import Gridded, Source
from kimiajax.data.tfds.datasets import Dataset
from kimiajax.errors import UsageError, UserError
from kimiajax.io.cache import keep_file
from kimiajax.runtime.progress import Silent
from kimiajax.text import text_of

FORMAT = 1
BAD_DATA = (FAILED, "data")
Covers = dict[Split, list[str | None]]  # digests of the patches that an audit speaks for


@dataclass(frozen=True)
class Audit:
    """The record of an audit."""

    path: str
    checks: list[Check]
    identity: str | None = None
    manifest_sha256: str | None = None
    official: bool = False

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [check.name for check in self.checks if check.verdict == FAILED]

    @property
    def verdict(self) -> str:
        return FAILED if self.failed else PASSED

    def as_dict(self) -> dict[str, Any]:
        """The content of `audit.json`."""
        return {
            "format": FORMAT,
            "kimiajax": __version__,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "path": self.path,
            "identity": self.identity,
            "manifest_sha256": self.manifest_sha256,
            "given_as_official": self.official,
            "verdict": self.verdict,
            "failed": self.failed,
            "checks": [asdict(check) for check in self.checks],
        }


def record_of(source: Source, manifest: Manifest, cache: Path | None) -> dict[str, Any] | None:
    """What audits of these very files say of a manifest's patches: verdict, failed checks, date and version.

    What failed of the data as such holds for all patches. Beyond that an audit speaks for patches that it has seen,
    each in its split and with the same pixels. None where no audit has.
    """
    records = list(_records(source, cache))
    used = {split: {patch.sha256 for patch in manifest.split(split)} for split in SPLITS}
    seen = [r for r in records if all(used[split] <= set(r["covers"][split]) for split in SPLITS)]
    failed = {check["name"] for r in records for check in r["checks"] if (check["verdict"], check["of"]) == BAD_DATA}
    if not seen and not failed:
        return None
    best = min(seen or records, key=lambda record: len(record["failed"]))  # others may fail for patches not used here
    failed |= set(best["failed"] if seen else ())
    verdict = FAILED if failed else PASSED
    return {"verdict": verdict, "failed": sorted(failed), "date": best["date"], "kimiajax": best["kimiajax"]}


def _records(source: Source, cache: Path | None) -> Iterator[dict[str, Any]]:
    folder = None if cache is None else cache / "audits" / _name(source)
    if folder is not None and folder.is_dir():
        for path in folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                yield json.loads(path.read_text(encoding="utf-8"))


def _name(source: Source) -> str:
    return key_of("audit", FORMAT, source.identity, source.patch_size)


def run_audit(
    path: Path | Dataset,
    *,
    manifest: Manifest | None = None,
    official: bool = False,
    cache: Path | None = None,
    progress: Silent | None = None,
    **reading: Any,
) -> Audit:
    """Runs every check that applies.

    Args:
        path: a scan file, a folder of images, a folder of whole slides, or a prepared data set.
        manifest: asks of these patches, and not of all that the rules leave.
        official: the file is given as the official one, so that another digest or other counts fail.
        cache: the folder in which the record is kept for later runs.
        progress: shows what goes on.
        reading: how it is read, as of `open_scans`.

    Raises:
        UserError: there is nothing at the path, or the manifest is of another source.
    """
    if isinstance(path, Path) and not path.exists():
        raise UserError(f"{path}: no such file or folder")
    progress = progress or Silent()
    try:
        source = open_scans(path, **reading, cache=cache, track=progress.track, say=progress.say)
    except UsageError:
        raise
    except UserError as error:
        return Audit(text_of(path), [Check("layout", FAILED, str(error))], official=official)
    with source:
        if manifest is not None:
            check_of(source, manifest)
        found = [checks.check_layout(source), *checks.check_remarks(source)]
        covers: Covers = {split: [] for split in SPLITS}
        try:
            for check in _checks(source, manifest, official, covers, progress):
                progress.say(f"{check.name}: {check.verdict}")
                found.append(check)
        except UserError as error:
            found.append(Check("reading", FAILED, str(error)))
        audit = Audit(text_of(path), found, source.identity, manifest and manifest.sha256, official)
        content = json.dumps({**audit.as_dict(), "covers": covers}).encode()
        keep_file(cache, f"audits/{_name(source)}", f"{audit.manifest_sha256 or 'all'}.json", content)
    return audit


def _checks(
    source: Source, manifest: Manifest | None, official: bool, covers: Covers, progress: Silent
) -> Iterator[Check]:
    yield checks.check_digest(source, official, progress)
    yield checks.check_counts(source, official)
    if not isinstance(source, Gridded):
        manifest = manifest or cut_patches(source, Rules(test_patches_per_scan=1))
        yield from _check_patches(source, manifest, covers, progress)
        return
    finder = CopyFinder(source.read_test_patch, len(source.targets)) if isinstance(source, Scans) else None
    inspect = None if finder is None else finder.inspect
    surveys = survey(source, [Rules.background], inspect=inspect, track=progress.track)
    yield checks.check_constant(source, surveys)
    if isinstance(source, Scans) and finder is not None:
        fits = fit_places(source, surveys, source.read_test_patch, source.targets)
        yield checks.check_targets(source, fits)
        yield checks.check_orientation(source, fits)
        yield checks.check_whitened(source, surveys)
        yield checks.check_copies(source, finder.copies(source), finder.blind)
    manifest = manifest or cut_patches(source, Rules(test_patches_per_scan=1), surveys=surveys)
    if source.whitens:
        yield checks.check_overlap(source, manifest, surveys)
    yield from _check_patches(source, manifest, covers, progress)


def _check_patches(source: Source, manifest: Manifest, covers: Covers, progress: Silent) -> Iterator[Check]:
    """What is asked of the patches themselves, wherever they come from."""
    patches = read_patches(source, manifest, THUMBNAIL, "box", track=progress.track, with_holes=True)
    for split in SPLITS:
        covers[split] += [patch.sha256 for patch in patches.manifest.split(split)]
    yield checks.check_training_counts(source, patches.manifest)
    yield checks.check_blank(source, patches)
    yield checks.check_exact(patches.manifest)
    yield checks.check_near(patches)
