"""The old name of `altgrad.site`, for one version: what imports it still works, with one line of warning."""

import logging
import sys
import warnings
from importlib import import_module

from altgrad.site import *  # noqa: F403
from altgrad.site import __all__ as __all__

_RENAMED = {"guide": "executed", "kept": "cache", "own_site": "new_site"}

_NEW = "altgrad.pages is altgrad.site now; change the import, the old name goes with the next version"
if "mkdocs" in sys.modules:  # whose log a builder reads
    logging.getLogger("mkdocs.plugins.altgrad").info(_NEW)
else:
    warnings.warn(_NEW, FutureWarning, stacklevel=2)
for _name in ("chart", "content", "document", "folder", "html", "render", "sketch", "versions", *_RENAMED):
    sys.modules[f"{__name__}.{_name}"] = import_module(f"altgrad.site.{_RENAMED.get(_name, _name)}")
