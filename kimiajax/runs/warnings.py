"""What marks a run's figures as worthless, or as others than they seem, by the `results.json` of each of its seeds."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kimiajax.io.lineage import is_random
from kimiajax.runs.classes import LISTED, classes_of
from kimiajax.text import first_of, percent

SCORES = ("eta_p", "eta_w", "eta_total")
Results = Mapping[str, Any]


def is_synthetic(seeds: Sequence[Results]) -> bool:
    """Whether a program drew the scans."""
    return any(results["data"]["synthetic"] for results in seeds)


SYNTHETIC = "SYNTHETIC SCANS, drawn by a program: no figure here says anything about tissue."
NOT_VERIFIED = "NOT VERIFIED: the files that the data were prepared from are not those that were published."


def is_unverified(seeds: Sequence[Results]) -> bool:
    """Whether the data claim to be what they are not known to be."""
    return any(results["data"].get("unverified") is not None for results in seeds)


def trained_unverified(seeds: Sequence[Results]) -> list[str]:
    """The networks whose weights an earlier run fine-tuned on such data."""
    lineages = [(network, lineage) for results in seeds for network, lineage in results["weights"].items()]
    return list(dict.fromkeys(name for name, lineage in lineages if (lineage.get("run") or {}).get("unverified")))


def marks_of(about: Mapping[str, Any]) -> list[str]:
    """What a reader must see first of data, by the `about` of their manifest."""
    marks = ((SYNTHETIC, about.get("synthetic") is True), (NOT_VERIFIED, about.get("unverified") is not None))
    return [mark for mark, holds in marks if holds]


def failed_checks(seeds: Sequence[Results]) -> list[str]:
    """The checks of an audit that failed, of any seed's patches."""
    audits = [results["data"]["audit"] for results in seeds]
    return list(dict.fromkeys(check for audit in audits if audit is not None for check in audit["failed"]))


NOT_AUDITED, AUDITED = "Not audited:", "The audit of these data"  # how notes on audits begin


def is_audit_note(note: str) -> bool:
    """Whether a note is of `audit_note`, of one seed or of several."""
    return re.sub(r"^Seed \d+: ", "", note).startswith((NOT_AUDITED, AUDITED))


def audit_note(data: Mapping[str, Any]) -> str | None:
    """What a reader must know of an audit of a seed's patches; None where it passed, or no one wants one."""
    audit = data["audit"]
    drawn = ", with --manifest and this run's manifest.csv," if data.get("held_out") else ""
    command = f"`kimiajax data audit {data.get('flags', '--scans ' + data['source'])}`{drawn}"
    if audit is None:
        return None if data["synthetic"] else f"{NOT_AUDITED} {command} tells whether to trust these data."
    if audit["failed"]:
        return f"{AUDITED} FAILED ({', '.join(audit['failed'])}): no figure here can be relied on."
    if audit.get("untold"):
        return (
            f"{AUDITED} is NOT TOLD ({', '.join(audit['untold'])}): nothing failed, but that is no proof; "
            f"{command} says why."
        )
    return None


def leaking_groups(seeds: Sequence[Results]) -> str | None:
    """Says which groups have patches in training and in test, of any seed's patches; None where no group has."""
    for groups in (results["data"].get("groups") for results in seeds):
        if groups is not None and groups["shared"]:
            return f"{groups['column']} {first_of(groups['shared'], LISTED)} have patches in training and in test"
    return None


def random_networks(seeds: Sequence[Results]) -> list[str]:
    """The networks whose weights began random, whatever trained them since."""
    lineages = [(network, lineage) for results in seeds for network, lineage in results["weights"].items()]
    return list(dict.fromkeys(network for network, lineage in lineages if is_random(lineage)))


def warnings_of(seeds: Sequence[Results]) -> list[str]:
    """What a reader must see first."""
    found = []
    if is_synthetic(seeds):
        found.append(SYNTHETIC)
    if is_unverified(seeds):
        found.append(NOT_VERIFIED)
    if trained := trained_unverified(seeds):
        found.append(f"NOT VERIFIED: the files that {' and '.join(trained)} was trained on before.")
    failed, random = failed_checks(seeds), random_networks(seeds)
    if failed:
        found.append(f"AUDIT FAILED ({', '.join(failed)}): no figure here can be relied on.")
    if leaking := leaking_groups(seeds):
        found.append(f"LEAK: {leaking}, so that figures are too high.")
    if random:
        found.append(f"RANDOM WEIGHTS of {' and '.join(random)}: their rows say nothing about pre-training.")
    untold = [check for results in seeds for check in (results["data"]["audit"] or {}).get("untold", ())]
    if untold and not failed:
        found.append(f"AUDIT NOT TOLD ({', '.join(dict.fromkeys(untold))}): nothing failed, but nothing is proven.")
    if not all(results["complete"] for results in seeds):
        found.append("NOT COMPLETE: rows are missing that were asked for.")
    return found


def headline(results: dict[str, Any]) -> str:
    data = results["data"]
    kind = "SYNTHETIC scans, not a reproduction" if data["synthetic"] else data["source"]
    if data.get("unverified"):
        kind = f"NOT VERIFIED: {kind}"
    if data.get("audit") and data["audit"]["failed"]:
        kind = f"AUDIT FAILED: {kind}"
    size = results["config"]["image_size"]
    return (
        f"{results['preset']}: {kind}: {data['scans']} {classes_of(data).plural}, {data['train']} training and "
        f"{data['test']} test patches of {data['patch_size']} x {data['patch_size']} pixels, seen at {size} x {size}. "
        f"Figures in per cent; guessing gives {percent(1 / data['scans'])}."
    )
