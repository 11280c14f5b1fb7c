"""A certificate as text: the verdict, a table of stages, and what went wrong."""

from rich.table import Table

from kimiajax.io.lineage import as_read
from kimiajax.parity.certificate import DOUBLE, FACTOR, FAILED, LEAVES, NOT_RUN, Certificate
from kimiajax.report.console import as_text, new_table


def render(certificate: Certificate) -> str:
    """The certificate as a table for a screen or a pipe."""
    parts = []
    if certificate.stages:
        parts = [_headline(certificate), _table(certificate), _legend(certificate)]
    return as_text(*parts, f"{certificate.verdict}{_why(certificate)}")


def _legend(certificate: Certificate) -> str:
    if certificate.job["batches"]:
        return (
            "The largest differences of any step's loss, and of any epoch's mean loss by stored statistics. max abs "
            f"and relative: ours in float32 against {certificate.reference} in float64. float64: ours against the "
            f"same, bound {DOUBLE:.0e}."
        )
    return (
        f"max abs and relative L2: ours in float32 against {certificate.reference} in float64; the bound is "
        f"{FACTOR:g} x {certificate.reference}'s own error in float32, or a floor. float64: ours in float64 "
        f"against the same, bound {DOUBLE:.0e}, array by array. A step's errors are those of what it changed. "
        "flips: images with another largest logit."
    )


def _headline(certificate: Certificate) -> str:
    job, weights = certificate.job, certificate.weights
    versions = ", ".join(f"{name} {version}" for name, version in certificate.versions["reference"].items())
    scans = "synthetic scans" if certificate.inputs["synthetic"] else certificate.inputs["scans"]
    what = f"{job['judged']} of them judged in float64 and trained on"
    if job["batches"]:
        epochs, steps = len(job["batches"]), len(job["batches"][0])
        what = f"trained after {job['boundary']} for {epochs} epochs of {steps} steps"
    headline = (
        f"{certificate.network} at {job['size']} x {job['size']}, {weights['source']} ({weights['sha256'][:12]}), "
        f"against {versions}: {len(job['patches'])} images from {scans}, input {job['input']}, {what}."
    )
    done = as_read(weights["lineage"])
    return f"{headline} The arrays of the file, for both sides: {done}." if done else headline


def _table(certificate: Certificate) -> Table:
    table = new_table()
    for title in ("stage", "shape"):
        table.add_column(title, no_wrap=True)
    relative = "relative" if certificate.job["batches"] else "relative L2"
    for title in ("max abs", relative, f"{certificate.reference}'s own", "bound", "float64", "flips"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for stage in certificate.stages:
        main = stage.arrays[stage.name]
        shape = (
            f"{len(stage.arrays) - 1} arrays"
            if stage.name.startswith(LEAVES)
            else " ".join(map(str, stage.shape or ()))
        )
        table.add_row(
            "ImageNet logits" if stage.name == "block/predictions" else stage.name.removeprefix("block/"),
            shape,
            *map(_number, (main.max_abs, main.relative_l2, main.reference_relative_l2, main.bound, stage.double)),
            "" if main.flips is None else str(main.flips),
            stage.fault or ("ok" if main.bound is not None else "ok in float64"),
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def _why(certificate: Certificate) -> str:
    if certificate.verdict == NOT_RUN:
        return f": {certificate.reason}"
    if certificate.verdict == FAILED:
        return f": {certificate.network} and {certificate.reference} part at {certificate.first_divergence}"
    if certificate.job["batches"]:
        losses = sum(len(losses["float64"]) for losses in certificate.losses.values())
        return f": {certificate.network} trains as in {certificate.reference}, at each of {losses} losses"
    images, judged = len(certificate.job["patches"]), certificate.job["judged"]
    left_out = f"; not compared: {', '.join(certificate.not_compared)}" if certificate.not_compared else ""
    return (
        f": {certificate.network} computes what {certificate.reference} computes, at all {len(certificate.stages)} "
        f"stages, on {images} images, {judged} of them in float64{left_out}"
    )
