"""The mappings of the networks: `FILES` of a module a network, by framework."""

import importlib
from collections.abc import Iterator

from kimiajax.errors import UserError
from kimiajax.models.registry import BACKBONES
from weights_convert.mapping import Files


def files_of(network: str, framework: str) -> Files:
    """What a framework's files of a network hold.

    Raises:
        UserError: a network that is not known, or has no files of that framework.
    """
    found = _files(network) if network in BACKBONES else {}
    if framework not in found:
        known = ", ".join(name for name, _ in all_files(framework))
        raise UserError(f"no mapping of {framework}'s arrays is known for {network!r}; choose from {known}")
    return found[framework]


def all_files(framework: str) -> Iterator[tuple[str, Files]]:
    """The networks that a framework has files of; without those of packages that cannot be loaded."""
    for network in BACKBONES:
        try:
            files = _files(network).get(framework)
        except UserError:
            continue
        if files is not None:
            yield network, files


def _files(network: str) -> dict[str, Files]:
    mapping = BACKBONES[network].mapping
    if mapping is None:
        return {}
    try:
        return importlib.import_module(mapping).FILES
    except (ImportError, AttributeError) as error:
        raise UserError(f"{mapping} (the mapping of {network}): {error}; mend it, it must hold FILES") from error
