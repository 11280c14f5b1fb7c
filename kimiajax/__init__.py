"""Training from scratch, pre-trained features and fine-tuning on Kimia Path24, in JAX and Flax.

The public names below are imported when they are first used, so that `import kimiajax` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AUGMENTATIONS": "kimiajax.data.augment",
    "BACKBONES": "kimiajax.models.registry",
    "Backbone": "kimiajax.models.backbone",
    "Classifier": "kimiajax.models.backbone",
    "Dataset": "kimiajax.data.sets",
    "Engine": "kimiajax.finetune.engines",
    "Manifest": "kimiajax.data.manifest",
    "NonFiniteError": "kimiajax.finetune.loop",
    "Optimization": "kimiajax.finetune.optimizer",
    "PRESETS": "kimiajax.config",
    "PatchSource": "kimiajax.data.source",
    "Rules": "kimiajax.data.patches",
    "SWEEPS": "kimiajax.config",
    "SweepConfig": "kimiajax.config",
    "TableConfig": "kimiajax.config",
    "TrainableBlocks": "kimiajax.finetune.blocks",
    "Training": "kimiajax.finetune.steps",
    "UserError": "kimiajax.errors",
    "analyse": "kimiajax.analysis",
    "apply_row": "kimiajax.apply",
    "batches": "kimiajax.data.feed",
    "blocks_of": "kimiajax.finetune.blocks",
    "check_backbone": "kimiajax.models.battery",
    "compare_runs": "kimiajax.compare",
    "cut_patches": "kimiajax.data.patches",
    "engine_of": "kimiajax.finetune.engines",
    "export_features": "kimiajax.feature_files",
    "extract_features": "kimiajax.features",
    "extract_taps": "kimiajax.features",
    "fine_tuned": "kimiajax.models.weights",
    "fit": "kimiajax.finetune.loop",
    "fit_heads": "kimiajax.finetune.heads",
    "fit_linear_svm": "kimiajax.svm",
    "grad_cam": "kimiajax.gradcam",
    "kimia_scores": "kimiajax.metrics",
    "load_weights": "kimiajax.models.weights",
    "nearest": "kimiajax.retrieval",
    "open_scans": "kimiajax.data.opening",
    "predict": "kimiajax.finetune.loop",
    "prepare_patches": "kimiajax.data.reading",
    "read_manifest": "kimiajax.data.manifest",
    "read_patches": "kimiajax.data.reading",
    "read_run": "kimiajax.report.stored",
    "retrieve": "kimiajax.retrieval",
    "run_sweep": "kimiajax.sweep",
    "run_table": "kimiajax.table",
    "score": "kimiajax.scoring",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kimiajax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
