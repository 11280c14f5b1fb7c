"""TIFF files by their own tags, and which of their pages is the picture: Pillow reads the first, whatever it is."""

import math
import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from kimiajax.data.sources.jpeg_data import ALONE, UnreadError

SIGNATURES = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
TYPES = dict(zip((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18), "BBHIIbBhiifdIQqQ"))
PAIRS = (5, 10)  # types of two numbers each
TEXT = 2
MOST_PAGES, MOST_VALUES, LONGEST = 2**14, 2**22, 2**16  # of a file, of a tag, and of what is read of a description

NEW_KIND, OLD_KIND, WIDTH, HEIGHT, BITS, COMPRESSION, COLOURS, FILL_ORDER, DESCRIPTION = (
    *(254, 255, 256, 257, 258, 259, 262, 266, 270),
)
STRIPS, ORIENTATION, SAMPLES, ROWS, STRIP_SIZES, PLANES, PREDICTOR = 273, 274, 277, 278, 279, 284, 317
TABLE, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES, BELOW, EXTRA, FORMAT = 320, 322, 323, 324, 325, 330, 338, 339
JPEG_TABLES, COEFFICIENTS, SUBSAMPLING, REFERENCES, METAMORPH, DEPTH, CAMERAS = (
    *(347, 529, 530, 532, 33629, 32997, 0xB002),
)
REDUCED, OF_A_MASK = 1, 4  # bits of a page's kind


class Page(NamedTuple):
    """A directory of a file: what it says of one page.

    Attributes:
        content: the file.
        order: of bytes, as `struct` has it.
        places: by tag, the type of its values, how many there are, and where.
    """

    content: bytes
    order: str
    places: dict[int, tuple[int, int, int]]

    def values(self, tag: int) -> tuple[Any, ...]:
        """The values of a tag; none where the page lacks it.

        Raises:
            OSError: they lie outside the file.
        """
        if tag not in self.places:
            return ()
        kind, count, place = self.places[tag]
        if kind not in TYPES:
            raise OSError(f"its tag {tag} is of no known type")
        count *= 2 if kind in PAIRS else 1
        if count > MOST_VALUES:
            raise OSError(f"its tag {tag} claims {count:,} values")
        if place + count * struct.calcsize(TYPES[kind]) > len(self.content):
            raise OSError(f"its tag {tag} lies outside the file")
        return struct.unpack_from(f"{self.order}{count}{TYPES[kind]}", self.content, place)

    def value(self, tag: int, default: Any = 0) -> Any:
        """The first value of a tag."""
        return (*self.values(tag), default)[0]

    def ratios(self, tag: int) -> tuple[float, ...]:
        """The values of a tag whose type is pairs of numbers."""
        numbers = self.values(tag)
        if self.places.get(tag, (5,))[0] not in PAIRS:
            return numbers
        return tuple(a / b if b else 0.0 for a, b in zip(numbers[::2], numbers[1::2]))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.value(HEIGHT), self.value(WIDTH)

    @property
    def kind(self) -> int:
        """What the page is for, as bits: a smaller copy, a mask."""
        return self.value(NEW_KIND) | (REDUCED if self.value(OLD_KIND) == 2 else 0)

    @property
    def samples(self) -> int:
        return self.value(SAMPLES, 1)

    @property
    def in_planes(self) -> bool:
        """Whether channels lie one after another, and there are several."""
        return self.value(PLANES, 1) == 2 and self.samples > 1

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of each channel."""
        bits = self.values(BITS) or (1,)
        return bits if len(bits) > 1 else bits * min(self.samples, 16)


def pages_of(content: bytes) -> Iterator[Page]:
    """Yields all pages, each with the smaller ones below it, which may be none.

    Raises:
        OSError: the list of pages is damaged.
    """
    order, big = SIGNATURES.get(content[:4], ("", False))
    if not order:
        raise OSError("it does not begin as a TIFF file does")
    (first,) = _numbers(content, f"{order}Q" if big else f"{order}I", 8 if big else 4)
    todo, seen = [first], set()
    while todo:
        place = todo.pop()
        if not place or place in seen:
            continue
        seen.add(place)
        if len(seen) > MOST_PAGES:
            raise OSError(f"it claims more than {MOST_PAGES:,} pages")
        page, following = _page_at(content, order, big, place)
        todo += [following, *reversed(page.values(BELOW))]
        yield page


def _page_at(content: bytes, order: str, big: bool, place: int) -> tuple[Page, int]:
    start, entry, room, head = (8, 20, 8, "HHQ") if big else (2, 12, 4, "HHI")
    (count,) = _numbers(content, f"{order}{'Q' if big else 'H'}", place)
    if place + start + count * entry > len(content):
        raise OSError("a list of its tags is cut")
    places = {}
    for at in range(place + start, place + start + count * entry, entry):
        tag, kind, number = struct.unpack_from(f"{order}{head}", content, at)
        inside = at + entry - room
        size = number * struct.calcsize(TYPES.get(kind, "B")) * (2 if kind in PAIRS else 1)
        offset = inside if size <= room else _numbers(content, f"{order}{'Q' if big else 'I'}", inside)[0]
        places[tag] = kind, number, offset
    (following,) = _numbers(content, f"{order}{'Q' if big else 'I'}", place + start + count * entry)
    return Page(content, order, places), following


def _numbers(content: bytes, form: str, place: int) -> tuple[int, ...]:
    if place + struct.calcsize(form) > len(content):
        raise OSError("a list of its tags lies outside the file")
    return struct.unpack_from(form, content, place)


def picture_in(content: bytes) -> tuple[Page, Page | None]:
    """The only page that is the picture at its full size, and the mask that goes with it.

    Raises:
        UnreadError: it has several pictures.
        OSError: it is damaged.
    """
    pages = list(pages_of(content))
    masks, shown = ([page for page in pages if bool(page.kind & OF_A_MASK) == is_mask] for is_mask in (True, False))
    full = [page for page in shown if not page.kind & REDUCED] or shown
    if full and _description(full[0]).startswith("Aperio "):  # which marks neither thumbnail nor label
        full = full[:1]
    if not full:
        raise UnreadError("holds masks and no picture") if masks else OSError("it has no page")
    count = len(full) if len(full) > 1 else _planes_of(full[0])
    if count > 1:
        raise UnreadError(f"holds {count} pictures", ALONE)
    return full[0], next((mask for mask in masks if mask.size == full[0].size), None)


def _planes_of(page: Page) -> int:
    """How many pictures a file's only page stands for: some programs list the first, and write the rest behind it."""
    said, (height, width) = _description(page), page.size
    found = re.search(r"^images=(\d{1,9})\s*$", said, re.MULTILINE) if said.startswith("ImageJ=") else None
    shape = re.match(r'\{"shape": \[([\d, ]{1,200})\]', said)  # tifffile's
    values = math.prod(map(int, re.findall(r"\d+", shape[1]))) if shape else 0
    return max(
        int(found[1]) if found else 1,
        values // max(1, height * width * page.samples),
        page.places.get(METAMORPH, (0, 1))[1],
        page.value(DEPTH, 1),
    )


def _description(page: Page) -> str:
    kind, count, place = page.places.get(DESCRIPTION, (0, 0, 0))
    return page.content[place : place + min(count, LONGEST)].decode("latin-1") if kind == TEXT else ""
