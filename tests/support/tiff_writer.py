"""TIFF files written by hand, with any tags and with damage: no library writes what nobody should."""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

RAW, LZW, JPEG, DEFLATE, PACKBITS = 1, 5, 7, 8, 32773
FORMS = {1: "B", 2: "B", 3: "H", 4: "I", 5: "I", 7: "B", 11: "f", 12: "d", 16: "Q"}
OLDER = {16: 4}  # a type of BigTIFF, and what takes its place in other files


class Written(NamedTuple):
    """A page: its tags, each with type and values; its strips or tiles as stored, None if missing; pages below it."""

    tags: dict
    parts: list
    below: tuple = ()


def lzw(data):
    """LZW that never uses its table: a clear code before it would grow beyond codes of 9 bits."""
    codes = []
    for at in range(0, len(data), 250):
        codes += [256, *data[at : at + 250]]
    bits = np.array([*codes, 257], ">u2").view(np.uint8).reshape(-1, 2)
    return np.packbits(np.unpackbits(bits, axis=1)[:, 7:].reshape(-1)).tobytes()


def packbits(data):
    """PackBits without runs."""
    return b"".join(bytes([len(data[at : at + 128]) - 1]) + data[at : at + 128] for at in range(0, len(data), 128))


def jpeg(pixels, **options):
    """A JPEG without what says that its colours are YCbCr, which a TIFF's tags say."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **{"quality": 95, **options})
    content = stream.getvalue()
    if content[2:4] == b"\xff\xe0":
        content = content[:2] + content[4 + int.from_bytes(content[4:6], "big") :]
    return content


def split_jpeg(content):
    """The tables of a JPEG as a file of their own, and the JPEG without them."""
    tables, rest, place = b"", b"", 2
    while content[place + 1] != 0xDA:
        size = 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        segment = content[place : place + size]
        tables, rest = (tables + segment, rest) if segment[1] in (0xDB, 0xC4) else (tables, rest + segment)
        place += size
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + content[place:]


ENCODERS = {RAW: bytes, LZW: lzw, DEFLATE: zlib.compress, PACKBITS: packbits}


def page(pixels, colours, compression=RAW, *, tile=None, rows=None, planes=1, bits=8, predictor=1, **options):
    """A page of pixels, [h w] or [h w c].

    Args:
        colours: the number of their interpretation.
        tile: height and width of a tile; without it, there are strips.
        rows: of a strip.
        bits: of a channel, below 8 for gray.
        options: `more`, other tags, or None to leave one out; `jpeg`, how JPEG is written; `tables`, whether its
            tables lie apart; `below`, pages that this one lists; `parts`, which makes others of the strips or tiles.
    """
    pixels = np.atleast_3d(pixels)
    height, width, samples = pixels.shape
    high, wide = tile or (rows or height, width)
    layers = [pixels[..., k : k + 1] for k in range(samples)] if planes == 2 else [pixels]
    parts, tables = [], b""
    for layer in layers:
        for row in range(0, height, high):
            for col in range(0, width, wide):
                part = layer[row : row + high, col : col + wide]
                if tile:
                    part = np.pad(part, ((0, high - len(part)), (0, wide - part.shape[1]), (0, 0)), mode="edge")
                if compression == JPEG:
                    part = jpeg(part[..., 0] if part.shape[2] == 1 else part, **options.get("jpeg", {}))
                    if options.get("tables"):
                        tables, part = split_jpeg(part)
                    parts.append(part)
                    continue
                if predictor == 2:
                    part = np.diff(part, axis=1, prepend=np.zeros_like(part[:, :1]))
                if bits < 8:
                    ones = np.unpackbits(part, axis=2)[..., 8 - bits :].reshape(len(part), -1)
                    part = np.packbits(ones, axis=1)
                parts.append(ENCODERS[compression](part.tobytes()))
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples), 259: (3, [compression])}
    tags |= {262: (3, [colours]), 277: (3, [samples]), 284: (3, [planes])}
    tags |= {322: (3, [wide]), 323: (3, [high])} if tile else {278: (3, [high])}
    tags |= {317: (3, [predictor])} if predictor != 1 else {}
    tags |= {347: (7, list(tables))} if tables else {}
    tags |= options.get("more", {})
    parts = options.get("parts", list)(parts)
    return Written(tags, parts, options.get("below", ()))


def tiff(*pages, order="<", big=False):
    """A file of pages. Their strips lie behind all lists of tags."""
    lists = [each for above in pages for each in (above, *above.below)]
    room, count, entry = (8, "Q", "HHQ") if big else (4, "I", "HHI")
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HHQ", 8, 0, 16) if big else struct.pack(f"{order}I", 8)

    def laid_out(places):
        """All lists of tags, where each begins, and where their values end, given where those lie and the strips."""
        content, starts = head, []
        for number, each in enumerate(lists):
            starts.append(len(content))
            at = places["parts"][number]
            tiled = 322 in each.tags
            sizes = [0 if part is None else len(part) for part in each.parts]
            tags = {(324 if tiled else 273): (16, at), (325 if tiled else 279): (16, sizes)} | each.tags
            tags |= {330: (16, places["below"][number])} if each.below else {}
            kept = {tag: said for tag, said in sorted(tags.items()) if said is not None}
            entries, behind = b"", b""
            after = len(content) + (8 if big else 2) + len(kept) * (20 if big else 12) + room
            for tag, (kind, values) in kept.items():
                kind = kind if big else OLDER.get(kind, kind)
                packed = struct.pack(f"{order}{len(values)}{FORMS[kind]}", *values)
                if len(packed) > room:
                    place = after + len(behind)
                    behind += packed + bytes(len(packed) % 2)
                    packed = struct.pack(f"{order}{count}", place)
                length = len(values) // 2 if kind == 5 else len(values)
                entries += struct.pack(f"{order}{entry}", tag, kind, length) + packed.ljust(room, b"\0")
            following = struct.pack(f"{order}{count}", places["next"][number])
            content += struct.pack(f"{order}{'Q' if big else 'H'}", len(kept)) + entries + following + behind
        return content, starts

    blank = {"parts": [[0] * len(each.parts) for each in lists], "below": [[0] * len(each.below) for each in lists]}
    content, starts = laid_out(blank | {"next": [0] * len(lists)})
    at, parts, data = len(content), [], b""
    for each in lists:
        parts.append([])
        for part in each.parts:
            parts[-1].append(0 if part is None else at + len(data))
            data += part or b""
    below, following, number = [], [], 0
    for above in pages:
        inner = list(range(number + 1, number + 1 + len(above.below)))
        number += 1 + len(inner)
        below += [[starts[k] for k in inner], *([[]] * len(inner))]
        following += [starts[number] if number < len(lists) else 0, *([0] * len(inner))]
    return laid_out({"parts": parts, "below": below, "next": following})[0] + data
