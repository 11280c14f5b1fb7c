"""What a file of Keras' says of itself, held against what reading it assumes.

Shapes show neither whether a kernel lies turned by 180 degrees, as Theano has them, nor in which order of axes an image
was flattened before a dense layer, nor what the network does between its arrays. Attributes, the model's configuration
and the file's name do. What differs is turned, reordered or made an option of the network, and told; what cannot be had
here, or is not said, is refused.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kimiajax.errors import UserError, check_known
from kimiajax.io.json_records import parse_json
from kimiajax.text import quoted
from weights_convert import keras_graph
from weights_convert.arrays import Stored
from weights_convert.held import Held, Stated
from weights_convert.keras_graph import CHANNELS, Graph

BACKENDS = {  # what Keras ran on -> whether its kernels are turned
    "theano": True,
    **dict.fromkeys(("tensorflow", "cntk", "jax", "torch", "numpy", "openvino"), False),
}
OF_KERAS_3 = ("jax", "torch", "numpy", "openvino")
NAMED_KERNELS = {"th": True, "tf": False}  # `..._tf_dim_ordering_tf_kernels.h5`
LAST_WITH_THEANO = (2, 3)  # of Keras' versions
FLATTENING_ALIKE = (2, 2)  # from this one on, Keras flattens height, width, channel whatever the order of axes is
LARGEST_SIDE = 7  # of a kernel, in pixels


@dataclass(frozen=True)
class Said:
    """What a file says of itself.

    Attributes:
        backends: what Keras ran on, wherever that is written.
        version: of Keras.
        graph: the model that its configuration describes.
        name: the file's name.
        saved_by_number: it is a `.weights.h5` or `.keras`, which Keras has written since 2.12.
    """

    backends: tuple[str, ...]
    version: str | None
    graph: Graph | None
    name: str
    saved_by_number: bool = False

    @classmethod
    def read(cls, file: h5py.File, described: Mapping[str, bytes], path: Path) -> "Said":
        """Reads attributes, descriptions in an archive, and the configuration.

        Raises:
            UserError: one that is not as Keras writes it.
        """
        root = file.get("model_weights")
        groups = [file, root] if isinstance(root, h5py.Group) else [file]
        records: list[dict[str, Any]] = [
            {key: _text(group.attrs[key], key, path) for key in ("backend", "keras_version") if key in group.attrs}
            for group in groups
        ]
        configs = [
            _text(group.attrs["model_config"], "model_config", path)
            for group in groups
            if "model_config" in group.attrs
        ]
        texts = {name: text.decode("utf-8", "replace") for name, text in described.items()}
        configs += [texts.pop("config.json")] if "config.json" in texts else []
        graph = None
        if len(set(configs)) > 1:
            raise UserError(f"{path}: has two configurations that differ; save it again from the model")
        for text in (*texts.values(), *configs):
            with config_named(path):
                record = parse_json(text)
                records.append({key: record[key] for key in ("backend", "keras_version") if key in record})
                if text in configs and record.get("config") is not None:
                    graph = keras_graph.parse(record)
        said = {key: [r[key] for r in records if isinstance(r.get(key), str)] for key in ("backend", "keras_version")}
        versions = said["keras_version"]
        return cls(
            tuple(dict.fromkeys(backend.strip().lower() for backend in said["backend"])),
            versions[0] if versions else None,
            graph if graph and graph.layers else None,
            path.name,
            "model_weights" not in file and ("vars" in file or isinstance(file.get("layers"), h5py.Group)),
        )

    @property
    def number(self) -> tuple[int, int] | None:
        """The version's first two numbers."""
        match = re.match(r"(\d+)\.(\d+)", self.version or "")
        return (int(match[1]), int(match[2])) if match else None

    @property
    def after_theano(self) -> bool:
        """Whether that Keras has no Theano."""
        later = self.number is not None and self.number > LAST_WITH_THEANO
        return later or self.saved_by_number or "tf" in (self.version or "")

    @property
    def flattens_alike(self) -> bool:
        """Whether that Keras flattens as height, width, channel in whatever order of axes."""
        later = self.number is not None and self.number >= FLATTENING_ALIKE
        return later or self.after_theano or any(backend in OF_KERAS_3 for backend in self.backends)

    def of_name(self, what: str) -> str | None:
        """Returns "th" or "tf", which the file's name says of its `what`: "dim_ordering", "kernels"."""
        match = re.search(rf"(?:^|[\W_])(th|tf)_{what}", self.name.lower())
        return match[1] if match else None


