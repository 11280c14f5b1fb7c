"""The package's description: README.md with its pictures inside, since links lead nowhere outside the tree."""

import base64
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Readme(MetadataHookInterface):
    """Fills in `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = embedded((Path(self.root) / "README.md").read_text(encoding="utf-8"), Path(self.root))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def embedded(text: str, root: Path) -> str:
    """A page with each PNG that it links to in place of the link, as a data URI."""

    def inside(link: re.Match[str]) -> str:
        return f"{link[1]}(data:image/png;base64,{base64.b64encode((root / link[2]).read_bytes()).decode()})"

    return re.sub(r"(!\[[^]]*\])\(([^):]+\.png)\)", inside, text)
