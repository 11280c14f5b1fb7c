"""What can go wrong, and what is right then: the rows of the table that `make test-faults` prints.

For all of them: the exit status is not 0, one line names the file and the remedy, no traceback is shown unless it is
asked for, nothing half-written can be read, and what was there before still works.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """A kind of fault: where it strikes, what it is, and what is right."""

    group: str
    fault: str
    behaviour: str


ROWS = {
    "holes": Row(
        "data",
        "truncated HDF5; a hole of zeros; another MD5 than the official file's",
        "named with its size; the hole is found; what is not the official file marks every result",
    ),
    "labels": Row(
        "data", "labels outside the scans, too few, floats, NaN; transposed scans", "refused before any work; audited"
    ),
    "images": Row(
        "data",
        "corrupt or truncated JPEG, 16 bits, RGBA, CMYK, turned by EXIF, 1 x 1, a bomb",
        "refused by name, or turned upright; never filler pixels",
    ),
    "image kinds": Row(
        "data",
        "signed, wide, planar, masked or stacked TIFF, strips missing; JPEG cut or without scans; PNG and BMP likewise",
        "equal to what was drawn, or refused with the cause",
    ),
    "containers": Row(
        "data",
        "HDF5 with a filter that is not installed, open in a program that writes, or left by one that died",
        "the filter, the program or h5clear is named; never called damaged",
    ),
    "pointers": Row("data", "a Git-LFS pointer or a web page in place of a file", "recognised, and said so"),
    "folders": Row(
        "data", "missing, empty or extra class folders, s10 before s2, a loop of links", "read by number, or refused"
    ),
    "slides": Row(
        "data",
        "slides with no, false or two resolutions, in DICOM, cut, in parts, with other files beside",
        "read as they were drawn, where a person says what is missing; or refused with the cause",
    ),
    "leaks": Row(
        "data", "a patch in training and test; a training patch over a whitened place", "the audit fails and marks"
    ),
    "misfits": Row(
        "weights",
        "arrays misshapen, missing, extra, of another lineage; OIHW where HWIO",
        "refused with the list; where shapes coincide, parity fails",
    ),
    "foreign": Row(
        "weights",
        "kernels of Theano's, Keras 1's order, channels_first, half precision, another model around it, a prefix",
        "read to the bit, or refused where the file does not say enough",
    ),
    "pickles": Row(
        "weights",
        "a pickle, objects in .npz, a huge header, a zip bomb, NaN",
        "never unpickled nor unpacked; bounded; refused by name",
    ),
    "downloads": Row(
        "weights", "another file at the address, a broken connection", "https and a known digest, or none"
    ),
    "references": Row("weights", "a reference framework is absent", "NOT RUN, and a failure under --require"),
    "kills": Row(
        "training", "SIGKILL in any phase of training or of a save", "the same command ends bit for bit the same"
    ),
    "signals": Row("training", "SIGTERM, Ctrl-C", "saved, a status of its own, and the same command goes on"),
    "checkpoints": Row(
        "training",
        "a stale temporary checkpoint; one with a file deleted or a bit flipped",
        "the one before it is used, aloud",
    ),
    "settings": Row(
        "training", "resumed with other settings, patches or order of classes", "refused with the difference"
    ),
    "infinities": Row(
        "training",
        "a loss of NaN or infinity at some step",
        "stops; names the patches and the key; no accuracy; the last finite parameters are kept",
    ),
    "constants": Row("training", "features that are the same for every patch", "no accuracy of chance is reported"),
    "devices": Row("training", "out of memory; no GPU though one is asked for", "said in a line"),
    "disks": Row(
        "storage", "a full disk, a read-only folder, no renaming", "found early, or nothing truncated can be read"
    ),
    "writers": Row(
        "storage",
        "two runs on one folder, two writers of one cache, a dead owner, a clock that jumps",
        "one at a time, and who; a dead one's lock is taken over, aloud",
    ),
    "caches": Row(
        "storage",
        "features of another precision, size or version in the cache, or damaged ones",
        "another key; damage is computed again",
    ),
    "shells": Row(
        "machine",
        "variables for JAX, Flax and XLA; another user's shell; no variable at all",
        "the same predictions; or a difference that compare names; or a refusal that names the variable",
    ),
    "homes": Row(
        "machine", "no HOME and no entry among the users", "a folder of one's own, or a line that names --cache"
    ),
    "predictions": Row(
        "results", "predictions short, extra, reordered, twice, out of range", "refused; joined by the patch's name"
    ),
    "silence": Row("results", "a scan that is never predicted", "eta_w is finite, precision is undefined and so named"),
    "records": Row("results", "results, manifest or predictions edited, damaged or missing", "refused by name"),
    "markup": Row("results", "a scan named <script>", "shown as text"),
    "bugs": Row("results", "an error that nobody foresaw", "one line that says it is a bug and what to report"),
    "readers": Row(
        "readers",
        "10,000 damaged inputs a reader",
        "read, or refused in a line; no traceback, no hang, no more than 1 GB",
    ),
}
