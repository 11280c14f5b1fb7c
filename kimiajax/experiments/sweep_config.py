"""The settings of `kimiajax sweep`, and its presets."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from kimiajax.checks import check_fields
from kimiajax.data.config import flag
from kimiajax.errors import UserError
from kimiajax.experiments.config import PRESETS, OutputSettings, TableConfig

AXES = {"patches": "patches_per_scan", "augmentations": "augmentation", "depths": "blocks"}  # and what each one varies


@dataclass(frozen=True)
class AxisSettings:
    """The values to try. The other settings are the centre: each axis varies one of them and leaves the others."""

    patches: tuple[int | Literal["all"], ...] = (10, 25, 50, 100, "all")
    """Training patches a scan to try beside --patches-per-scan; of every row. Without values: leave this axis out."""
    augmentations: tuple[Literal["none", "keras2017", "keras", "strong"], ...] = ("none", "keras2017", "strong")
    """Augmentations to try beside --augmentation; of rows that are fine-tuned."""
    depths: tuple[int, ...] = (0, 1, 2, 4, 8)
    """How many of a network's last blocks to train, beside --blocks; 0 is the head alone."""
    crossed: bool = False
    """Every combination of the axes, and not one axis at a time through the centre."""

    def validate(self) -> None:
        """Raises UserError for the first setting that is of another type or out of its range."""
        check_fields(self, flag)
        for name in AXES:
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"{flag(name)} {' '.join(map(str, values))}: names a value twice")
        for name, least in (("patches", 1), ("depths", 0)):
            for value in getattr(self, name):
                if value != "all" and value < least:
                    raise UserError(f"{flag(name)} {value}: must be {least} or more")
        if not any(getattr(self, name) for name in AXES):
            raise UserError(f"a sweep needs values to try: give {', '.join(map(flag, AXES))}, one of them at least")


ROWS = ("fe_vgg16", "tl_vgg16", "fe_inception_v3", "tl_inception_v3", "floor_histogram")
OUTPUT = OutputSettings(rows=ROWS, seeds=5)


@dataclass(frozen=True)
class SweepConfig(TableConfig):
    """Settings of a sweep: those of the table at its centre, whose rows are computed at each point, and the axes."""

    output: OutputSettings = OUTPUT
    sweep: AxisSettings = AxisSettings()

    def validate(self) -> None:
        """Raises UserError for the first setting that is out of its range."""
        super().validate()
        self.sweep.validate()
        if self.data.manifest is not None and self.sweep.patches:
            raise UserError(
                f"--patches {' '.join(map(str, self.sweep.patches))}: --manifest says which patches train; give "
                "--patches without values"
            )

    def folder(self, preset: str) -> Path:
        """Where the results go."""
        return super().folder(f"sweep-{preset}")

    def centre(self, **changes: Any) -> TableConfig:
        """The table's settings, with changes."""
        return TableConfig(**{group.name: getattr(self, group.name) for group in fields(TableConfig)}).replace(
            **changes
        )


def _around(preset: str, **own: Any) -> SweepConfig:
    table = PRESETS[preset][1]
    settings = table.as_dict() | {"rows": ROWS, "seeds": 5} | own
    return SweepConfig().replace(**settings)


DEMO = {"patches": (4, 8, 16), "depths": (0, 1, 2), "seeds": 2, "epochs": 2}
DEMO |= {"rows": ("fe_inception_v3", "tl_inception_v3", "floor_histogram")}

SWEEPS = {
    "demo": ("Synthetic scans and calibrated weights, small: shows the way, says nothing.", _around("demo", **DEMO)),
    "quick": ("A real scan file on a CPU: few epochs around 20 patches a scan.", _around("quick", seeds=3)),
    "paper": ("Around the paper's protocol in full; meant for a GPU.", _around("paper")),
}
