"""Image files as programs write them, whole and damaged, each with what is right: its pixels, or words."""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image
from support.tiff_writer import DEFLATE, JPEG, LZW, PACKBITS, RAW, page, tiff

from kimiajax.data.sources.image_files import read_gray
from kimiajax.errors import UserError

FETCH, DAMAGED, CUT, PICTURES = "fetch it again", "a damaged image", "its data end before the picture does", "pictures"
HIGH, WIDE = 40, 48


class Case(NamedTuple):
    """An image file.

    Attributes:
        content: the file.
        pixels: its gray values; None where it has to be refused.
        words: of the refusal.
        most: how far a pixel may be off.
    """

    content: bytes
    pixels: np.ndarray | None = None
    words: tuple[str, ...] = ()
    most: int = 0


def wrong(case, path):
    """What is wrong with how a case is read, as a text; none if all is right."""
    path.write_bytes(case.content)
    try:
        gray = read_gray(path).astype(int)
    except UserError as error:
        said = str(error)
        if case.pixels is not None:
            return f"refused: {said}"
        missing = [word for word in (f"{path}: ", *case.words) if word not in said]
        if (FETCH in said) != (DAMAGED in said or FETCH in case.words):
            missing.append("the remedy")
        return f"{said!r} lacks {missing}" if missing else ""
    if case.pixels is None:
        return "read, though it should be refused"
    if gray.shape != case.pixels.shape:
        return f"read as {gray.shape} in place of {case.pixels.shape}"
    off = int(np.abs(gray - case.pixels).max())
    return f"off by {off}" if off > case.most else ""


def luma(rgb):
    """Gray of colours as ITU-R 601-2 has it, in Pillow's integers."""
    return (rgb.astype(int) @ [19595, 38470, 7471] + 0x8000) >> 16


NOISE = np.random.default_rng(0).integers(0, 256, (HIGH, WIDE), dtype=np.uint8)
DOWN, ACROSS = np.mgrid[:HIGH, :WIDE]
SMOOTH = (30 + 3 * DOWN + 2 * ACROSS).astype(np.uint8)  # which JPEG keeps
COLOUR = np.dstack([NOISE, 255 - NOISE, np.roll(NOISE, 7, 1)])
PALE = np.dstack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH])
OPAQUE, HOLE = np.full((HIGH, WIDE, 1), 255, np.uint8), np.full((HIGH, WIDE, 1), 255, np.uint8)
HOLE[3, 4] = 0
SOFT = {"pixels": luma(PALE), "most": 8}  # as JPEG, with colours at half the resolution
GRAYS = {"pixels": SMOOTH, "most": 4}

TURNS = {  # by Exif's number: what turns the stored pixels upright
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}


def damage(*words):
    return {"words": (DAMAGED, *words)}


def refused(*words):
    return {"words": words}


def encoded(pixels, kind, **options):
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def without(number):
    return lambda parts: [None if k == number else part for k, part in enumerate(parts)]


def zeroed(number):
    return lambda parts: [bytes(len(part)) if k == number else part for k, part in enumerate(parts)]


