"""Whether data can be trusted: that they are what they are said to be, whole, and that no test patch leaks.

An audit is a list of checks. Each passes, fails, notes something, does not apply, or cannot tell. One that fails makes
the audit FAILED; else one that cannot tell makes it NOT TOLD; else it is PASSED. The record is kept in the cache as
well, where tables and reports find it by the files' identity, or by the patches: whatever is computed from data whose
audit did not pass says so.
"""

import contextlib
import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kimiajax import __version__
from kimiajax.data.audit import checks
from kimiajax.data.audit.alignment import fit_places
from kimiajax.data.audit.checks import FAILED, UNTOLD, Check
from kimiajax.data.audit.content import Measures, check_dark, check_unlike
from kimiajax.data.audit.copy_detection import CopyFinder
from kimiajax.data.audit.groups import check_groups
from kimiajax.data.audit.labels import check_labels, check_orientation, check_targets
from kimiajax.data.audit.near_duplicates import THUMBNAIL
from kimiajax.data.manifest import SPLITS, Manifest, Split, left_out_of
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import check_of, read_patches
from kimiajax.data.patches import Rules, cut_patches, key_of, survey
from kimiajax.data.sources.image_folder import Folder
from kimiajax.data.sources.scan_file import Scans
from kimiajax.data.sources.source import Gridded, Source
from kimiajax.data.tfds.datasets import Dataset
from kimiajax.errors import UsageError, UserError
from kimiajax.io.cache import keep_file
from kimiajax.runtime.progress import Silent
from kimiajax.text import text_of

FORMAT = 2  # 1 had neither content nor labels, and took what cannot be told for passed
BAD_DATA = (FAILED, "data")
TRUSTED, NOT_TOLD = "PASSED", "NOT TOLD"  # verdicts of an audit, beside FAILED


@dataclass
class Seen:
    """Patches that an audit speaks for.

    Attributes:
        digests: of the patches, by split.
        left_out: the places that were left out as dark or flat, in words.
    """

    digests: dict[Split, list[str | None]]
    left_out: str = ""


@dataclass(frozen=True)
class Audit:
    """The record of an audit; `left_out` says which places were left out as dark or flat."""

    path: str
    checks: list[Check]
    identity: str | None = None
    manifest_sha256: str | None = None
    official: bool = False
    left_out: str = ""

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [check.name for check in self.checks if check.verdict == FAILED]

    @property
    def untold(self) -> list[str]:
        """Names of the checks that could not tell."""
        return [check.name for check in self.checks if check.verdict == UNTOLD]

    @property
    def verdict(self) -> str:
        return verdict_of(self.failed, self.untold)

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
            "untold": self.untold,
            "left_out": self.left_out,
            "checks": [asdict(check) for check in self.checks],
        }


def verdict_of(failed: Sequence[str], untold: Sequence[str]) -> str:
    """Returns the verdict of an audit, by the checks that failed and those that could not tell."""
    return FAILED if failed else NOT_TOLD if untold else TRUSTED


def record_of(identity: str | None, manifest: Manifest, cache: Path | None) -> dict[str, Any] | None:
    """Returns what audits say of a manifest's patches: verdict, checks that failed or could not tell, date and version.

    What failed of the data as such holds for all patches. Beyond that an audit speaks for patches that it has seen,
    each in its split and with the same pixels. None where no audit has. Of several, the one with the fewest failures
    speaks, since others may fail for patches that are not used here, and of these the newest. One under --official
    does not, as it asks whether a file was published and not whether data can be trusted.

    Args:
        identity: of the source, so that only audits of these very files are asked; None asks all that saw the patches.
        manifest: the patches.
        cache: the folder in which audits are kept.
    """
    records = [r for r in _records(identity, manifest.patch_size, cache) if not r["given_as_official"]]
    used = {split: {patch.sha256 for patch in manifest.split(split)} for split in SPLITS}
    seen = [r for r in records if all(used[split] <= set(r["covers"][split]) for split in SPLITS)]
    of_data = records if identity is not None else seen
    failed = {check["name"] for r in of_data for check in r["checks"] if (check["verdict"], check["of"]) == BAD_DATA}
    if not seen and not failed:
        return None
    newest = sorted(seen or records, key=lambda record: record["date"], reverse=True)
    best = min(newest, key=lambda record: len(record["failed"]))
    failed |= set(best["failed"] if seen else ())
    untold = best["untold"] if seen else []
    told = {"verdict": verdict_of(sorted(failed), untold), "failed": sorted(failed), "untold": untold}
    return {**told, "date": best["date"], "kimiajax": best["kimiajax"]}


