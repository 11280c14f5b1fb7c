"""The rows of Table 1, and those that stand beside it, as data, in the order in which they are printed.

A new row is a line here, and is computed where `--rows` names it. What is computed by default stands in
`kimiajax.experiments.config`, and the paper's figures, by the row's name, in `kimiajax.paper`.
"""

from kimiajax.errors import UserError
from kimiajax.experiments.approach import Approach
from kimiajax.experiments.config import KINDS
from kimiajax.experiments.feature_rows import Baseline, FeatureSVM, Retrieval
from kimiajax.experiments.fine_tuning import FineTuning
from kimiajax.experiments.network_rows import FromScratch
from kimiajax.features.baselines import FLOORS
from kimiajax.models.registry import BACKBONES

SCRATCH = ("cnn",)  # networks without published weights: they are trained from scratch, and nothing else


def all_rows() -> tuple[Approach, ...]:
    """The rows that there are: Table 1's first, then those of other networks, baselines, and retrieval."""
    titles = {name: _title(name) for name in BACKBONES if name not in SCRATCH}
    return (
        *(FromScratch(name, BACKBONES[name].title, name) for name in SCRATCH),
        *(
            row
            for name, title in titles.items()
            for row in (FeatureSVM(f"fe_{name}", f"FE-{title}", name), FineTuning(f"tl_{name}", f"TL-{title}", name))
        ),
        *(Baseline(name, title) for name, (title, _) in FLOORS.items()),
        *(
            Retrieval(f"nn_{name}_{kind}", f"NN-{title}", name, kind)
            for name, title in titles.items()
            for kind in KINDS
        ),
    )


def _title(network: str) -> str:
    """A network's title; its name where its package cannot be loaded, which whoever asks for the row is told."""
    try:
        return BACKBONES[network].title
    except UserError:
        return network
