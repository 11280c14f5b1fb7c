"""Which patches the study uses: the grid over each scan, what counts as tissue, and the draw."""

import contextlib
import hashlib
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from kimiajax.checks import check_fields, kind_of, path_of, whole
from kimiajax.data.group_draw import draw_groups
from kimiajax.data.manifest import Manifest, Patch
from kimiajax.data.sources.source import (
    BACKGROUND,
    DARK,
    FLAT,
    SMALLEST_HOLE,
    Candidates,
    Gridded,
    Precut,
    Source,
    Track,
    no_track,
)
from kimiajax.data.survey import SMALLEST_PATCH, VERSION, Inspect, Survey, survey_scan
from kimiajax.errors import UsageError, UserError
from kimiajax.io.cache import keep_file, kept_file
from kimiajax.paper import is_kimia

DAMAGED = (OSError, ValueError, KeyError, EOFError, NotImplementedError, BadZipFile, zlib.error)  # what a .npz raises
CUTTING = ("grid", "homogeneity", "background")  # of the rules, what the paper's scans are cut by
CONTENT = ("dark", "darkness", "flat")  # of the rules, what others are cut by as well
WHITENED_TOLERANCE = 0.01  # a training patch may share this fraction of its area with a whitened place

Places = list[tuple[int, int]]


def full_grid(rows: int, cols: int) -> Places:
    """Every whole patch of a scan that has so many rows and columns of them."""
    return [(row, col) for row in range(rows) for col in range(cols)]


def readme_grid(rows: int, cols: int) -> Places:
    """The loop in the data set's README, `range(int(dim / size) - 1)`: without the last whole row and column."""
    return full_grid(rows - 1, cols - 1)


Grid = Literal["full", "readme"]
GRIDS: dict[Grid, Callable[[int, int], Places]] = {"full": full_grid, "readme": readme_grid}


@dataclass(frozen=True)
class Rules:
    """How patches are chosen.

    Attributes:
        patches_per_scan: training patches drawn from each scan, or "all"; a scan with fewer gives what it has.
        seed: of that draw.
        grid: one of `GRIDS`.
        homogeneity: patches with at least this fraction of background are left out; infinity leaves out none.
        background: the gray value from which a pixel counts as background, 0 to 255.
        dark: the gray value up to which all pixels of a cell are for it to be dark, 0 to 255; "none" leaves out no
            patch for it; None is "none" for Kimia Path24's own scans and for patches under `SMALLEST_HOLE` pixels, and
            `DARK` for others. A cell is an eighth of a patch's side.
        darkness: patches with at least this fraction of dark cells are left out; by default `darkness_for` their size.
        flat: what a cell's gray values span at most for it to be flat, 0 to 255; flat cells count as background.
            "none" and None as of `dark`, with `FLAT`.
        test_patches_per_scan: test patches drawn from each scan, where the source holds none out itself.
        test_seed: of that draw.

    Raises:
        UserError: a field of another type or out of its range.
    """

    patches_per_scan: int | Literal["all"] = "all"
    seed: int = 0
    grid: Grid = "full"
    homogeneity: float = 0.99
    background: int = BACKGROUND
    dark: int | Literal["none"] | None = None
    darkness: float | None = None
    flat: int | Literal["none"] | None = None
    test_patches_per_scan: int = 50
    test_seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.patches_per_scan != "all" and self.patches_per_scan < 1:
            raise UserError(f"{self.patches_per_scan} patches per scan: must be 1 or more, or 'all'")
        for name, least, most in (
            ("test_patches_per_scan", 1, None),
            ("background", 0, 255),
            ("seed", 0, 2**32 - 1),
            ("test_seed", 0, None),
        ):
            whole(name, getattr(self, name), least, most)
        if not 0 < self.homogeneity <= 1 and self.homogeneity != math.inf:
            raise UserError(f"homogeneity {self.homogeneity}: must be a fraction, above 0 and at most 1")
        for name in ("dark", "flat"):
            if getattr(self, name) not in ("none", None):
                whole(name, getattr(self, name), 0, 255)
        if self.darkness is not None and not 0 < self.darkness <= 1:
            raise UserError(f"darkness {self.darkness}: must be a fraction, above 0 and at most 1")

    def of(self, source: Source) -> "Rules":
        """These rules with what a source decides, whose scans are still to be cut.

        The paper's rule alone cuts Kimia Path24's own scans, and patches whose cells have so few pixels that tissue may
        be flat there.
        """
        if not isinstance(source, Gridded) or None not in (self.dark, self.darkness, self.flat):
            return self
        counts = Counter(patch.scan for patch in source.test_patches() or ())
        official = is_kimia([counts[scan] for scan in range(len(source))])
        small = source.patch_size < SMALLEST_HOLE
        dark, flat = ("none", "none") if official or small else (DARK, FLAT)
        dark, flat = dark if self.dark is None else self.dark, flat if self.flat is None else self.flat
        darkness = darkness_for(source.patch_size) if self.darkness is None else self.darkness
        return replace(self, dark=dark, darkness=darkness, flat=flat)