@contextlib.contextmanager
def config_named(path: Path) -> Iterator[None]:
    """Raises what a configuration of another form makes its reader raise as the one error that names the file."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(
            f"{path}: its configuration is not as Keras writes it ({type(error).__name__}); save the model again, or "
            "its weights alone"
        ) from error


def turn(held: Held, said: Said, path: Path, stated: Stated) -> None:
    """Turns kernels that a convolution of Theano's has turned.

    Raises:
        UserError: the file contradicts itself, or does not say what wrote it.
    """
    for name, value, known in (("backend", stated.backend, BACKENDS), ("data_format", stated.data_format, CHANNELS)):
        if value is not None:
            check_known(name, value, known)
    known = [backend for backend in said.backends if backend in BACKENDS]
    unknown = [backend for backend in said.backends if backend not in BACKENDS]
    if unknown and stated.backend is None:
        raise UserError(
            f"{path}: was saved on the backend {quoted(unknown[0])}, of which it is not known here how it convolves; "
            f"{by_hand('--backend tensorflow, or theano,')}"
        )
    named = said.of_name("kernels")
    # Only Theano's programs write its name; others may overwrite it in one place and not in the other.
    evidence = {f"its backend is {', '.join(known)}": "theano" in known} if known else {}
    evidence |= {f"its name has {named}_kernels": NAMED_KERNELS[named]} if named else {}
    if not evidence and (said.after_theano or held.published):
        evidence = {"its Keras has no Theano": False}
    both = {BACKENDS[backend] for backend in known} | set(evidence.values())
    if stated.backend and (not evidence or BACKENDS[stated.backend] in both):  # which decides between two
        evidence = {f"you say {stated.backend}": BACKENDS[stated.backend]}
    elif stated.backend:
        evidence[f"you say {stated.backend}"] = BACKENDS[stated.backend]
    if len(set(evidence.values())) > 1:
        raise UserError(
            f"{path}: there are two answers to whether Theano wrote it, whose kernels are turned by 180 degrees "
            f"({', '.join(evidence)}); save it again from the model"
            + ("" if stated.backend else f", or {by_hand('--backend tensorflow, or theano,')}")
        )
    if not evidence:
        raise UserError(
            f"{path}: does not say which backend wrote it (attribute `backend`, or `th_kernels` or `tf_kernels` in its "
            f"name), and Theano's kernels are turned by 180 degrees; {by_hand('--backend tensorflow, or theano,')}"
        )
    why, turned = next(iter(evidence.items()))
    if turned:
        for name, stored in _kernels(held).items():
            held.arrays[name] = stored.changed(lambda kernel: np.ascontiguousarray(kernel[::-1, ::-1]))
        held.changes.append(f"kernels turned by 180 degrees, since Theano has them so ({why})")


def transpose(held: Held, said: Said, stated: Stated) -> bool:
    """Transposes kernels that Keras 1 wrote in its order "th", where the file says that it did; returns whether."""
    kernels = _kernels(held)
    ordered = "th" in (said.of_name("dim_ordering"), said.of_name("kernels")) or stated.data_format == "channels_first"
    ordered = ordered or (said.graph is not None and "channels_first" in said.graph.data_formats())
    of_keras_1 = said.number[0] == 1 if said.number else ordered
    if not of_keras_1 or not kernels or not all(_is_oihw(stored.shape) for stored in kernels.values()):
        return False
    for name, stored in kernels.items():
        o, i, h, w = stored.shape
        held.arrays[name] = stored.changed(lambda kernel: kernel.transpose(2, 3, 1, 0), (h, w, i, o))
    held.changes.append("kernels transposed from output, input, height, width, the order th of Keras 1")
    return True


def _kernels(held: Held) -> dict[str, Stored]:
    """The kernels of convolutions."""
    kernels = {name: stored for name, stored in held.arrays.items() if name.endswith("/kernel")}
    return {name: stored for name, stored in kernels.items() if len(stored.shape) == 4}


def _is_oihw(shape: tuple[int, ...]) -> bool:
    return max(shape[2:]) <= LARGEST_SIDE < shape[0]


def data_format(held: Held, said: Said, path: Path, stated: Stated) -> str | None:
    """Returns the order of axes that the network ran in, where the file says so."""
    named = keras_graph.FORMATS.get(said.of_name("dim_ordering") or "")
    found = {
        "its configuration": said.graph.data_formats() if said.graph else [],
        "its name": [named] if named else [],
        "its checksum": ["channels_last"] if held.published else [],
        "you": [stated.data_format] if stated.data_format else [],
    }
    answers = sorted({form for forms in found.values() for form in forms})
    if len(answers) > 1 or any(form not in keras_graph.CHANNELS for form in answers):
        words = "; ".join(f"{who}: {', '.join(map(quoted, forms))}" for who, forms in found.items() if forms)
        raise UserError(f"{path}: has no one order of axes ({words}); channels_last or channels_first is needed")
    held.says |= {"data_format": answers[0]} if answers else {}
    return answers[0] if answers else None


def by_hand(flag: str) -> str:
    return f"convert it with `python -m weights_convert keras` and {flag} if you know"


def _text(value: Any, key: str, path: Path) -> str:
    """An attribute's text, which h5py gives as bytes or as a string."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise UserError(f"{path}: its attribute {key} is no text ({quoted(str(value))}); save it from Keras again")
    return value
