"""The old name of `altgrad.site`, for one version: what imports it still works, with one line of warning."""

import sys
import warnings
from importlib import import_module

from altgrad.site import *  # noqa: F403
from altgrad.site import __all__ as __all__

_RENAMED = {"guide": "executed", "kept": "cache", "mkdocs": "build", "own_site": "new_site"}

warnings.warn("altgrad.pages is altgrad.site now; the old name goes with the next version", FutureWarning, stacklevel=2)
for _name in ("chart", "content", "document", "folder", "html", "render", "sketch", "versions", *_RENAMED):
    sys.modules[f"{__name__}.{_name}"] = import_module(f"altgrad.site.{_RENAMED.get(_name, _name)}")
