"""`sweep.json`, read again."""

from pathlib import Path
from typing import Any

from kimiajax.errors import UserError
from kimiajax.io.json_records import is_sealed, parse_json
from kimiajax.runs.reader import OF_2017, OF_ALL_PLACES, as_of_today

SWEEP = "sweep.json"
SCHEMA_VERSION = 3  # 1 had the settings of results.json 7 and later those of 8, which name `trained_bn`; 2 those of 9
TITLES = {
    "patches": "training patches a scan",
    "augmentations": "augmentation of fine-tuning",
    "depths": "last blocks trained, and the head",
}


def read_sweep(folder: str | Path) -> dict[str, Any]:
    """The content of `sweep.json`.

    Raises:
        UserError: it is damaged, changed, or of another version.
    """
    path = Path(folder) / SWEEP
    try:
        results = parse_json(path.read_text(encoding="utf-8"))
        version = results["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no sweep of this program, or damaged ({type(error).__name__}); run it anew"
        ) from error
    if version not in (1, 2, SCHEMA_VERSION):
        raise UserError(
            f"{path}: of schema version {version}, and 1 to {SCHEMA_VERSION} are read here; run the sweep again"
        )
    if not is_sealed(results):
        raise UserError(f"{path}: was changed after it was written; the same `kimiajax sweep` mends it")
    if version == SCHEMA_VERSION:
        return results
    settings = OF_ALL_PLACES if "trained_bn" in results["config"] else OF_2017
    return {**results, "config": as_of_today(results["config"], settings)}
