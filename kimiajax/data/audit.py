"""Whether data can be trusted: that they are what they are said to be, whole, and that no test patch leaks.

An audit is a list of checks. Each passes, fails, notes something, or cannot tell; what cannot be told fails nothing,
and says so. The record is kept in the cache as well, where `kimiajax table` finds it by the files' identity: whatever
is computed from data whose audit failed is marked.
"""

import contextlib
import datetime
import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kimiajax import __version__
from kimiajax.cache import keep_file, kept_file
from kimiajax.data import checks
from kimiajax.data.checks import FAILED, PASSED, Check
from kimiajax.data.copies import CopyFinder
from kimiajax.data.duplicates import THUMBNAIL
from kimiajax.data.manifest import Manifest
from kimiajax.data.opening import open_scans
from kimiajax.data.patches import Rules, cut_patches, key_of, survey
from kimiajax.data.placing import fit_places
from kimiajax.data.reading import read_patches
from kimiajax.data.source import Gridded, Source
from kimiajax.errors import UserError
from kimiajax.progress import Silent

FORMAT = 1


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


def record_of(source: Source, cache: Path | None, manifest: Manifest | None = None) -> dict[str, Any] | None:
    """The record of the last audit of these very files, if there was one: of a manifest's patches, or of all."""
    for sha256 in [manifest.sha256, None] if manifest else [None]:
        path = kept_file(cache, "audits", _name(source.identity(), source.patch_size, sha256))
        with contextlib.suppress(OSError, ValueError):
            if path is not None:
                return json.loads(path.read_text(encoding="utf-8"))
    return None


def _name(identity: str, patch_size: int, manifest_sha256: str | None) -> str:
    return f"{key_of('audit', FORMAT, identity, patch_size, manifest_sha256)}.json"


def run_audit(
    path: Path,
    patch_size: int | None = None,
    mpp: float = 0.5,
    *,
    manifest: Manifest | None = None,
    official: bool = False,
    cache: Path | None = None,
    progress: Silent | None = None,
) -> Audit:
    """Runs every check that applies.

    Args:
        path: a scan file, a folder of images or a folder of whole slides.
        patch_size: side of a patch in pixels, see `open_scans`.
        mpp: microns per pixel, for slides.
        manifest: asks of these patches, and not of all that the rules leave.
        official: the file is given as the official one, so that another digest or other counts fail.
        cache: the folder in which the record is kept for later runs.
        progress: shows what goes on.

    Raises:
        UserError: there is nothing at the path.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    progress = progress or Silent()
    try:
        source = open_scans(path, patch_size, mpp)
    except UserError as error:
        return Audit(str(path), [Check("layout", FAILED, str(error))], official=official)
    with source:
        identity, found = source.identity(), [checks.check_layout(source)]
        try:
            for check in _checks(source, manifest, official, progress):
                progress.say(f"{check.name}: {check.verdict}")
                found.append(check)
        except UserError as error:
            found.append(Check("reading", FAILED, str(error)))
        audit = Audit(str(path), found, identity, manifest and manifest.sha256, official)
        name = _name(identity, source.patch_size, audit.manifest_sha256)
        keep_file(cache, "audits", name, json.dumps(audit.as_dict()).encode())
    return audit


def _checks(source: Source, manifest: Manifest | None, official: bool, progress: Silent) -> Iterator[Check]:
    yield checks.check_digest(source, official, progress)
    yield checks.check_counts(source, official)
    if not isinstance(source, Gridded):
        yield from _check_patches(source, manifest or cut_patches(source), progress)
        return
    finder = None
    if source.whitens:
        finder = CopyFinder(source.read_test_patch, len(source.targets))
    track = functools.partial(progress.track, unit="tiles")
    inspect = None if finder is None else finder.inspect
    surveys = survey(source, [Rules.background], inspect=inspect, track=track)
    yield checks.check_constant(source, surveys)
    if finder is not None:
        fits = fit_places(source, surveys, source.read_test_patch, source.targets)
        yield checks.check_targets(source, fits)
        yield checks.check_orientation(source, fits)
        yield checks.check_whitened(source, surveys, fits)
        yield checks.check_copies(source, finder.copies(source), finder.blind)
    manifest = manifest or cut_patches(source, Rules(test_patches_per_scan=1), surveys=surveys)
    if source.whitens:
        yield checks.check_overlap(source, manifest, surveys)
    yield from _check_patches(source, manifest, progress)


def _check_patches(source: Source, manifest: Manifest, progress: Silent) -> Iterator[Check]:
    """What is asked of the patches themselves, wherever they come from."""
    patches = read_patches(source, manifest, THUMBNAIL, "box", track=functools.partial(progress.track, unit="patches"))
    yield checks.check_training_counts(source, patches.manifest)
    yield checks.check_blank(patches)
    yield checks.check_exact(patches.manifest)
    yield checks.check_near(patches)