def darkness_for(size: int) -> float:
    """The share of dark cells from which patches of so many pixels are no tissue.

    A small cell may lie within a nucleus: of patches of 24 organs, 1 of 450 of 64 pixels has a tenth of dark cells, and
    none of 96; none of 128 or 200 pixels has two dark cells of its 64.
    """
    return 0.1 if size < 128 else 0.03


def survey(
    source: Gridded,
    levels: Iterable[int] = (),
    *,
    cache: Path | None = None,
    inspect: Inspect | None = None,
    track: Track = no_track,
) -> list[Survey]:
    """Reads every scan once and tells what they hold; see `survey_scan`.

    Args:
        source: the scans.
        levels: gray values; pixels at least as bright are counted.
        cache: a folder in which surveys are kept and found again, as long as the files stay as they are.
        inspect: called with scan, region and pixels of every tile; nothing is then taken from the cache.
    """
    if source.patch_size < SMALLEST_PATCH:
        raise UserError(f"{source.path}: patches of {source.patch_size} pixels; the least is {SMALLEST_PATCH}")
    name = f"{key_of('survey', source.identity, source.patch_size, sorted(set(levels)))}.npz"
    kept = kept_file(cache, "surveys", name) if inspect is None else None
    if kept is not None:
        with contextlib.suppress(*DAMAGED), kept.open("rb") as stream:
            arrays = np.load(stream)
            return [Survey.of_arrays(_of_scan(arrays, scan)) for scan in range(len(source))]
    surveys: list[Survey] = []

    def tiles() -> Iterable[None]:
        for scan in range(len(source)):
            for step in survey_scan(source, scan, levels, inspect):
                if step is None:
                    yield
                else:
                    surveys.append(step)

    for _ in track(tiles(), "reading scans", sum(len(source.tiles(scan)) for scan in range(len(source))), "tiles"):
        pass
    content = io.BytesIO()
    arrays = {f"{k}/{name}": array for k, each in enumerate(surveys) for name, array in each.arrays().items()}
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]  # none is named `allow_pickle`
    keep_file(cache, "surveys", name, content.getvalue())
    return surveys


def _of_scan(arrays: "np.lib.npyio.NpzFile", scan: int) -> dict[str, np.ndarray]:
    prefix = f"{scan}/"
    return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}


def key_of(*content: object) -> str:
    """A name for what is computed from `content`, a part of which may be `Rules`."""
    return hashlib.sha256(json.dumps([VERSION, *content], default=asdict).encode()).hexdigest()[:32]


