"""From the command line's settings to a certificate."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from kimiajax.data.config import check_least, json_fields
from kimiajax.data.sources.scan_file import Scans
from kimiajax.data.sources.synthetic import write_synthetic_scans
from kimiajax.errors import UserError
from kimiajax.io.lineage import as_read
from kimiajax.models.backbone import Variables
from kimiajax.models.checkpoint import Weights
from kimiajax.models.conv_autotune import choose_way
from kimiajax.models.registry import BACKBONES
from kimiajax.parity import ours, protocol
from kimiajax.parity.certificate import FAILED, NOT_RUN, VERIFIED, Certificate, Sides, compare, translate
from kimiajax.parity.config import ParityConfig
from kimiajax.parity.job import Job
from kimiajax.parity.reference import Outputs
from kimiajax.runtime.environment import describe_environment
from kimiajax.runtime.progress import Silent
from kimiajax.runtime.shell import drop_variables, standard_settings
from kimiajax.weights.load import check_dense_size
from weights_convert.convert import FRAMEWORKS, convert
from weights_convert.export import write_as_today
from weights_convert.mapping import Files
from weights_convert.mappings import all_files, files_of

SUFFIX = {"keras": "h5", "torch": "safetensors"}
NEEDS = {"keras": ("keras",), "torch": ("torch", "torchvision", "timm")}
REMEDY = {"keras": "pip install 'kimiajax[parity]'", "torch": "pip install torch torchvision timm"}
TORCH = ("vgg16", "inception_v3")
SCANS, IMAGES_PER_SCAN = 4, 2
SYNTHETIC = {"num_scans": SCANS, "grid": (4, 4), "test_patches": (IMAGES_PER_SCAN, IMAGES_PER_SCAN)}
LEARNING_RATE = 1e-4  # the study's


@standard_settings()
def run_parity(network: str, config: ParityConfig, progress: Silent | None = None) -> Certificate:
    """Computes the same things with this project and with a reference framework, and compares them.

    Args:
        network: a key of `BACKBONES` whose mapping has the reference's network.
        config: all settings.
        progress: tells what goes on.

    Raises:
        UserError: settings, weights or scans that cannot serve, or a reference that breaks down.
    """
    progress = progress or Silent()
    check_least(config, steps=1, seed=0)
    if config.protocol and config.reference != "keras":
        raise UserError(f"--protocol: is compared with Keras, not with {config.reference}; give --reference keras")
    if config.protocol and config.input != "unit":
        raise UserError("--protocol: is the study's, with images in [0, 1]; leave --input out")
    comparable = [name for name, files in all_files(config.reference) if _is_comparable(name, files, config.reference)]
    if network not in comparable and network in BACKBONES:
        which = f"{config.reference}, and its mapping names none" if config.reference == "keras" else config.reference
        raise UserError(f"parity {network}: there is no such network in {which}; choose from {', '.join(comparable)}")
    if network not in comparable:
        raise UserError(f"parity {network or 'NETWORK'}: no such network; choose from {', '.join(comparable)}")
    BACKBONES[network].check_size(config.size)
    choose_way(config.conv, BACKBONES[network], config.size, 1)  # which refuses what cannot be had here
    for file in (config.scans, None if config.weights == "random" else Path(config.weights)):
        if file is not None and not file.exists():
            raise UserError(f"{file}: no such file; give the path of one")
    out = config.folder(network)
    out.mkdir(parents=True, exist_ok=True)  # before the work
    if not os.access(out, os.W_OK):
        raise UserError(f"{out}: cannot be written to; choose another --out")
    settings = {"network": network, **json_fields(config)}
    if lacking := next((name for name in NEEDS[config.reference] if importlib.util.find_spec(name) is None), None):
        reason = f"{lacking} is not installed ({REMEDY[config.reference]})"
        return Certificate(NOT_RUN, network, config.reference, reason, settings)
    with tempfile.TemporaryDirectory(prefix="kimiajax-parity-") as name:
        folder = Path(name)
        job, weights = prepare(network, config, folder, progress)
        job, head = add_head(job, weights, folder)
        references = run_reference(job, config.reference, folder, progress)
        done = certify(job, config.reference, weights, head, *references, progress=progress)
        return dataclasses.replace(done, settings=settings)


def _is_comparable(network: str, files: Files, reference: str) -> bool:
    """Returns whether the reference has the network; torch's are named in `torch_networks`."""
    return files.model is not None if reference == "keras" else network in TORCH


