"""What of an earlier run in the same folder still stands: its finished rows, where it is the same run."""

import json
from collections.abc import Callable
from typing import Any

from kimiajax.errors import UserError
from kimiajax.experiments.artifacts import digest_of_learnt, load_learnt
from kimiajax.io.files import sha256_file
from kimiajax.io.json_records import differences, is_sealed
from kimiajax.io.lineage import identity_of as weights_of
from kimiajax.io.pytrees import refuse_unreadable
from kimiajax.runs.layout import NO_RESULT, SCHEMA_VERSION, RunFolder

FREE = (*NO_RESULT, "manifest", "conv")  # these two are known by the patches and by the choice that was made
REMEDY = "choose another --out, or begin anew with --fresh"


def identity_of(results: dict[str, Any]) -> dict[str, Any]:
    """What a run of one seed rests on, of its `results.json`: another makes it another run."""
    data = results["data"]
    return {
        "config": _config_of(results),
        "classes": data["names"],
        "groups": data.get("groups"),
        "manifest_sha256": data["manifest_sha256"],
        "pixels_sha256": data["pixels_sha256"],
        "weights": {network: weights_of(lineage) for network, lineage in results["weights"].items()},
        "conv": {network: choice["way"] for network, choice in results["conv"].items()},
        "statistic_groups": results["statistic_groups"],
    }


def check_config(folder: RunFolder, config: dict[str, Any]) -> None:
    """Raises UserError where a folder holds a run of other settings, of one seed or of several."""
    earlier = _read(folder)
    if earlier is not None:
        _check_same(folder, {"config": _config_of(earlier)}, {"config": _config_of({"config": config})})


def ways_of(folder: RunFolder) -> dict[str, str]:
    """How each network convolves in the run that a folder holds, if it holds one."""
    earlier = _read(folder)
    return {} if earlier is None else {network: choice["way"] for network, choice in earlier["conv"].items()}


def take_up(folder: RunFolder, results: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any] | None:
    """The results of an earlier run of one seed with the rows that still stand, if the folder holds the same run.

    Args:
        folder: where it may lie.
        results: what `results.json` would say at the start of a new run.
        say: is told which rows must be computed again.

    Raises:
        UserError: another run, or results that cannot be read.
    """
    earlier = _read(folder)
    if earlier is None:
        return None
    _check_same(folder, identity_of(earlier), identity_of(results))
    standing = []
    for row in earlier["rows"]:
        damage = _damage(folder, row)
        if damage:
            say(f"{folder.path}: {row['name']} is computed again, since {damage}")
        else:
            standing.append(row)
    marks = [run["data"].get("unverified") for run in (results, earlier)]  # of rows that stand, for good
    if standing and (mark := next(filter(None, marks), None)):
        results = {**results, "data": {**results["data"], "unverified": mark}}
    if len(standing) == len(results["config"]["rows"]):  # computed where it was, whatever shows it now
        results = {**results, "environment": earlier["environment"]}
    changes = differences(earlier["environment"], results["environment"])
    notes = [*results["notes"], *earlier["notes"][earlier["general_notes"] :]]  # an audit may have come since
    if changes:
        notes.append(f"Resumed where the program or the machine is not the same any more: {'; '.join(changes)}.")
    return {**results, "notes": list(dict.fromkeys(notes)), "rows": standing}


def _config_of(results: dict[str, Any]) -> dict[str, Any]:
    config = json.loads(json.dumps(results["config"]))
    return {name: value for name, value in config.items() if name not in FREE}


def _check_same(folder: RunFolder, before: dict[str, Any], now: dict[str, Any]) -> None:
    changes = differences(before, now)
    if changes:
        raise UserError(f"{folder.path}: holds another run: {'; '.join(changes)}; {REMEDY}")


def _read(folder: RunFolder) -> dict[str, Any] | None:
    path = folder.results
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        version = results["schema_version"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged, or no results of this program ({type(error).__name__}); {REMEDY}") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: written by another version of this program; {REMEDY}")
    if not is_sealed(results):
        raise UserError(f"{path}: was changed after it was written; {REMEDY}")
    return results


def _damage(folder: RunFolder, row: dict[str, Any]) -> str | None:
    """What is wrong with a finished row's files."""
    predictions, learnt = folder.predictions(row["name"]), folder.artifact(row["name"])
    try:
        if row["predictions_sha256"] and sha256_file(predictions) != row["predictions_sha256"]:
            return f"{predictions} was changed"
        if row["learnt_sha256"] and row["learnt_sha256"] != digest_of_learnt(load_learnt(learnt)):
            return f"{learnt} was changed"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except Exception as error:  # whatever a damaged file makes Orbax raise
        refuse_unreadable(learnt, error)
        return f"{learnt} cannot be read ({type(error).__name__})"
    return None