def candidates_of(survey: Survey, scan: int, rules: Rules, holes: bool = False) -> Candidates:
    """The places of a scan's grid that are neither background, dark nor flat, nor over a whitened place.

    Args:
        survey: of the scan.
        scan: its number.
        rules: those that leave `dark` or `flat` to the source leave out none for them; see `Rules.of`.
        holes: keep places of one gray value, which are refused where they are read: a file that holds no padding of a
            scanner's lost something there.
    """
    homogeneity, overlap = survey.homogeneity(rules.background), survey.overlap()
    dark, flat = np.zeros((2, *survey.grid), bool)
    if isinstance(rules.dark, int):
        darkness = darkness_for(survey.size) if rules.darkness is None else rules.darkness
        dark |= survey.dark(rules.dark) >= darkness
    if isinstance(rules.flat, int):
        share = survey.flat(rules.flat, rules.background)
        flat |= (share > 0) & (homogeneity + share >= rules.homogeneity)
    kept = survey.constant() if holes else np.zeros(survey.grid, bool)
    places = GRIDS[rules.grid](*survey.grid)
    patches, whitened, left_out = {}, 0, Counter()
    for rank, (i, j) in enumerate(places):
        if homogeneity[i, j] >= rules.homogeneity:
            continue
        if overlap[i, j] > WHITENED_TOLERANCE:
            whitened += 1
            continue
        if (dark[i, j] or flat[i, j]) and not kept[i, j]:
            left_out["dark" if dark[i, j] else "flat"] += 1
            continue
        row, col = i * survey.size, j * survey.size
        patches[rank] = Patch(f"train/s{scan}/{row}_{col}", scan, "train", row, col, float(homogeneity[i, j]))
    return Candidates(patches, len(places), whitened, **left_out)


def cut_patches(
    source: Source | Any,
    rules: Rules | Any = None,
    *,
    surveys: list[Survey] | None = None,
    cache: str | Path | None = None,
    track: Track = no_track,
) -> Manifest:
    """Lays the grid, leaves out background and whitened places, and draws training patches from what is left.

    A draw is uniform and without replacement, and one of 10 is part of the draw of 25 from the same seed. Each scan is
    read once, and not again while `cache` keeps what that told. Folders of images and prepared data sets are taken as
    they are: their patches were chosen by whoever made them, and only the draw is made.

    Args:
        source: the scans, slides, images or prepared data set.
        rules: how to choose; by default every patch of tissue.
        surveys: of the scans, where they have been read already.
        cache: a folder for what reading the scans told.

    Returns:
        The manifest, with no digests yet: `read_patches` adds these.

    Raises:
        UserError: a scan without a training patch, or with too few for the test patches asked for.
    """
    kind_of("source", source, Source, "give what `open_scans` opens")
    rules = Rules() if rules is None else kind_of("rules", rules, Rules, "make them as kimiajax.Rules(...)")
    rules = rules.of(source)
    cache = None if cache is None else path_of("cache", cache)
    offered = offered_by(source, rules, surveys=surveys, cache=cache, track=track)
    test = source.test_patches()
    if test is None:
        test, offered = _hold_out(source, offered, rules)
    train = draw(offered, rules)
    about = {
        "source": source.describe(),
        **source.marks,
        "names": list(source.names),
        "rules": _rules_of(source, rules),
    }
    if isinstance(source, Gridded):
        about["left_out"] = {name: [getattr(scan, name) for scan in offered] for name in ("dark", "flat")}
    return Manifest((*train, *test), source.patch_size, len(source), about)


def draw(offered: Sequence[Candidates], rules: Rules) -> list[Patch]:
    """The patches that rules draw from what each scan offers, scan by scan."""
    rngs = [np.random.default_rng([rules.seed, scan]) for scan in range(len(offered))]
    return [patch for each, rng in zip(offered, rngs) for patch in each.draw(rules.patches_per_scan, rng)]


