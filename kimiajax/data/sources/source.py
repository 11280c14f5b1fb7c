"""Where patches come from: what a scan file, a folder of images and a folder of slides have in common."""

import hashlib
import json
import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from kimiajax.data.manifest import Patch
from kimiajax.data.sources.hdf5_raster import Region
from kimiajax.errors import UserError
from kimiajax.runtime.progress import Silent
from kimiajax.shapes import UInt8
from kimiajax.text import first_few, shown, text_of

# Shows progress: called as `track(items, description, total, unit)` around long work, wherever one is taken.
Track = Callable[[Iterable, str, int | None, str], Iterable]
no_track: Track = Silent().track  # the default of every function that takes a `Track`
Say = Callable[[str], None]  # tells one line
no_say: Say = Silent().say  # likewise
S = TypeVar("S", bound="Source")
BACKGROUND = 220  # the gray value from which a pixel counts as background, unless rules say otherwise
DARK = 40  # the gray value up to which all pixels of a dark cell are: no cell of tissue is, of 25 pixels or more
FLAT = 8  # what the gray values of a flat cell span at most
SMALLEST_HOLE = 64  # side in pixels of a patch that has not one gray value by chance; an audit asks of its eighths


@dataclass(frozen=True)
class Candidates:
    """What a scan offers for training, each with its rank among all places, so that a draw depends on those alone.

    Attributes:
        patches: by rank.
        places: how many there are, those left out included.
        whitened: left out over whitened places.
        dark: left out for their dark cells.
        flat: left out because what is no background in them is flat.
    """

    patches: dict[int, Patch]
    places: int
    whitened: int = 0
    dark: int = 0
    flat: int = 0

    def draw(self, count: int | Literal["all"], rng: np.random.Generator) -> list[Patch]:
        """The first `count` in a random order of all places, put back into the order of the places."""
        order = [rank for rank in rng.permutation(self.places).tolist() if rank in self.patches]
        return [self.patches[rank] for rank in sorted(order if count == "all" else order[:count])]


