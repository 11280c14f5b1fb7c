"""The peers' side: each module runs in an environment of its own and imports nothing of `kimiajax`."""
