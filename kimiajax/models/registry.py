"""The networks by name: this project's own, and those that installed packages add through the entry-point group below.

A package of a network of its own, `MY_NET = Backbone("my_net", ...)`, names it in its pyproject.toml:

    [project.entry-points."kimiajax.backbones"]
    my_net = "my_package:MY_NET"
"""

import warnings
from collections.abc import Iterator, MutableMapping
from importlib.metadata import EntryPoint, entry_points

from kimiajax.errors import UserError
from kimiajax.models import cnn, densenet121, inception_v3, resnet50, vgg16
from kimiajax.models.backbone import Backbone

GROUP = "kimiajax.backbones"


class UnknownNetworkError(UserError, KeyError):
    """No network has this name; a KeyError too, by which mappings know that."""

    __str__ = UserError.__str__


class Registry(MutableMapping[str, Backbone]):
    """Backbones by name. Packages are looked for where a name is not known yet, and loaded where it is asked for."""

    def __init__(self, *backbones: Backbone):
        self._known: dict[str, Backbone | EntryPoint] = {backbone.name: backbone for backbone in backbones}
        self._looked = False

    def __getitem__(self, name: str) -> Backbone:
        if name not in self._known:
            self._look_for_packages()
        if name not in self._known:
            raise UnknownNetworkError(f"no network {name!r}; choose from {', '.join(self._known)}")
        found = self._known[name]
        if isinstance(found, EntryPoint):
            found = self._known[name] = _load(found)
        return found

    def __setitem__(self, name: str, backbone: Backbone) -> None:
        self._known[name] = backbone

    def __delitem__(self, name: str) -> None:
        del self._known[name]

    def __iter__(self) -> Iterator[str]:
        self._look_for_packages()
        return iter(dict(self._known))

    def __len__(self) -> int:
        self._look_for_packages()
        return len(self._known)

    def __contains__(self, name: object) -> bool:
        """Without loading anything."""
        if name not in self._known:
            self._look_for_packages()
        return name in self._known

    def _look_for_packages(self) -> None:
        if self._looked:
            return
        self._looked = True
        for found in entry_points(group=GROUP):
            if found.name in self._known:
                warnings.warn(f"{found.value}: there is a backbone {found.name!r} already, which stays", stacklevel=4)
            self._known.setdefault(found.name, found)


def _load(entry: EntryPoint) -> Backbone:
    """Raises UserError where the package cannot be imported, or has no such backbone."""
    origin = f"{entry.value} (backbone {entry.name!r}" + (f" of {entry.dist.name})" if entry.dist else ")")
    try:
        backbone = entry.load()
    except Exception as error:  # whatever another package raises while it is imported
        raise UserError(f"{origin}: cannot be loaded ({type(error).__name__}: {error}); mend or remove it") from error
    if not isinstance(backbone, Backbone) or backbone.name != entry.name:
        what = repr(backbone.name) if isinstance(backbone, Backbone) else f"a {type(backbone).__name__}"
        raise UserError(f"{origin}: is {what}, and must be a Backbone of that name; mend or remove that package")
    return backbone


BACKBONES = Registry(
    *(module.BACKBONE for module in (vgg16, inception_v3, cnn, resnet50, densenet121)),
)