def _records(identity: str | None, patch_size: int, cache: Path | None) -> Iterator[dict[str, Any]]:
    folder = "*" if identity is None else _name(identity, patch_size)
    for path in [] if cache is None else sorted(cache.glob(f"audits/{folder}/*.json")):
        with contextlib.suppress(OSError, ValueError):
            yield json.loads(path.read_text(encoding="utf-8"))


def _name(identity: str, patch_size: int) -> str:
    return key_of("audit", FORMAT, identity, patch_size)


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
        seen = Seen({split: [] for split in SPLITS})
        try:
            for check in _checks(source, manifest, official, seen, progress):
                progress.say(f"{check.name}: {check.verdict}")
                found.append(check)
        except UserError as error:
            found.append(Check("reading", FAILED, str(error)))
        audit = Audit(text_of(path), found, source.identity, manifest and manifest.sha256, official, seen.left_out)
        content = json.dumps({**audit.as_dict(), "covers": seen.digests}).encode()
        keep_file(
            cache,
            f"audits/{_name(source.identity, source.patch_size)}",
            f"{audit.manifest_sha256 or 'all'}{'-official' * official}.json",
            content,
        )
    return audit


def _checks(source: Source, manifest: Manifest | None, official: bool, seen: Seen, progress: Silent) -> Iterator[Check]:
    yield checks.check_digest(source, official, progress)
    yield checks.check_counts(source, official)
    if not isinstance(source, Gridded):
        rules = Rules() if isinstance(source, Folder) else Rules(test_patches_per_scan=1)
        yield from _check_patches(source, manifest or cut_patches(source, rules), seen, progress)
        return
    rims = None
    finder = CopyFinder(source.read_test_patch, len(source.targets)) if isinstance(source, Scans) else None
    inspect = None if finder is None else finder.inspect
    surveys = survey(source, [Rules.background], inspect=inspect, track=progress.track)
    yield checks.check_constant(source, surveys)
    if isinstance(source, Scans) and finder is not None:
        fits = fit_places(source, surveys, source.read_test_patch, source.targets)
        rims = check_targets(source, fits)
        yield rims
        yield check_orientation(source, fits)
        yield checks.check_whitened(source, surveys)
        yield checks.check_copies(source, finder.copies(source), finder.blind)
    manifest = manifest or cut_patches(source, Rules(test_patches_per_scan=1), surveys=surveys)
    if source.whitens:
        yield checks.check_overlap(source, manifest, surveys)
    yield from _check_patches(source, manifest, seen, progress, rims)


def _check_patches(
    source: Source, manifest: Manifest, seen: Seen, progress: Silent, rims: Check | None = None
) -> Iterator[Check]:
    """Checks the patches themselves, wherever they come from; `rims` as of `check_labels`."""
    measures = Measures(manifest)
    options = {"track": progress.track, "with_holes": True, "look": measures.take}
    patches = read_patches(source, manifest, THUMBNAIL, "box", **options)
    for split in SPLITS:
        seen.digests[split] += [patch.sha256 for patch in patches.manifest.split(split)]
    seen.left_out = left_out_of(patches.manifest.about)
    yield checks.check_training_counts(source, patches.manifest)
    yield checks.check_blank(source, patches)
    yield check_dark(patches.manifest, measures)
    yield check_unlike(patches.manifest, measures)
    if not isinstance(source, Gridded) or isinstance(source, Scans):  # a slide's patches are its own
        yield check_labels(patches, source, rims)
    if isinstance(source, Folder):
        yield check_groups(source, patches.manifest)
    yield checks.check_exact(patches.manifest)
    yield checks.check_near(patches)
