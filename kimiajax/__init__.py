"""Training from scratch, pre-trained features and fine-tuning on Kimia Path24, in JAX and Flax.

The public names below are imported when they are first used, so that `import kimiajax` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AUGMENTATIONS": "kimiajax.training.augment",
    "BACKBONES": "kimiajax.models.registry",
    "Backbone": "kimiajax.models.backbone",
    "Classifier": "kimiajax.models.head",
    "Dataset": "kimiajax.data.tfds.datasets",
    "Engine": "kimiajax.training.engines",
    "Manifest": "kimiajax.data.manifest",
    "NonFiniteError": "kimiajax.training.loop",
    "Optimization": "kimiajax.training.optimizer",
    "PRESETS": "kimiajax.experiments.config",
    "PatchSource": "kimiajax.data.sources.source",
    "Rules": "kimiajax.data.patches",
    "SWEEPS": "kimiajax.experiments.sweep_config",
    "SweepConfig": "kimiajax.experiments.sweep_config",
    "TableConfig": "kimiajax.experiments.config",
    "TrainableBlocks": "kimiajax.training.freezing",
    "Training": "kimiajax.training.steps",
    "UserError": "kimiajax.errors",
    "analyse": "kimiajax.evaluation.analysis",
    "apply_row": "kimiajax.experiments.inference",
    "batches": "kimiajax.data.grain_loader",
    "blocks_of": "kimiajax.training.freezing",
    "check_backbone": "kimiajax.models.conformance",
    "compare_runs": "kimiajax.evaluation.compare",
    "cut_patches": "kimiajax.data.patches",
    "engine_of": "kimiajax.training.engines",
    "export_features": "kimiajax.features.export",
    "extract_features": "kimiajax.features.extract",
    "extract_taps": "kimiajax.features.extract",
    "fine_tuned": "kimiajax.models.checkpoint",
    "fit": "kimiajax.training.loop",
    "fit_heads": "kimiajax.training.heads",
    "fit_linear_svm": "kimiajax.features.svm",
    "grad_cam": "kimiajax.features.gradcam",
    "kimia_scores": "kimiajax.evaluation.metrics",
    "load_weights": "kimiajax.weights.load",
    "nearest": "kimiajax.features.retrieval",
    "open_scans": "kimiajax.data.open_scans",
    "predict": "kimiajax.training.loop",
    "prepare_patches": "kimiajax.data.patch_arrays",
    "read_manifest": "kimiajax.data.manifest",
    "read_patches": "kimiajax.data.patch_arrays",
    "read_run": "kimiajax.evaluation.stored",
    "retrieve": "kimiajax.features.retrieval",
    "run_sweep": "kimiajax.experiments.sweep",
    "run_table": "kimiajax.experiments.runner",
    "score": "kimiajax.evaluation.scoring",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kimiajax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