def prepare(network: str, config: ParityConfig, folder: Path, progress: Silent) -> tuple[Job, Weights]:
    """The job, with scans and weights made where none are given, and the weights through this project's converter."""
    scans = config.scans
    if scans is None:
        scans = folder / "scans.h5"
        patch = config.size + config.size // 4  # no whole multiple: filters differ
        drawn = protocol.SYNTHETIC if config.protocol else SYNTHETIC
        write_synthetic_scans(scans, patch_size=patch, seed=config.seed, **drawn)
    patches, labels = protocol.choose_patches(scans) if config.protocol else _choose_images(scans)
    backbone = BACKBONES[network]
    boundary, hidden = backbone.before(backbone.fine_tuned[0]), backbone.hidden
    if boundary is None or hidden is None:
        lacks = "a block below those that are fine-tuned" if boundary is None else "a head with a hidden layer"
        raise UserError(f"parity {network}: its steps are compared on {lacks}, which this network has not")
    model = files_of(network, config.reference).model
    random = config.weights == "random"
    job = Job(
        network=network,
        weights=str(folder / f"random.{SUFFIX[config.reference]}") if random else config.weights,
        classes=1000,
        scans=str(scans),
        patches=patches,
        labels=labels,
        size=config.size,
        resize=config.resize,
        input=config.input,
        judged=len(patches) if config.protocol else 2,
        application=model and model.application,
        layers=dict(model.layers) if model else {},
        features=backbone.features,
        bottleneck=backbone.bottleneck,
        pooled=backbone.before("pooled") if "pooled" in backbone.blocks else None,
        boundary=boundary,
        steps=config.steps,
        learning_rate=LEARNING_RATE,
        momentum=0.9,
        batch_norm_momentum=0.99,
        hidden=hidden,
        seed=config.seed,
        **(protocol.plan(len(labels), backbone, config.seed) if config.protocol else {}),
    )
    if random:
        job.write(folder)
        progress.say(f"{config.reference}: {network} with every array random")
        with _running(config.reference, folder, "make") as process:
            _wait(config.reference, "make", process)
    weights = dataclasses.replace(convert(network, Path(job.weights), framework=config.reference), conv=config.conv)
    _check(job, weights, config.reference)
    if needs_rewriting(weights):  # of which the reference would read nothing, or something else
        as_today = folder / f"as_read.{SUFFIX[config.reference]}"
        write_as_today(network, Path(job.weights), as_today)
        job = dataclasses.replace(job, weights=str(as_today))
    epsilon = weights.lineage["options"].get("epsilon")
    return dataclasses.replace(job, classes=weights.lineage["classes"], epsilon=epsilon), weights


def needs_rewriting(weights: Weights) -> bool:
    """Returns whether a file's arrays were turned, reordered, widened or found within another model: what it says of
    itself, which a reference does not read."""
    return as_read(weights.lineage) is not None


def _check(job: Job, weights: Weights, reference: str) -> None:
    """Raises UserError for weights that a comparison cannot take."""
    convention = files_of(job.network, reference).convention
    options = {name: value for name, value in weights.lineage["options"].items() if name != "epsilon"}
    if options != dict(BACKBONES[job.network].variant(**convention.options).options):
        said = ", ".join(f"{name}={value}" for name, value in options.items())
        raise UserError(f"{job.weights}: is {job.network} with {said}, which {reference} has not; give another file")
    if job.input == "native" and weights.lineage["expected_input"] != convention.expected_input:
        raise UserError(f"{job.weights}: says that it was trained on another input than published; leave --input out")
    params = weights.variables["params"]
    if "fc1" in params:
        check_dense_size(weights.variables, weights.backbone, job.size, job.weights)
    if "head" in params:
        raise UserError(f"{job.weights}: holds a fine-tuned network with its head; give the file that it started from")


def _choose_images(scans: Path) -> tuple[tuple, tuple]:
    """Two images from each of up to four scans; an image's channels are three test patches."""
    with Scans(scans) as file:
        targets = file.targets.tolist()
    chosen = [scan for scan, count in Counter(targets).items() if count >= IMAGES_PER_SCAN][:SCANS]
    if len(chosen) < 2:
        raise UserError(f"{scans}: two scans with {IMAGES_PER_SCAN} test patches each are needed for a comparison")
    first = [[i for i, target in enumerate(targets) if target == scan][:IMAGES_PER_SCAN] for scan in chosen]
    # Scans take turns, so that the judged images, the first ones, are of different scans.
    order = [(first[label][k], label) for k in range(IMAGES_PER_SCAN) for label in range(len(chosen))]
    indices = [index for index, _ in order]
    patches = tuple((index, indices[i - 1], indices[i - 2]) for i, index in enumerate(indices))
    return patches, tuple(label for _, label in order)


