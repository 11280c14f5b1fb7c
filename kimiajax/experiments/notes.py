"""What a reader of a table must know of the run behind it, sentence by sentence; each row adds its own."""

from collections.abc import Sequence

from kimiajax import paper
from kimiajax.data.manifest import left_out_of
from kimiajax.experiments.approach import Approach
from kimiajax.experiments.study import Study, mixed_lineages
from kimiajax.io.lineage import as_read
from kimiajax.runs.classes import classes_of, is_kimia, what_they_are
from kimiajax.runs.warnings import audit_note, leaking_groups


def notes_of(study: Study, rows: Sequence[Approach]) -> list[str]:
    """Returns what a reader must know of the run as a whole, and of these rows of it."""
    config, data, notes = study.config, study.data, []
    kimia, classes = is_kimia(data), classes_of(data)
    if data["synthetic"]:
        notes.append("The scans are drawn by a program: these figures say nothing about tissue.")
    elif not kimia:
        notes.append(what_they_are(data))
    if data["held_out"] and classes.word == "class" and config.data.manifest is None:
        groups = data["groups"]
        whole = groups and f", whole groups by {groups['column']}: {groups['test']} of {groups['groups']}"
        notes.append(f"Test patches were drawn from these by --test-seed {config.data.test_seed}{whole or ''}.")
    if leaking := leaking_groups([{"data": data}]):
        notes.append(f"{leaking[0].upper()}{leaking[1:]}: figures are too high, since these patches are alike.")
    if data["unverified"] is not None:
        notes.append(f"Not verified: what these data were prepared from {data['unverified']}.")
    notes += data["remarks"]
    if config.data.manifest is not None:
        notes.append(
            f"The patches are those of {config.data.manifest}, chosen by what its header says and not by this run."
        )
    left_out = left_out_of(data)
    if left_out:
        notes.append(f"Left out, since it shows no tissue: {left_out}; see --dark and --flat.")
    if said := audit_note(data):
        notes.append(said)
    notes += _of_weights(study)
    notes += _of_computation(study)
    notes += [note for row in rows for note in row.notes(study)]
    if config.data.patches_per_scan == "all" and kimia:
        published = ", ".join(f"{count:,} ({who})" for who, count in paper.TRAINING_PATCHES_PUBLISHED.items())
        notes.append(f"All {data['train']:,} training patches; published counts of Kimia Path24 are {published}.")
    asked = 0 if config.data.patches_per_scan == "all" else config.data.patches_per_scan
    short = [scan for scan, count in enumerate(data["train_per_scan"]) if count < asked]
    if short:
        told, all_ = classes.called(short), "has" if len(short) == 1 else "have"
        notes.append(
            f"{told[0].upper()}{told[1:]} {all_} fewer than the {asked} training patches asked for, and "
            f"give{'s' if len(short) == 1 else ''} all."
        )
    return list(dict.fromkeys(notes))


def _of_weights(study: Study) -> list[str]:
    weights, notes = study.weights, []
    random = [network for network, loaded in weights.items() if loaded.random]
    if random:
        notes.append(f"{' and '.join(random)}: random weights, so their rows say nothing about pre-training.")
    read = {network: as_read(loaded.lineage) for network, loaded in weights.items()}
    notes += [f"{network}, as its file asks: {done}." for network, done in read.items() if done]
    tuned = [network for network, loaded in weights.items() if "trained_blocks" in loaded.lineage]
    if tuned:
        notes.append(f"{' and '.join(tuned)}: weights that an earlier run fine-tuned, so not pre-trained ones alone.")
    before = {network: (weights[network].lineage.get("run") or {}).get("unverified") for network in tuned}
    notes += [f"{name}: trained before on data that are not verified: {was}." for name, was in before.items() if was]
    broken = [network for network in tuned if weights[network].lineage.get("run", {}).get("failure")]
    if broken:
        notes.append(f"{' and '.join(broken)}: weights of a training that stopped for want of finite numbers.")
    mixed = mixed_lineages(weights)
    if mixed:
        notes.append(f"{mixed}, trained apart and on other inputs: these rows do not compare the networks alone.")
    return notes


def _of_computation(study: Study) -> list[str]:
    config, notes = study.config, []
    if config.model.precision != "float32":
        notes.append(f"Convolutions and matrix products in {config.model.precision}.")
    fast = [network for network, loaded in study.weights.items() if loaded.conv == "fast"]
    if fast:
        notes.append(f"{' and '.join(fast)}: fast convolutions, which round otherwise than plain ones (--conv).")
    if config.model.bn_statistics == "local" and len(study.engine.devices) > 1:
        notes.append(f"Mini-batch statistics are local to each of {len(study.engine.devices)} devices.")
    return notes
