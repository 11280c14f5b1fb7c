"""What a reader of a table must know of the run behind it, sentence by sentence."""

from dataclasses import asdict

from kimiajax import paper
from kimiajax.experiments.approach import Study
from kimiajax.experiments.approaches import anything_moves
from kimiajax.experiments.table1 import all_rows
from kimiajax.io.lineage import root_of
from kimiajax.models.checkpoint import Weights, origin_of
from kimiajax.training.freezing import blocks_of

REASONS = {
    "inference": ": stored statistics, on which its head was trained",
    "keras2017": ", as in the paper's time: the mini-batch's statistics, while its head was trained on stored ones",
}
OF_RANDOM = ": the mini-batch's statistics, since stored ones of random weights say nothing of tissue"


def notes_of(study: Study) -> list[str]:
    """What a reader must know of the run as a whole."""
    config, data, notes = study.config, study.data, []
    if data["synthetic"]:
        notes.append("The scans are drawn by a program: these figures say nothing about tissue, nor about the paper.")
    elif (data["scans"], data["test"]) != (paper.NUM_SCANS, paper.TEST_PATCHES):
        notes.append(
            f"Not Kimia Path24, which has {paper.NUM_SCANS} scans and {paper.TEST_PATCHES:,} test patches: the paper's "
            "figures stand beside for orientation only."
        )
    if data["unverified"] is not None:
        notes.append(f"Not verified: what these data were prepared from {data['unverified']}.")
    if config.manifest is not None:
        notes.append(f"The patches are those of {config.manifest}, chosen by what its header says and not by this run.")
    audit = data["audit"]
    if audit is None and not data["synthetic"]:
        drawn = ", with --manifest and this run's manifest.csv," if data["held_out"] else ""
        notes.append(f"Not audited: `kimiajax data audit {data['flags']}`{drawn} tells whether to trust these data.")
    elif audit is not None and audit["failed"]:
        notes.append(f"The audit of these data FAILED ({', '.join(audit['failed'])}): no figure here can be relied on.")
    random = _random(study)
    if random:
        notes.append(f"{' and '.join(random)}: random weights, so their rows say nothing about pre-training.")
    tuned = [network for network, loaded in study.weights.items() if "trained_blocks" in loaded.lineage]
    if tuned:
        notes.append(f"{' and '.join(tuned)}: weights that an earlier run fine-tuned, so not pre-trained ones alone.")
    before = {network: (study.weights[network].lineage.get("run") or {}).get("unverified") for network in tuned}
    notes += [f"{name}: trained before on data that are not verified: {was}." for name, was in before.items() if was]
    broken = [network for network in tuned if study.weights[network].lineage.get("run", {}).get("failure")]
    if broken:
        notes.append(f"{' and '.join(broken)}: weights of a training that stopped for want of finite numbers.")
    mixed = mixed_lineages(study.weights)
    if mixed:
        notes.append(f"{mixed}, trained apart and on other inputs: these rows do not compare the networks alone.")
    notes += _training_notes(study)
    if config.patches_per_scan == "all":
        published = ", ".join(f"{count:,} ({who})" for who, count in paper.TRAINING_PATCHES_PUBLISHED.items())
        notes.append(f"All {data['train']:,} training patches; published counts of Kimia Path24 are {published}.")
    asked = 0 if config.patches_per_scan == "all" else config.patches_per_scan
    short = [scan for scan, count in enumerate(data["train_per_scan"]) if count < asked]
    if short:
        notes.append(
            f"Scans {', '.join(map(str, short))} have fewer than the {asked} training patches asked for, and give all."
        )
    return notes


def _random(study: Study) -> list[str]:
    """Returns the networks whose weights began random."""
    return [network for network, loaded in study.weights.items() if root_of(loaded.lineage)["source"] == "random"]


def _training_notes(study: Study) -> list[str]:
    """What a reader must know of how networks were run and the fine-tuned rows trained."""
    config, notes, random = study.config, [], _random(study)
    if config.precision != "float32":
        notes.append(f"Convolutions and matrix products in {config.precision}.")
    fast = [network for network, loaded in study.weights.items() if loaded.conv == "fast"]
    if fast:
        notes.append(f"{' and '.join(fast)}: fast convolutions, which round otherwise than plain ones (--conv).")
    tuned = {
        row.approach: study.weights[row.network].backbone
        for row in all_rows()
        if row.network and row.name in config.rows and row.scheme == "fine-tuned"
    }
    tuned = {approach: backbone for approach, backbone in tuned.items() if anything_moves(backbone, config)}
    if tuned:
        how = config.fine_tuning()
        augmented = "no augmentation" if config.augmentation == "none" else f"augmentation as of {config.augmentation}"
        extras = [
            f"{name.replace('_', ' ')} {value:g}"
            for name, value in asdict(how).items()
            if name in ("weight_decay", "warmup_epochs", "label_smoothing") and value
        ]
        notes.append(
            f"Fine-tuned for {config.epochs} epochs by {how.optimizer} at {how.learning_rate:g}, {how.schedule}"
            f"{''.join(', ' + extra for extra in extras)}, with {augmented}; the paper: 200 epochs by SGD at 0.0001, "
            "augmented."
        )
    if config.bn_statistics == "local" and len(study.engine.devices) > 1:
        notes.append(f"Mini-batch statistics are local to each of {len(study.engine.devices)} devices.")
    for approach, backbone in tuned.items():
        blocks = config.blocks_of(backbone)
        if blocks.names != blocks_of(backbone, ("paper",)).names:
            notes.append(f"{approach} trains {', '.join(blocks.names) or 'no weight'}; the paper, its last blocks.")
        if blocks.frozen_normalises(backbone):
            notes.append(f"{approach}: frozen batch normalisation in mode {blocks.frozen_bn}.")
        if blocks.trained_normalises(backbone):
            of_random = blocks.trained_bn == "keras2017" and backbone.name in random
            reason = OF_RANDOM if of_random else REASONS[blocks.trained_bn]
            notes.append(f"{approach}: trained batch normalisation in mode {blocks.trained_bn}{reason}.")
    return notes


def mixed_lineages(weights: dict[str, Weights]) -> str | None:
    """Says so where the networks' weights were not trained by the same framework, or one's were fine-tuned since."""
    origins = {network: origin_of(loaded.lineage) for network, loaded in weights.items()}
    known = {network: origin for network, origin in origins.items() if origin}
    if len(set(known.values())) < 2:
        return None
    return " and ".join(f"{network}'s weights come from {origin}" for network, origin in known.items())
