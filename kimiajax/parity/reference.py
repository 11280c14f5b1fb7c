"""What the references share: images read and prepared without this project's data layer, scores as plain counts."""

import argparse
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from kimiajax.parity.job import Job

Outputs = dict[str, np.ndarray]


def read_images(job: Job) -> Outputs:
    """`decoded` and `resized`, by h5py and Pillow alone."""
    with h5py.File(job.scans, "r") as file:
        stored = file["test_data/patches"]
        assert isinstance(stored, h5py.Dataset)
        patches = {index: stored[index] for image in job.patches for index in image}
    resampling = getattr(Image.Resampling, job.resize.upper())
    resized = {i: np.asarray(Image.fromarray(p).resize((job.size, job.size), resampling)) for i, p in patches.items()}
    return {
        "decoded": np.stack([[patches[index] for index in image] for image in job.patches]),
        "resized": np.stack([[resized[index] for index in image] for image in job.patches]),
    }


def score(logits: np.ndarray, labels: tuple[int, ...]) -> np.ndarray:
    """eta_p, eta_w, eta_total, counted."""
    correct = logits.argmax(axis=1) == np.array(labels)
    per_scan = [correct[np.array(labels) == scan].mean() for scan in sorted(set(labels))]
    eta_p, eta_w = correct.mean(), np.mean(per_scan)
    return np.array([eta_p, eta_w, eta_p * eta_w])


def _end_with_parent() -> None:
    """Waits for the end of the pipe that the parent holds open, and ends this process with it."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main(make: Callable[[Job], None], run: Callable[[Job, str, Path], Outputs], versions: Callable[[], dict]) -> None:
    """The command line of a reference: `FOLDER make`, `FOLDER float32` or `FOLDER float64`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=("make", "float32", "float64"))
    arguments = parser.parse_args()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = Job.read(arguments.folder)
    if arguments.what == "make":
        make(job)
        return
    outputs = run(job, arguments.what, arguments.folder)
    np.savez(arguments.folder / f"{arguments.what}.npz", **outputs)  # pyright: ignore[reportArgumentType]  # see `Outputs`
    (arguments.folder / f"{arguments.what}.json").write_text(json.dumps(versions()), encoding="utf-8")