def offered_by(
    source: Source,
    rules: Rules,
    *,
    surveys: list[Survey] | None = None,
    cache: Path | None = None,
    track: Track = no_track,
) -> list[Candidates]:
    """What each scan of a source offers for training, held-out patches included where these are still to be chosen.

    Raises:
        UserError: a scan without a training patch, or rules by which patches that were cut before were not cut.
    """
    if isinstance(source, Precut):
        _check_precut(source, rules)
        return source.offered()
    assert isinstance(source, Gridded)
    rules = rules.of(source)
    surveys = surveys or survey(source, [rules.background], cache=cache, track=track)
    holes = source.whitens  # a scan file, into which somebody copied pixels
    offered = [candidates_of(survey, scan, rules, holes) for scan, survey in enumerate(surveys)]
    _check_offered(source, offered, rules)
    return offered


def _check_precut(source: Precut, rules: Rules) -> None:
    for name in source.rules or ("grid", "homogeneity", *CONTENT):  # background decides what is counted in others
        usual = getattr(Rules, name)
        asked, were = getattr(rules, name), source.rules.get(name, usual)
        if asked not in (usual, were) and (name not in CONTENT or asked != "none"):
            by = f", by {name} {were}" if name in source.rules else ""
            raise UsageError(f"{source.path}: --{name} {asked}: the patches of a {source.kind} were cut before{by}")


def _rules_of(source: Source, rules: Rules) -> dict[str, object]:
    """The rules that decided: of patches that were cut before, only those of the draws."""
    if not isinstance(source, Precut):
        return asdict(rules)
    names = ["patches_per_scan", "seed", "background"]
    if source.test_patches() is None:
        names += ["test_patches_per_scan", "test_seed"]
    return {**{name: getattr(rules, name) for name in names}, **source.rules}


def _check_offered(source: Gridded, offered: list[Candidates], rules: Rules) -> None:
    for scan, candidates in enumerate(offered):
        if not candidates.patches:
            raise UserError(
                f"{source.path}: {source.names[scan]} has no training patch: of its {candidates.places} places of "
                f"{source.patch_size} x {source.patch_size}, {candidates.whitened} lie over whitened places, "
                f"{candidates.dark} are dark (gray {rules.dark} and below), {candidates.flat} flat, and the rest are "
                f"{rules.homogeneity:g} or more background (gray {rules.background} and above); see --homogeneity, "
                "--background, --dark and --flat"
            )


def _hold_out(source: Source, offered: list[Candidates], rules: Rules) -> tuple[list[Patch], list[Candidates]]:
    """Draws test patches, whole groups where there are any, and takes them out of what is offered for training."""
    counts = [_to_hold_out(source, scan, len(candidates.patches), rules) for scan, candidates in enumerate(offered)]
    patches = [patch for candidates in offered for patch in candidates.patches.values()]
    groups = {patch.patch_id: source.group_of(patch) for patch in patches} if isinstance(source, Precut) else {}
    if any(group is not None for group in groups.values()):
        held_out = draw_groups(source, patches, groups, counts, rules.test_seed)
    else:
        rngs = [np.random.default_rng([rules.test_seed, scan, 1]) for scan in range(len(offered))]
        held_out = [patch for each, count, rng in zip(offered, counts, rngs) for patch in each.draw(count, rng)]
    names = {patch.patch_id for patch in held_out}
    test = [replace(p, patch_id=f"test/{p.patch_id.removeprefix('train/')}", split="test") for p in held_out]
    rest = [replace(c, patches={k: p for k, p in c.patches.items() if p.patch_id not in names}) for c in offered]
    return test, rest


def _to_hold_out(source: Source, scan: int, count: int, rules: Rules) -> int:
    """How many test patches to draw of a scan that has so many patches."""
    share = source.test_share if isinstance(source, Precut) else None
    if share is not None:
        if count < 2:
            raise UserError(
                f"{source.path}: {source.names[scan]} has one image, and training and test need one each; add more, or "
                "move it elsewhere"
            )
        return min(rules.test_patches_per_scan, max(1, round(share * count)), count - 1)
    if count <= rules.test_patches_per_scan:
        raise UserError(
            f"{source.path}: {source.names[scan]} has {count} patches, and "
            f"{rules.test_patches_per_scan} were to be held out; use a smaller --test-patches-per-scan"
        )
    return rules.test_patches_per_scan
