"""The settings of each command, a field being a flag, and the presets of `kimiajax table`."""

from kimiajax.config.commands import (
    AuditConfig,
    BlocksConfig,
    CompareConfig,
    ExplainConfig,
    ExportConfig,
    FeaturesConfig,
    ParityConfig,
    PredictConfig,
    PrepareConfig,
    ReportConfig,
    ScoreConfig,
)
from kimiajax.config.patches import SOURCES, PatchConfig, ScansConfig, flag
from kimiajax.config.sweep import SWEEPS, SweepConfig
from kimiajax.config.table import DEMO, FLOORS, KINDS, PAPER, PRESETS, QUICK, RETRIEVAL, TABLE, TableConfig, setting_of

__all__ = [
    "DEMO",
    "FLOORS",
    "KINDS",
    "PAPER",
    "PRESETS",
    "QUICK",
    "RETRIEVAL",
    "SOURCES",
    "SWEEPS",
    "TABLE",
    "AuditConfig",
    "BlocksConfig",
    "CompareConfig",
    "ExplainConfig",
    "ExportConfig",
    "FeaturesConfig",
    "ParityConfig",
    "PatchConfig",
    "PredictConfig",
    "PrepareConfig",
    "ReportConfig",
    "ScansConfig",
    "ScoreConfig",
    "SweepConfig",
    "TableConfig",
    "flag",
    "setting_of",
]