class Source(ABC):
    """Something that patches can be read from, by many threads at once. Close it, or use it in a `with` block.

    Attributes:
        kind: what it is, in words.
        word: what its patches are of, a scan or a class.
        path: where it is.
        names: of its scans, whose numbers are the places in this tuple.
        patch_size: side of its patches, in pixels.
        identity: names the files as they were when they were opened: other after any of them was written or replaced.
        synthetic: whether it says that a program drew it.
        unverified: what about it is not what its name claims; None where nothing is, or where nothing is claimed.
    """

    kind: str
    word: str = "scan"
    path: Path
    names: tuple[str, ...]
    patch_size: int
    identity: str
    synthetic: bool = False
    unverified: str | None = None

    def __len__(self) -> int:
        """The number of scans."""
        return len(self.names)

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @abstractmethod
    def read_patch(self, patch: Patch) -> UInt8[np.ndarray, "s s"]:
        """The gray values of a patch, 0 (black) to 255 (white).

        Raises:
            UserError: there is no such patch, or it cannot be read.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a record says of it: path, kind and size, as JSON takes them."""

    @abstractmethod
    def test_patches(self) -> list[Patch] | None:
        """The patches that are held out, or None where they are still to be chosen."""

    @property
    def marks(self) -> dict[str, Any]:
        """What marks everything that is computed from it."""
        return {"synthetic": self.synthetic, "unverified": self.unverified}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of results must know of how it was opened, sentence by sentence."""
        return ()

    @property
    def title(self) -> str:
        """Its name, wherever it lies."""
        return text_of(self.path.name)

    @property
    def flags(self) -> str:
        """Returns the flag that names it, to be copied into a shell."""
        return shlex.join(["--scans", text_of(self.path)])

    def close(self) -> None:  # noqa: B027 (there may be nothing to let go of)
        """Lets go of the files."""


class NotScannedError(UserError):
    """A region that holds no pixels, because the scanner left it out."""


class UnreadableError(UserError):
    """A slide that cannot be read, or not as asked: what its file is, or says, and after a semicolon what to do."""


class Gridded(Source):
    """A source whose training patches are cut from whole scans.

    Attributes:
        whitens: whether the places of its test patches are white in its scans.
    """

    whitens: bool = False

    @abstractmethod
    def shape(self, scan: int) -> tuple[int, int]:
        """Height and width of a scan, in pixels."""

    @abstractmethod
    def tiles(self, scan: int) -> list[Region]:
        """Regions that cover a scan once and are cheap to read, each of a few million pixels."""

    @abstractmethod
    def read(self, scan: int, row: int, col: int, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
        """The gray values of a region, 0 (black) to 255 (white). `row` and `col` are its top left pixel.

        Raises:
            UserError: the region leaves the scan, or it cannot be read.
            NotScannedError: it holds no pixels.
        """

    def read_patch(self, patch: Patch) -> UInt8[np.ndarray, "s s"]:
        if patch.row is None or patch.col is None or patch.scan >= len(self):
            raise UserError(f"{self.path}: holds no patch {patch.patch_id}; is the manifest of another source?")
        return self.read(patch.scan, patch.row, patch.col, self.patch_size, self.patch_size)


class Precut(Source):
    """A source whose patches were cut before.

    Attributes:
        rules: what was decided when they were cut, by the names of `Rules`, as far as that is known.
        test_share: the most of a class that is held out for testing; None where that is given, or has no bound.
    """

    rules: Mapping[str, Any] = MappingProxyType({})
    test_share: float | None = None

    @abstractmethod
    def offered(self) -> list[Candidates]:
        """What each scan offers for training."""

    def group_of(self, patch: Patch) -> str | None:
        """What a patch shares with others, so that training and test must not part them; None where that is unknown."""
        return None


class Sample(NamedTuple):
    """A patch as a source gives it: gray values, the scan that it belongs to, and its name."""

    pixels: UInt8[np.ndarray, "s s"]
    scan: int
    patch_id: str


class PatchSource:
    """Random access to the patches of a source, in the order given: `patches[i] -> (pixels, scan, patch_id)`.

    Pixels are checked against the SHA-256 that a manifest holds, and holes are refused unless `with_holes` is true.
    """

    def __init__(self, source: Source, patches: Sequence[Patch], with_holes: bool = False):
        self.source, self.patches, self.with_holes = source, patches, with_holes

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> Sample:
        patch = self.patches[index]
        pixels = self.source.read_patch(patch)
        if pixels.shape != (self.source.patch_size,) * 2:
            raise UserError(
                f"{self.source.path}: {patch.patch_id} has {pixels.shape[0]} x {pixels.shape[1]} pixels and other "
                f"patches {self.source.patch_size} x {self.source.patch_size}; all must be of one size"
            )
        if patch.sha256 is not None and sha256_of(pixels) != patch.sha256:
            raise UserError(
                f"{self.source.path}: {patch.patch_id} has other pixels than the manifest says; the data were changed "
                "since, or are not those that the manifest was written for"
            )
        if not self.with_holes and is_hole(pixels):
            raise UserError(
                f"{self.source.path}: {patch.patch_id} {hole_of(pixels)}; fetch them again, or where a scanner "
                f"filled them make them white (`kimiajax data audit {self.source.flags}` shows all holes)"
            )
        return Sample(pixels, patch.scan, patch.patch_id)


def walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below a folder, links followed, but for what systems leave there by themselves.

    Raises:
        UserError: a link that leads back, or nowhere.
    """
    real = folder.resolve()
    if real in above:
        raise UserError(f"{shown(folder)}: links back to {shown(real)}, which it lies in; remove the link")
    for entry in folder.iterdir():
        if is_ignored(entry.name):
            continue
        if entry.is_dir():
            yield from walk(entry, (*above, real))
        elif entry.exists():
            yield entry
        else:
            raise UserError(
                f"{shown(entry)}: links to {shown(entry.readlink())}, which does not exist; remove the link"
            )


def is_ignored(name: str) -> bool:
    """Hidden files, and what systems leave in folders by themselves."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini", "__macosx")


def is_hole(patch: UInt8[np.ndarray, "s s"]) -> bool:
    """Whether a patch has one gray value and is darker than glass: what was lost reads as such, and no tissue does."""
    return len(patch) >= SMALLEST_HOLE and bool(patch.min() == patch.max() < BACKGROUND)


def hole_of(patch: UInt8[np.ndarray, "s s"]) -> str:
    """What to say of such a patch."""
    return f"has the gray value {patch[0, 0]} throughout: a hole in the data, not tissue"


def first_missing(numbers: Container[int], last: int) -> str:
    """The first few numbers up to `last` that are not there, as text; none where all are."""
    return first_few(str(number) for number in range(last + 1) if number not in numbers)


def sha256_of(pixels: UInt8[np.ndarray, "h w"]) -> str:
    """Hexadecimal SHA-256 of gray values, row by row from the top left."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def identity_of(files: Iterable[tuple[Path, os.stat_result]], *about: object) -> str:
    """A digest of where files lie, how large they are, and when the file system last changed each in any way.

    Args:
        files: each file's path and status, of the open file where it is open.
        about: what else decides about the pixels that are read from them.
    """
    stats = [(str(path.resolve()), stat) for path, stat in files]
    content = [[name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats]
    return hashlib.sha256(json.dumps([content, about]).encode()).hexdigest()
