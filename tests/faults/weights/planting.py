"""Weight files to be damaged, and what is asked of commands that are given them."""

import contextlib
import io
import json
import re
import struct

import h5py
import numpy as np

from faults.harness import Ended, ask, nothing_changes, refused
from kimiajax.models.registry import BACKBONES
from weights_convert.__main__ import main as converter
from weights_convert.mappings import files_of

MIB = 2**20


def features(scans, weights, out, *flags, network="vgg16", size=32):
    """The cheapest command that reads a file of weights: one block of tiny patches."""
    wanted = ("--image-size", size, "--conv", "plain", "--out", out)
    return ask("features", network, "--scans", scans, "--weights", weights, *wanted, *flags)


def block1(scans, weights, out, *flags, **options):
    return features(scans, weights, out, "--tap", "block1", *flags, **options)


def parity(scans, weights, out):
    flags = ("--image-size", 32, "--steps", 1, "--out", out)
    return ask("parity", "vgg16", "--reference", "keras", "--weights", weights, "--scans", scans, *flags)


def convert(*arguments):
    """`python -m weights_convert ARGUMENTS`, whose line begins with its own name."""
    shown, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
        status = converter([str(argument) for argument in arguments])
    assert "kimiajax: " not in said.getvalue()
    return Ended(status, re.sub("^weights_convert: ", "kimiajax: ", said.getvalue(), flags=re.M), shown.getvalue())


def refused_whole(scans, folder, weights, *words, command=block1, **options):
    """Asserts that weights are refused with the file's name and that nothing is left of the attempt."""
    with nothing_changes(folder):
        return refused(command(scans, weights, folder / "out", **options), weights, *words)


def array(name, shape, rng):
    """Random throughout, and He-scaled where a layer computes with it."""
    if name == "kernel":
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)


def keras_arrays(network, draw=array):
    """All arrays of a network without top, by the names that Keras' files have."""
    backbone, rng = BACKBONES[network], np.random.default_rng(0)
    shapes, arrays = backbone.shapes(backbone.smallest, backbone.trunk), {}
    for name, ((kind, block, *rest), _) in files_of(network, "keras").tables[0].items():
        node = shapes[kind].get(block)
        for key in rest if node else ():
            node = node[key]
        if node:
            arrays[name.replace("#", "_")] = draw(name.split("/")[1], node.shape, rng)
    return arrays


def keras_file(path, arrays):
    with h5py.File(path, "w") as file:
        file.attrs["backend"] = "tensorflow"
        for name, values in arrays.items():
            file[f"{name.split('/')[0]}/{name}"] = values
    return path


def place(name):
    return f"{name.split('/')[0]}/{name}"


def drop(name):
    return lambda file: file.__delitem__(place(name))


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def safetensors(path, header, body=b"", claimed=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content) if claimed is None else claimed) + content + body)
    return path


def turned(content):
    place = content.index(b"HDF\r\n\x1a\n") + 3000
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