def add_head(job: Job, weights: Weights, folder: Path) -> tuple[Job, Variables]:
    """A random head for both sides, every array random, He-scaled to the size of what it gets, and a learning rate.

    So the logits are neither all alike nor saturated, and steps neither explode nor vanish, whatever the input's size.
    """
    features = ours.bottleneck(job, weights)
    size = np.sqrt(np.mean(np.square(features, dtype=np.float64)))
    if not 0 < size < np.inf:
        raise UserError(f"{job.weights}: {job.network} gives 0 or no number with it: nothing can be proven by it")
    rng = np.random.default_rng([job.seed, 1])

    def dense(inputs: int, outputs: int, size: float = 1.0) -> Variables:
        kernel = rng.standard_normal((inputs, outputs), np.float32) * np.float32(np.sqrt(2 / inputs) / size)
        return {"kernel": kernel, "bias": 0.1 * rng.standard_normal(outputs, np.float32)}

    head = {"hidden": dense(features[0].size, job.hidden, size), "logits": dense(job.hidden, job.num_scans)}
    np.savez(folder / "head.npz", **ours.leaves(head))  # pyright: ignore[reportArgumentType]  # no `allow_pickle`
    # The head's first gradient grows with what it gets, and what a change does to the logits grows with it again.
    return dataclasses.replace(job, learning_rate=LEARNING_RATE / max(1.0, float(size)) ** 2), head


def run_reference(job: Job, reference: str, folder: Path, progress: Silent) -> tuple[Outputs, Outputs, dict]:
    """The reference's outputs in single and in double precision, and its versions, each from a process of its own."""
    job.write(folder)
    progress.say(f"{reference}: float32 on {len(job.patches)} images, float64 on {job.judged}")
    with _running(reference, folder, "float32") as single, _running(reference, folder, "float64") as double:
        _wait(reference, "float32", single)
        _wait(reference, "float64", double)
    outputs = []
    for dtype in ("float32", "float64"):
        with np.load(folder / f"{dtype}.npz") as arrays:
            outputs.append(dict(arrays))
    return *outputs, json.loads((folder / "float32.json").read_text(encoding="utf-8"))


@contextlib.contextmanager
def _running(reference: str, folder: Path, what: str) -> Iterator[subprocess.Popen]:
    """A process of the reference, gone when the block ends; the end of the pipe to it is its end too."""
    command = [sys.executable, "-P", "-m", f"kimiajax.parity.{reference}_reference", str(folder), what]
    own = {**os.environ, "KERAS_HOME": str(folder)}  # not the user's, whose keras.json may name another layout
    drop_variables(own)
    with subprocess.Popen(
        command,
        env=own,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait(reference: str, what: str, process: subprocess.Popen) -> None:
    assert process.stderr is not None
    errors = process.stderr.read()
    if process.wait():
        last = (errors.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{reference} breaks down ({what}, exit status {process.returncode}): {last}")


def _attempt(side: Callable[[], Outputs]) -> tuple[Outputs, tuple[str, str] | None]:
    """A side's outputs, as far as it gets, and the stage and the reason where it stops."""
    try:
        return side(), None
    except ours.StageError as error:
        return error.outputs, (error.stage, str(error))


def certify(
    job: Job,
    reference: str,
    weights: Weights,
    head: Variables,
    single: Outputs,
    judge: Outputs,
    versions: dict,
    *,
    progress: Silent | None = None,
) -> Certificate:
    """Runs this project's side of a job and compares it with a reference's outputs."""
    (progress or Silent()).say("kimiajax: the same")
    module = FRAMEWORKS[reference]
    tables = files_of(job.network, reference).tables
    table = {name: entry for part in (*tables, module.HEAD_TABLE) for name, entry in part.items()}
    single, judge = translate(single, table), translate(judge, table)
    side = protocol if job.batches else ours
    images = judge["input"][: job.judged]
    outputs, failure = _attempt(lambda: side.run_single(job, weights, head))
    double, failure_in_double = _attempt(lambda: side.run_double(job, weights, head, images))
    sides, failure = Sides(outputs, double, single, judge), failure or failure_in_double
    blocks = weights.backbone.held_by(weights.variables)
    stages = protocol.compare(job, sides) if job.batches else compare(job, blocks, sides, failure)
    with Scans(job.scans) as scans:
        synthetic = scans.synthetic
    left_out = [b for b in weights.backbone.blocks if b not in blocks]
    left_out += [] if weights.backbone.features in blocks else ["features"]
    digest = hashlib.sha256(np.ascontiguousarray(judge["decoded"]).data).hexdigest()
    environment = describe_environment()
    return Certificate(
        VERIFIED if all(stage.passed for stage in stages) else FAILED,
        job.network,
        reference,
        not_compared=tuple(left_out),
        weights={
            "source": weights.lineage["source"],
            "sha256": weights.lineage["source_sha256"],
            "lineage": weights.lineage,
        },
        job={**dataclasses.asdict(job), "weights": weights.lineage["source"], "scans": Path(job.scans).name},
        inputs={"scans": Path(job.scans).name, "synthetic": synthetic, "decoded_sha256": digest},
        versions={"reference": versions, "kimiajax": environment},
        stages=tuple(stages),
        losses=protocol.losses(job, sides),
    )