def halved(number, zeros=False):
    def change(parts):
        half = parts[number][: len(parts[number]) // 2]
        half += bytes(len(parts[number]) - len(half)) if zeros else b""
        return [*parts[:number], half, *parts[number + 1 :]]

    return change


def layouts():
    """Gray and colour in each compression, in strips and tiles, in one plane and several, in each order of bytes."""
    found = {}
    for name, packing in {"raw": RAW, "LZW": LZW, "Deflate": DEFLATE, "PackBits": PACKBITS}.items():
        for lie, options in {"": {}, " strips": {"rows": 7}, " tiles": {"tile": (16, 32)}}.items():
            for planes in (1, 2):
                content = tiff(
                    page(COLOUR, 2, packing, planes=planes, **options), order="<>"[planes - 1], big=bool(lie)
                )
                found[f"TIFF {name}{lie}, {planes} planes"] = Case(content, luma(COLOUR))
            content = tiff(page(255 - NOISE, 0, packing, **options), order=">")
            found[f"TIFF {name}{lie}, white is 0"] = Case(content, NOISE)
            content = tiff(page(NOISE, 1, packing, more={284: (3, [2])}, **options))
            found[f"TIFF {name}{lie}, a plane of gray"] = Case(content, NOISE)
            content = tiff(page(NOISE, 0, packing, more={284: (3, [2])}, **options))
            found[f"TIFF {name}{lie}, a plane of which white is 0"] = Case(content, 255 - NOISE)
        for bits in (1, 2, 4):
            few = NOISE >> (8 - bits)
            shade = few.astype(int) * (255 // (2**bits - 1))
            table = {320: (3, [((n * 37) % 256) * 257 for n in range(2**bits)] * 3)}
            of_table = few.astype(int) * 37 % 256
            found[f"TIFF {name}, {bits} bits"] = Case(tiff(page(few, 1, packing, bits=bits, rows=9)), shade)
            found[f"TIFF {name}, {bits} bits, white is 0"] = Case(tiff(page(few, 0, packing, bits=bits)), 255 - shade)
            found[f"TIFF {name}, a table, {bits} bits"] = Case(
                tiff(page(few, 3, packing, bits=bits, more=table)), of_table
            )
        extra = {"opaque": (OPAQUE, {"pixels": luma(COLOUR)}), "a hole": (HOLE, refused("is transparent in places"))}
        for said, (alpha, right) in extra.items():
            for kind in (1, 2):
                for planes in (1, 2):
                    tags = {"more": {338: (3, [kind])}, "planes": planes}
                    content = tiff(page(np.dstack([COLOUR, alpha]), 2, packing, **tags))
                    found[f"TIFF {name}, {said}, alpha {kind}, {planes} planes"] = Case(content, **right)
    for packing in (LZW, DEFLATE):
        for planes in (1, 2):
            content = tiff(page(COLOUR, 2, packing, planes=planes, predictor=2, tile=(16, 16)))
            found[f"TIFF {packing}, predictor, {planes} planes"] = Case(content, luma(COLOUR))
    return found


def jpegs_in_tiffs():
    found = {}
    for lie, options in {"": {}, " strips": {"rows": 16}, " tiles": {"tile": (16, 32)}}.items():
        for tables in (False, True):
            for name, sampling in {"4:4:4": (0, [1, 1]), "4:2:2": (1, [2, 1]), "4:2:0": (2, [2, 2])}.items():
                tags = {"jpeg": {"subsampling": sampling[0]}, "tables": tables, "more": {530: (3, sampling[1])}}
                content = tiff(page(PALE, 6, JPEG, **options, **tags))
                found[f"TIFF JPEG{lie}, {name}, tables apart {tables}"] = Case(content, **SOFT)
            content = tiff(page(SMOOTH, 1, JPEG, tables=tables, **options), order=">")
            found[f"TIFF JPEG{lie}, gray, tables apart {tables}"] = Case(content, **GRAYS)
        content = tiff(page(PALE, 2, JPEG, jpeg={"keep_rgb": True}, **options))
        found[f"TIFF JPEG{lie}, RGB"] = Case(content, **SOFT)
        found[f"TIFF JPEG{lie}, white is 0"] = Case(tiff(page(255 - SMOOTH, 0, JPEG, **options)), **GRAYS)
        found[f"TIFF JPEG{lie}, planes"] = Case(tiff(page(PALE, 2, JPEG, planes=2, **options)), **SOFT)

    def cut(parts):
        return [*parts[:2], parts[2][: len(parts[2]) // 2] + b"\xff\xd9", *parts[3:]]

    for tables in (False, True):
        content = tiff(page(PALE, 6, JPEG, tile=(16, 16), tables=tables, parts=cut))
        found[f"TIFF JPEG, a tile is cut, tables apart {tables}"] = Case(content, **damage("tile 3 of 9 is cut", CUT))
    content = tiff(page(PALE, 6, JPEG, rows=16, parts=halved(1, zeros=True)))
    found["TIFF JPEG, a strip ends in zeros"] = Case(content, **damage("strip 2 of 3 is cut"))
    return found


def damaged_tiffs():
    found = {}
    for name, packing in {"raw": RAW, "LZW": LZW, "Deflate": DEFLATE, "PackBits": PACKBITS}.items():
        for lie, options in {"strip": {"rows": 16}, "tile": {"tile": (16, 48)}}.items():

            def made(change, packing=packing, options=options):
                return tiff(page(NOISE, 1, packing, parts=change, **options))

            found[f"TIFF {name}, a {lie} is missing"] = Case(made(without(1)), **damage(f"{lie} 2 of 3 is missing"))
            found[f"TIFF {name}, a {lie} is cut"] = Case(made(halved(1)), **damage(f"{lie} 2 of 3 is cut"))
            found[f"TIFF {name}, {lie}s too few"] = Case(made(lambda parts: parts[:2]), **damage(f"2 of 3 {lie}s"))
            found[f"TIFF {name}, cut in a {lie}"] = Case(made(list)[:-99], **damage(f"{lie} 3 of 3 is cut"))
            if packing != RAW:
                found[f"TIFF {name}, a {lie} of zeros"] = Case(made(zeroed(1)), **damage(f"{lie} 2 of 3"))
                found[f"TIFF {name}, zeros in a {lie}"] = Case(
                    made(halved(1, zeros=True)), **damage(f"{lie} 2 of 3 is cut or damaged")
                )
        planes = tiff(page(COLOUR, 2, packing, planes=2, rows=20, parts=halved(3)))
        found[f"TIFF {name}, a plane is cut"] = Case(planes, **damage("strip 4 of 6 is cut"))
    found["TIFF, cut in its tags"] = Case(tiff(page(NOISE, 1))[:60], **damage("tags"))
    found["TIFF, its sizes missing"] = Case(tiff(page(NOISE, 1, rows=9, more={279: None})), **damage("0 of 5 strips"))
    far = {256: (4, [50_000]), 257: (4, [50_000])}
    for packing in (RAW, DEFLATE, JPEG):
        content = tiff(page(SMOOTH, 1, packing, more=far))
        found[f"TIFF, far too large, {packing}"] = Case(content, **refused("far larger than a patch", FETCH))
        content = tiff(page(SMOOTH, 1, packing, tile=(48, 48), more={322: (4, [2**14]), 323: (4, [2**14])}))
        found[f"TIFF, a tile far too large, {packing}"] = Case(content, **refused("far larger than a patch", FETCH))
    found["TIFF, no tags"] = Case(b"II*\0\0\0\0\0" + bytes(99), **damage("no page"))
    found["TIFF, tags outside"] = Case(b"II*\0\xff\xff\0\0" + bytes(99), **damage("outside the file"))
    return found


def guesses():
    """TIFF files that could be read in several ways, most of them wrong."""
    channels = {"two": (np.dstack([NOISE, 255 - NOISE]), 1), "four": (np.dstack([COLOUR, NOISE]), 2)}
    signed = {"integers": (np.int8, 2), "of no kind": (np.uint8, 4)}
    wide = {
        "16 bits": (np.uint16, 1, ""),
        "signed 16 bits": (np.int16, 2, "signed integers"),
        "32 bits": (np.uint32, 1, ""),
        "float": (np.float32, 3, "floating-point numbers"),
        "double": (np.float64, 3, "floating-point numbers"),
        "complex": (np.complex64, 6, "complex numbers"),
    }
    found = {}
    for name, (kind, number) in signed.items():
        for colours, pixels in ((1, NOISE), (2, COLOUR)):
            tags = {339: (3, [number] * (3 if colours == 2 else 1))}
            content = tiff(page(pixels.astype(kind).view(np.uint8), colours, LZW, more=tags))
            found[f"TIFF, signed {name}, colours {colours}"] = Case(content, **refused("holds", "8-bit gray or RGB"))
    for name, (kind, number, word) in wide.items():
        values = np.ascontiguousarray(NOISE.astype(kind)).view(np.uint8).reshape(HIGH, -1)
        tags = {256: (4, [WIDE]), 258: (3, [values.shape[1] * 8 // WIDE]), 339: (3, [number])}
        found[f"TIFF, {name}"] = Case(tiff(page(values, 1, more=tags)), **refused("more than 8 bits a channel", word))
    for name, (pixels, colours) in channels.items():
        for said, tags in {"unspecified": {338: (3, [0])}, "unsaid": {}}.items():
            for planes in (1, 2):
                words = refused("transparent in places" if (name, said) == ("four", "unsaid") else "neither colour nor")
                content = tiff(page(pixels, colours, planes=planes, more=tags))
                found[f"TIFF, {name} channels {said}, {planes} planes"] = Case(content, **words)
    five = np.dstack([COLOUR, NOISE, NOISE])
    found["TIFF, five channels"] = Case(tiff(page(five, 2, more={338: (3, [0, 0])})), **refused("has 5 channels"))
    for name, number in {"CMYK": 5, "CIELab": 8, "ICCLab": 9, "LogLuv": 32845, "34892": 34892}.items():
        pixels = np.dstack([COLOUR, NOISE]) if number == 5 else COLOUR
        found[f"TIFF, colours {name}"] = Case(tiff(page(pixels, number)), **refused(f"is of mode {name}"))
    found["TIFF, no colours said"] = Case(tiff(page(NOISE, 1, more={262: None})), **refused("whether 0 is black"))
    for number in (2, 3, 4, 34925, 50000):
        content = tiff(page(NOISE, 1, more={259: (3, [number])}))
        found[f"TIFF, compression {number}"] = Case(content, **refused("is compressed with", "save it with LZW"))
    for packing in (RAW, LZW, DEFLATE):
        content = tiff(page(NOISE, 1, packing, more={266: (3, [2])}))
        found[f"TIFF, bits in reverse, {packing}"] = Case(content, **refused("in reverse order"))
    for packing, predictor in ((RAW, 2), (PACKBITS, 2), (LZW, 3)):
        content = tiff(page(NOISE, 1, packing, more={317: (3, [predictor])}))
        found[f"TIFF, predictor {predictor}, {packing}"] = Case(content, **refused(f"has predictor {predictor}"))
    found["TIFF, a table of bytes"] = Case(
        tiff(page(NOISE, 3, more={320: (3, list(range(256)) * 3)})), **refused("table of colours of 8 bits")
    )
    found["TIFF, a short table"] = Case(tiff(page(NOISE, 3, more={320: (3, [0] * 9)})), **damage("table of colours"))
    found["TIFF, 3 bits"] = Case(tiff(page(NOISE >> 5, 1, bits=3)), **refused("has 3 bits a channel"))
    found["TIFF, 4 bits of colour"] = Case(tiff(page(COLOUR >> 4, 2, bits=4)), **refused("has 4 bits a channel"))
    found["TIFF, YCbCr, dense"] = Case(tiff(page(COLOUR, 6)), **refused("YCbCr colours of a rare kind"))
    plain = {530: (3, [1, 1])}
    ycbcr = np.asarray(Image.fromarray(PALE).convert("YCbCr"))
    for packing in (RAW, LZW, DEFLATE, PACKBITS):
        found[f"TIFF, YCbCr, {packing}"] = Case(tiff(page(ycbcr, 6, packing, more=plain)), luma(PALE), most=3)
    levels = plain | {532: (5, [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1])}
    found["TIFF, YCbCr, levels of video"] = Case(tiff(page(ycbcr, 6, more=levels)), **refused("of a rare kind"))
    found["TIFF JPEG, RGB said of YCbCr"] = Case(
        tiff(page(PALE, 2, JPEG, parts=lambda _: [encoded(PALE, "JPEG")])), **refused("says one thing of its colours")
    )
    return found


def described(text):
    return {270: (2, list(text.encode() + b"\0"))}


def pages():
    """Files of several pages."""
    small, kind = NOISE[::2, ::2], {254: (4, [1])}
    full, reduced = page(NOISE, 1), page(small, 1, more=kind)
    mask = {"bits": 1, "more": {254: (4, [4])}}
    seen, hidden = np.ones((HIGH, WIDE), np.uint8), np.zeros((HIGH, WIDE), np.uint8)
    read = {
        "a pyramid": tiff(page(NOISE, 1, tile=(16, 16)), reduced),
        "a thumbnail first": tiff(reduced, full),
        "an old thumbnail first": tiff(page(small, 1, more={255: (3, [2])}), full),
        "a thumbnail first, of BigTIFF": tiff(reduced, full, order=">", big=True),
        "a pyramid below": tiff(page(NOISE, 1, below=(reduced, page(NOISE[::4, ::4], 1, more=kind)))),
        "the picture below a thumbnail": tiff(page(small, 1, more=kind, below=(full,))),
        "a smaller copy alone": tiff(page(NOISE, 1, more=kind)),
        "a smaller copy alone with its mask": tiff(
            page(NOISE, 1, more=kind), page(seen, 4, bits=1, more={254: (4, [5])})
        ),
        "a mask of everything": tiff(full, page(seen, 4, **mask)),
        "one picture of ImageJ": tiff(page(NOISE, 1, more=described("ImageJ=1.53t\nimages=1\nmin=0.0\n"))),
        "Aperio's pages": tiff(
            page(NOISE, 1, more=described("Aperio Image Library v12\n48x40 |AppMag = 20")),
            page(small, 1),
            page(255 - NOISE, 1, more=described("Aperio Image Library v12\nlabel 48x40")),
        ),
    }
    stacks = {
        "two": (tiff(full, page(255 - NOISE, 1)), 2),
        "six": (tiff(*[full] * 6), 6),
        "another size": (tiff(full, page(small, 1)), 2),
        "ImageJ's": (tiff(page(NOISE, 1, more=described("ImageJ=1.53t\nimages=6\nchannels=2\nslices=3\n"))), 6),
        "ImageJ's, listed": (tiff(*[page(NOISE, 1, more=described("ImageJ=1.53t\nimages=3\nslices=3\n"))] * 3), 3),
        "tifffile's": (tiff(page(NOISE, 1, more=described('{"shape": [5, 40, 48]}'))), 5),
        "MetaMorph's": (tiff(page(NOISE, 1, more={33629: (5, [1] * 8)})), 4),
        "in depth": (tiff(page(NOISE, 1, more={32997: (4, [7])})), 7),
        "below": (tiff(page(NOISE, 1, below=(page(255 - NOISE, 1),))), 2),
        "two copies": (tiff(reduced, page(NOISE[1::2, ::2], 1, more=kind)), 2),
    }
    found = {f"TIFF pages, {name}": Case(content, NOISE) for name, content in read.items()}
    for name, (content, count) in stacks.items():
        found[f"TIFF stack, {name}"] = Case(
            content, **refused(f"holds {count} {PICTURES}; save one as a file of its own")
        )
    found["TIFF pages, a mask"] = Case(tiff(full, page(hidden, 4, **mask)), **refused("is transparent in places"))
    found["TIFF pages, a mask alone"] = Case(tiff(page(seen, 4, **mask)), **refused("holds masks and no picture"))
    return found


def orientations():
    found = {}
    for value, turn in TURNS.items():
        tags = {274: (3, [value])}
        for name, packing in {"raw": RAW, "LZW": LZW, "Deflate": DEFLATE}.items():
            found[f"TIFF {name}, turned {value}"] = Case(tiff(page(NOISE, 1, packing, more=tags)), turn(NOISE))
        found[f"TIFF JPEG, turned {value}"] = Case(tiff(page(SMOOTH, 1, JPEG, more=tags)), turn(SMOOTH), most=4)
        found[f"TIFF tiles, turned {value}"] = Case(tiff(page(NOISE, 1, tile=(16, 16), more=tags)), turn(NOISE))
        found[f"PNG, turned {value}"] = Case(encoded(NOISE, "PNG", exif=turned(value)), turn(NOISE))
        content = encoded(SMOOTH, "JPEG", quality=95, exif=turned(value))
        found[f"JPEG, turned {value}"] = Case(content, turn(SMOOTH), most=4)
    return found


def pictures(*, main=SMOOTH, other=SMOOTH, kind=0):
    """A JPEG of a camera with another picture behind it, of a kind by Multi-Picture's number."""
    first, second = (encoded(pixels, "JPEG", quality=95) for pixels in (main, other))
    start = 2 + 8  # of the list, which counts places from there
    entries = struct.pack("<4I", 0x030000, 0, 0, 0), struct.pack("<4I", kind, len(second), 0, 0)
    tags = struct.pack("<HHHI4s", 3, 0xB000, 7, 4, b"0100") + struct.pack("<HHII", 0xB001, 4, 1, 2)
    tags += struct.pack("<HHII", 0xB002, 7, 32, 8 + 2 + 36 + 4) + bytes(4)
    size = 2 + 4 + 8 + len(tags) + 32
    place = len(first) + 2 + size - start
    entries = entries[0], struct.pack("<4I", kind, len(second), place, 0)
    index = b"MPF\0II*\0" + struct.pack("<I", 8) + tags + b"".join(entries)
    return first[:2] + b"\xff\xe2" + struct.pack(">H", size) + index + first[2:] + second


def jpegs():
    found = {
        "JPEG, gray": Case(encoded(SMOOTH, "JPEG", quality=95), **GRAYS),
        "JPEG, fill bytes": Case(encoded(SMOOTH, "JPEG", quality=95)[:-2] + b"\xff\xff\xff\xd9", **GRAYS),
        "JPEG, bytes behind": Case(encoded(SMOOTH, "JPEG", quality=95) + bytes(99), **GRAYS),
        "JPEG, as RGB": Case(encoded(PALE, "JPEG", quality=95, keep_rgb=True), **SOFT),
        "JPEG, white": Case(encoded(np.full_like(SMOOTH, 255), "JPEG"), np.full_like(SMOOTH, 255)),
        "JPEG, of the gray that decoders fill in": Case(encoded(SMOOTH * 0 + 128, "JPEG"), SMOOTH * 0 + 128),
    }
    for sampling in range(3):
        for name, options in {"": {}, ", progressive": {"progressive": True}}.items():
            content = encoded(PALE, "JPEG", quality=95, subsampling=sampling, **options)
            found[f"JPEG, sampling {sampling}{name}"] = Case(content, **SOFT)
    whole = {
        "sequential": encoded(COLOUR, "JPEG", quality=95),
        "progressive": encoded(COLOUR, "JPEG", quality=95, progressive=True),
        "restarts": encoded(COLOUR, "JPEG", quality=95, restart_marker_blocks=2),
        "gray": encoded(NOISE, "JPEG", quality=95),
    }
    for name, content in whole.items():
        begin = content.index(b"\xff\xda") + 14
        for part in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
            cut = content[: begin + int(part * (len(content) - begin - 2))].rstrip(b"\xff")
            found[f"JPEG, {name}, cut at {part}"] = Case(cut, **damage(CUT))
            found[f"JPEG, {name}, cut at {part} and closed"] = Case(cut + b"\xff\xd9", **damage())
        middle = (begin + len(content)) // 2
        found[f"JPEG, {name}, one begins inside"] = Case(
            content[:middle].rstrip(b"\xff") + content,
            **damage("restart marks" if name == "restarts" else "one picture begins inside another"),
        )
    content, marks = whole["progressive"], []
    while (place := content.find(b"\xff\xda", marks[-1] + 2 if marks else 0)) >= 0:
        marks.append(place)
    for number, place in enumerate(marks[1:], 1):
        table = content.rfind(b"\xff\xc4", marks[number - 1], place)
        end = place if table < 0 else table
        found[f"JPEG, scans of {number}"] = Case(content[:end] + b"\xff\xd9", **damage(CUT))
    dropped = content[: content.rfind(b"\xff\xc4", 0, marks[-2])] + content[content.rfind(b"\xff\xc4", 0, marks[-1]) :]
    found["JPEG, a scan lost"] = Case(dropped, **damage())
    restarts = whole["restarts"]
    found["JPEG, a stretch lost"] = Case(
        restarts[: restarts.index(b"\xff\xd1")] + restarts[restarts.index(b"\xff\xd2") :], **damage("restart marks")
    )
    content = encoded(np.tile(SMOOTH, (4, 4)), "JPEG", quality=95)
    found["JPEG, bytes lost"] = Case(content[:2000] + content[2600:], **damage(CUT))
    frame = whole["gray"].index(b"\xff\xc0")
    for name, marker in {"arithmetic": 0xC9, "lossless": 0xC3}.items():
        content = whole["gray"][: frame + 1] + bytes([marker]) + whole["gray"][frame + 2 :]
        found[f"JPEG, {name}"] = Case(content, **refused("few programs read", "8-bit gray or RGB"))
    content = whole["gray"][: frame + 1] + b"\xc1\0\x0b\x0c" + whole["gray"][frame + 5 :]
    found["JPEG, 12 bits"] = Case(content, **refused("more than 8 bits a channel"))
    cmyk = encoded(Image.fromarray(PALE).convert("CMYK"), "JPEG")
    found["JPEG, CMYK"] = Case(cmyk, **refused("is of mode CMYK"))
    adobe = cmyk.index(b"Adobe") + 11
    found["JPEG, YCCK"] = Case(cmyk[:adobe] + b"\2" + cmyk[adobe + 1 :], **refused("is of mode CMYK"))
    found["JPEG, a preview behind"] = Case(pictures(other=SMOOTH[::2, ::2]), **GRAYS)
    found["JPEG, a large preview behind"] = Case(pictures(kind=0x010002), **GRAYS)
    found["JPEG, another behind"] = Case(pictures(other=SMOOTH[::-1].copy(), kind=0x020003), **refused(f"2 {PICTURES}"))
    return found


def chunk(kind, data, wrong=0):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def png(pixels, bits=8, colour=0, *, more=b"", wrong=0, packed=None, interlaced=0):
    """A PNG by hand: its rows, or `packed` in place of them; `wrong` spoils the checksum of its pixels."""
    if bits < 8:
        ones = np.unpackbits(pixels[..., None], axis=-1)[..., 8 - bits :]
        rows = np.packbits(ones.reshape(len(pixels), -1), axis=1)
    else:
        rows = pixels
    rows = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", pixels.shape[1], len(pixels), bits, colour, 0, 0, interlaced)
    data = zlib.compress(rows) if packed is None else packed
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", data, wrong) + chunk(b"IEND", b"")


def interlaced():
    """Rows of a PNG in seven passes."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    return b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in NOISE[y::dy, x::dx])


def pngs():
    table = chunk(b"PLTE", bytes(np.repeat(np.arange(256)[::-1], 3).astype(np.uint8)))
    moving = encoded(NOISE, "PNG", save_all=True, append_images=[Image.fromarray(255 - NOISE)])
    whole = png(NOISE)
    found = {
        "PNG, gray": Case(whole, NOISE),
        "PNG, colour": Case(png(COLOUR, 8, 2), luma(COLOUR)),
        "PNG, a table": Case(png(NOISE, 8, 3, more=table), 255 - NOISE),
        "PNG, gamma": Case(png(NOISE, more=chunk(b"gAMA", struct.pack(">I", 100_000))), NOISE),
        "PNG, interlaced": Case(png(NOISE, packed=zlib.compress(interlaced()), interlaced=1), NOISE),
        "PNG, a transparent gray": Case(
            png(NOISE, more=chunk(b"tRNS", b"\0\7")), **refused("is transparent in places")
        ),
        "PNG, 16 bits": Case(png(COLOUR, 16, 0), **refused("more than 8 bits a channel")),
        "PNG, moving": Case(moving, **refused(f"holds 2 {PICTURES}")),
        "PNG, cut": Case(whole[:-200], **damage(CUT)),
        "PNG, cut at its end": Case(whole[:-12], **damage(CUT)),
        "PNG, a wrong checksum": Case(png(NOISE, wrong=1), **damage("IDAT")),
        "PNG, too few rows": Case(png(NOISE, packed=zlib.compress(bytes(99))), **damage()),
        "PNG, interlaced, too few rows": Case(
            png(NOISE, packed=zlib.compress(interlaced()[:900]), interlaced=1), **damage()
        ),
        "PNG, no table": Case(png(NOISE, 8, 3), **damage("table of colours")),
        "PNG, a short table": Case(png(NOISE, 8, 3, more=chunk(b"PLTE", bytes(30))), **damage("table of colours")),
    }
    for bits in (1, 2, 4):
        few = NOISE >> (8 - bits)
        found[f"PNG, {bits} bits"] = Case(png(few, bits), few.astype(int) * (255 // (2**bits - 1)))
    return found


def bmp(bits, data, packing=0, height=HIGH, *, between=b"", listed=0):
    start = 54 + len(between)
    return b"".join(
        [
            b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start),
            struct.pack("<IiiHHIIiiII", 40, WIDE, height, 1, bits, packing, len(data), 0, 0, listed, 0),
            between + data,
        ]
    )


def bmps():
    ramp = np.dstack([np.arange(256)] * 3 + [np.zeros(256)]).astype(np.uint8).tobytes()
    runs = [b"".join(bytes([1, value]) for value in row) for row in NOISE[::-1]]
    blue = np.dstack([COLOUR[::-1, :, ::-1], OPAQUE * 0])
    five = (NOISE >> 3).astype("<u2")
    shade = (five.astype(int) * 255 / 31).round().astype(int)
    fields = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    six = (NOISE >> 2).astype("<u2")
    near = five.astype(int) * 255 / 31 * 0.413 + six.astype(int) * 255 / 63 * 0.587
    packed = {"between": ramp, "packing": 1}
    short = [runs[0][:-2], *runs[1:]]
    return {
        "BMP, gray": Case(bmp(8, NOISE[::-1].tobytes(), between=ramp), NOISE),
        "BMP, from the top": Case(bmp(8, NOISE.tobytes(), height=-HIGH, between=ramp), NOISE),
        "BMP, 32 bits": Case(bmp(32, blue.tobytes()), luma(COLOUR)),
        "BMP, 16 bits": Case(bmp(16, (five | five << 5 | five << 10)[::-1].tobytes()), shade, most=1),
        "BMP, 16 bits by fields": Case(
            bmp(16, (five | six << 5 | five << 11)[::-1].tobytes(), 3, between=fields), near.round().astype(int), most=2
        ),
        "BMP, runs": Case(bmp(8, b"\0\0".join(runs) + b"\0\1", **packed), NOISE),
        "BMP, runs cut": Case(bmp(8, (b"\0\0".join(runs))[:2000], **packed), **damage(CUT)),
        "BMP, runs that end early": Case(
            bmp(8, b"\0\0".join(runs[:9]) + b"\0\1", **packed), **refused("leaves pixels")
        ),
        "BMP, a short line": Case(bmp(8, b"\0\0".join(short) + b"\0\1", **packed), **refused("leaves pixels out")),
        "BMP, a leap": Case(bmp(8, b"\0\2\5\0" + b"\0\0".join(runs), **packed), **refused("leaves pixels out")),
        "BMP, cut": Case(bmp(8, NOISE.tobytes()[:-100], between=ramp), **damage()),
        "BMP, a short table": Case(
            bmp(8, NOISE.tobytes(), between=bytes(range(40)), listed=10), **damage("table of colours")
        ),
    }


def others():
    gray = Image.fromarray(NOISE)
    return {
        kind: Case(encoded(gray, kind), **refused("not a PNG, JPEG, TIFF or BMP image"))
        for kind in ("GIF", "WEBP", "ICO")
    }


CASES = {
    name: case
    for make in (*(layouts, jpegs_in_tiffs, damaged_tiffs, guesses, pages, orientations, jpegs, pngs, bmps, others),)
    for name, case in make().items()
}
