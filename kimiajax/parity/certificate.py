"""The comparison of two sides, stage by stage, with a bound for each, and the verdict as data, table and exit status.

The judge is the reference in double precision, never this project's own network: a wrong architecture would sit close
to itself. Single precision may be off by three times the error that the reference itself has in single precision, or by
a floor where that is smaller. Double precision must agree with the judge but for its own rounding, which leaves no room
for another network, another loss or another optimizer.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.io.files import write_text
from kimiajax.parity.job import Job
from kimiajax.parity.reference import Outputs
from weights_convert.mapping import Table

SCHEMA_VERSION = 1
VERIFIED, FAILED, NOT_RUN = "VERIFIED", "FAILED", "NOT RUN"
FACTOR = 3.0  # of the reference's own single-precision error
CEILING = 0.3  # of any bound: at 1, doing nothing would pass; a step beyond it is left to double precision

# Relative L2 that single precision may cost, whatever the reference's own luck. A batch-norm epsilon of 1e-5 for 1e-3
# costs 5e-4 at the first block, everything else that is usually done wrong far more. Gradients jump: of a million
# units one or so is nearer to the kink of its ReLU, or to a tie of its pool, than rounding reaches, and where it
# switches, an array's gradient moves by one over the root of its layer's active units: 1e-3 to 6e-2 as seen, in the
# references too. So single precision has room there, and double precision, in which no unit is that near, has none.
FLOORS = {
    "decoded": 0.0,  # integers
    "resized": 0.0,
    "input": 1e-6,
    "block": 1e-5,
    "features": 1e-5,
    "logits": 1e-5,
    "loss": 1e-5,
    "gradients": 1e-1,
    "step": 1e-1,
    "predictions": 1e-3,
    "eta": 1e-6,
}
DOUBLE = 1e-9  # the same for double precision, at every stage after the input
# A convolution's bias changes nothing before batch normalisation by the mini-batch: its gradient is 0 but for rounding.
# So much of all arrays of a stage together it may be, in double and in single precision.
ZERO, ZERO_IN_SINGLE = 1e-12, 1e-5
LEAVES = ("gradients", "step")  # stages of many arrays, each with its double precision; together with their single
NO_DOUBLE = ("decoded", "resized", "input", "eta")  # stages that double precision has no part in
CLASSES = ("logits", "block/predictions", "predictions")  # stages whose largest entry is an answer
LEGEND = {
    "stages": "in the order in which data goes through; gradients and steps hold every array, and all together",
    "max_abs": "largest difference of ours in float32 from the reference in float64, of the judged images",
    "relative_l2": "norm of that difference over the norm of the reference in float64; of a step, over what it changed",
    "reference_relative_l2": "the same for the reference in float32",
    "bound": "relative_l2 must not exceed it: factor x reference_relative_l2, at least the floor; null where nothing "
    "is asked: of single arrays, and of a step that float32 cannot resolve, which float64 judges",
    "double_relative_l2": "ours in float64 against the reference in float64; must not exceed bounds.double",
    "unjudged_relative_l2": "ours against the reference in float32, all images; at most bound + reference_relative_l2",
    "flips": "images whose largest entry is another one than in the reference in float32; must be 0",
    "fault": "why the stage fails, or null",
    "losses": "of a protocol, by mode of trained batch normalisation: of each step's batch, and of all images after "
    "each epoch. Its stages' relative_l2 are the largest relative difference of any loss. Its batches are job.batches",
    "job.patches": "indices into /test_data/patches of the three test patches that are an image's channels",
    "job.labels": "the scan of each image's first patch, counted from 0 among the scans chosen",
    "job.judged": "the first so many images are computed in float64 too, and are the batch that is trained on",
    "job.boundary": "the last block that does not train",
    "inputs.decoded_sha256": "of the bytes of all images as read, uint8 [images 3 height width]",
    "recheck": "the same command gives the same weights and images; of random weights the sha256 shows it",
}


@dataclass(frozen=True)
class Comparison:
    """One array of ours against the judge, as `LEGEND` describes it."""

    max_abs: float | None = None
    relative_l2: float | None = None
    reference_relative_l2: float | None = None
    bound: float | None = None
    double_relative_l2: float | None = None
    unjudged_relative_l2: float | None = None
    flips: int | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Stage:
    """A stage of the comparison; `arrays` are what it holds, under its own name and, of many, by their paths."""

    name: str
    shape: tuple[int, ...] | None
    arrays: dict[str, Comparison]

    @property
    def passed(self) -> bool:
        return all(comparison.fault is None for comparison in self.arrays.values())

    @property
    def fault(self) -> str | None:
        """The first of its faults."""
        return next((comparison.fault for comparison in self.arrays.values() if comparison.fault), None)

    @property
    def double(self) -> float | None:
        """The largest error of double precision."""
        return max(
            (c.double_relative_l2 for c in self.arrays.values() if c.double_relative_l2 is not None), default=None
        )


@dataclass(frozen=True)
class Certificate:
    """What was compared, on what, and how it ended."""

    verdict: str
    network: str
    reference: str
    reason: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    not_compared: tuple[str, ...] = ()
    weights: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    losses: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)

    @property
    def first_divergence(self) -> str | None:
        """The name of the first stage that is beyond its bound."""
        return next((stage.name for stage in self.stages if not stage.passed), None)

    def write(self, folder: Path) -> Path:
        """Writes `parity.json` into a folder."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict,
            "first_divergence": self.first_divergence,
            **asdict(self),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "legend": LEGEND,
            "bounds": {"factor": FACTOR, "floors": FLOORS, "ceiling": CEILING, "double": DOUBLE},
            "stages": [{"passed": stage.passed, **asdict(stage)} for stage in self.stages],
        }
        write_text(folder / "parity.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        return folder / "parity.json"


@dataclass(frozen=True)
class Sides:
    """What was computed, under this project's names: ours and the reference's, in single and in double precision."""

    ours: Outputs
    ours_double: Outputs
    reference: Outputs
    judge: Outputs


def compare(job: Job, blocks: Sequence[str], sides: Sides, failure: tuple[str, str] | None = None) -> list[Stage]:
    """All stages in the order in which data goes through them.

    Args:
        job: what was computed.
        blocks: the network's blocks, in order, that the weights hold.
        sides: the outputs.
        failure: (stage, message) where this project's code stopped.
    """
    ours, judge = sides.ours, sides.judge
    names = ["decoded", "resized", "input", *(f"block/{block}" for block in blocks)]
    names += ["features"] if "features" in ours or "features" in judge else []
    names += ["logits", "loss", "gradients", *(f"step {k}" for k in sorted({1, job.steps})), "predictions", "eta"]
    computed = {name for side in (ours, sides.ours_double, sides.reference, judge) for name in side}
    computed = {name.split("/")[0] if name.startswith(LEAVES) else name for name in computed}
    names += sorted(computed - set(names))  # what nobody asked for is on one side only
    names += [failure[0]] if failure and failure[0] not in names else []
    stages = []
    for name in names:
        if failure and name == failure[0]:
            return [*stages, Stage(name, None, {name: Comparison(fault=failure[1])})]
        if name.startswith(LEAVES):
            zeros, whole = _zeros(name, judge)
            arrays = sorted(_below(name, ours) | _below(name, judge))
            compared = {
                array: _compare_zero(array, sides, whole) if array in zeros else _compare_one(array, sides)
                for array in arrays
            }
            compared[name] = _compare_together(name, sides, zeros)
        else:
            compared = {name: _compare(name, sides, job.judged)}
        shape = np.shape(judge[name]) if name in judge else None
        stages.append(Stage(name, shape, compared))
    return stages


def _below(stage: str, outputs: Outputs) -> set[str]:
    return {name for name in outputs if name.startswith(f"{stage}/")}


def _compare(stage: str, sides: Sides, judged: int) -> Comparison:
    """A stage of one array, with an entry for each image, of which the judge saw the first `judged`."""
    whole = sides.reference[stage].shape if stage in sides.reference else ()
    several = bool(whole) and stage not in NO_DOUBLE
    fault = _unfit(stage, sides, (judged, *whole[1:]) if several else whole, double=stage not in NO_DOUBLE)
    if fault:
        return Comparison(fault=fault)
    ours, reference, judge = sides.ours[stage], sides.reference[stage], sides.judge[stage]
    if stage == "eta":  # of all images, and the judge saw two; a count has no rounding to judge
        judge = reference
    seen = slice(judged) if several else ...
    double = None if stage in NO_DOUBLE else relative_l2(sides.ours_double[stage], judge)
    compared = _bounded(stage, ours[seen], reference[seen], judge, relative_l2(ours, reference), double)
    if stage not in CLASSES:
        return compared
    flips = int((ours.argmax(-1) != reference.argmax(-1)).sum())
    fault = compared.fault or (f"{flips} of {len(ours)} images have another largest entry" if flips else None)
    return replace(compared, flips=flips, fault=fault)


def _compare_one(name: str, sides: Sides) -> Comparison:
    """One array of a stage of many: in double precision."""
    fault = _unfit(name, sides, sides.judge[name].shape if name in sides.judge else (), double=True)
    if fault:
        return Comparison(fault=fault)
    double = relative_l2(sides.ours_double[name], sides.judge[name])
    fault = None if double <= DOUBLE else f"{name}: relative L2 {double:.1e} in float64 is over {DOUBLE:.0e}"
    return Comparison(
        max_abs=finite(np.abs(sides.ours[name] - sides.judge[name]).max(initial=0)),
        relative_l2=finite(relative_l2(sides.ours[name], sides.judge[name])),
        reference_relative_l2=finite(relative_l2(sides.reference[name], sides.judge[name])),
        double_relative_l2=finite(double),
        fault=fault,
    )


def _zeros(stage: str, judge: Outputs) -> tuple[set[str], float]:
    """The biases before batch normalisation that the judge has as 0 but for rounding, and the norm of all arrays."""
    norms = {name: float(np.linalg.norm(judge[name].ravel())) for name in _below(stage, judge)}
    whole = float(np.linalg.norm(list(norms.values())))
    biases = [name for name in norms if name.endswith("/conv/bias") and name.replace("/conv/", "/bn/") in norms]
    return {name for name in biases if norms[name] <= ZERO * whole}, whole


def _compare_zero(name: str, sides: Sides, whole: float) -> Comparison:
    """An array that is 0 but for rounding: it must be so on this side, too."""
    fault = _unfit(name, sides, sides.judge[name].shape, double=True, zero=True)
    if fault:
        return Comparison(fault=fault)
    for side, most in ((sides.ours_double, ZERO), (sides.ours, ZERO_IN_SINGLE)):
        share = float(np.linalg.norm(side[name].ravel())) / whole
        if not share <= most:
            fault = f"{name} is 0 but for rounding in the reference, and here {share:.1e} of the whole"
    return Comparison(max_abs=finite(np.abs(sides.ours[name]).max(initial=0)), fault=fault)


def _compare_together(stage: str, sides: Sides, zeros: set[str]) -> Comparison:
    """All arrays of a stage, each in units of its own size, as one vector: in single precision."""
    names = sorted((_below(stage, sides.ours) & _below(stage, sides.judge)) - zeros)
    if not names:
        return Comparison(fault=f"{stage} has no array on both sides")
    if any(_unfit(name, sides, sides.judge[name].shape, double=True) for name in names):
        return Comparison()  # which the array itself says
    sizes = {name: np.linalg.norm(sides.judge[name].ravel()) or 1.0 for name in names}
    ours, reference, judge = (
        np.concatenate([side[name].astype(np.float64).ravel() / sizes[name] for name in names])
        for side in (sides.ours, sides.reference, sides.judge)
    )
    largest = max(float(np.abs(sides.ours[name] - sides.judge[name]).max(initial=0)) for name in names)
    compared = _bounded(stage, ours, reference, judge, relative_l2(ours, reference), None)
    return replace(compared, max_abs=finite(largest))


def _unfit(name: str, sides: Sides, shape: tuple[int, ...], *, double: bool, zero: bool = False) -> str | None:
    """Why an array cannot be compared, or proves nothing, if so; `shape` is what the judge's must have, and `zero`
    says that it may be 0."""
    if name not in sides.ours or name not in sides.judge or name not in sides.reference:
        return f"{name} is {'here and not in the reference' if name in sides.ours else 'in the reference only'}"
    if double and name not in sides.ours_double:
        return f"{name} was not computed here in float64"
    ours, reference, judge = sides.ours[name], sides.reference[name], sides.judge[name]
    if ours.shape != reference.shape:
        return f"{name} has shape {ours.shape}, in the reference {reference.shape}"
    if name != "eta" and (judge.shape != shape or (double and sides.ours_double[name].shape != shape)):
        return f"{name} in float64 has not the shape {shape}"
    if not (np.isfinite(reference).all() and np.isfinite(judge).all()):
        return "the reference itself is not finite"
    if name != "eta" and not zero and not judge.any():
        return "the reference is 0 everywhere, which proves nothing"
    if name.startswith(("block/", "logits", "features", "predictions", "input")) and (judge == judge[:1]).all():
        return "the reference is the same for all images, which proves nothing"
    return None


def _bounded(
    stage: str, ours: np.ndarray, reference: np.ndarray, judge: np.ndarray, whole: float, double: float | None
) -> Comparison:
    own, error = relative_l2(reference, judge), relative_l2(ours, judge)
    bound = min(max(FACTOR * own, FLOORS[stage.split("/")[0].split(" ")[0]]), CEILING)
    if stage.startswith(LEAVES) and FACTOR * own > CEILING and np.isfinite(error):
        bound = None  # a change under the weights' own rounding: of it single precision says nothing, to either side
    fault = None
    if bound is None:
        pass
    elif not error <= bound:  # NaN is beyond any bound
        fault = f"relative L2 {error:.1e} is over {bound:.1e}"
    elif not whole <= bound + own:
        fault = f"relative L2 {whole:.1e} over all images is over {bound + own:.1e}"
    elif double is not None and not double <= DOUBLE:
        fault = f"relative L2 {double:.1e} in float64 is over {DOUBLE:.0e}"
    largest = np.abs(ours.astype(np.float64) - judge).max(initial=0)
    double = None if double is None else finite(double)
    return Comparison(finite(largest), finite(error), own, bound, double, finite(whole), fault=fault)


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def relative_l2(array: np.ndarray, true: np.ndarray) -> float:
    """The norm of the difference over the norm of what is true; over 1 where that is 0."""
    difference = np.linalg.norm((array.astype(np.float64) - true.astype(np.float64)).ravel())
    return float(difference / (np.linalg.norm(true.astype(np.float64).ravel()) or 1.0))


def translate(outputs: Outputs, table: Table) -> Outputs:
    """A reference's arrays under this project's names and layout; of names that the table lacks, their own."""
    translated = {}
    for key, array in outputs.items():
        stage, _, name = key.partition("/")
        if stage.startswith(LEAVES) and name in table:
            to, layout = table[name]
            key, array = f"{stage}/{'/'.join(to)}", layout.read(array)
        translated[key] = array
    return translated
