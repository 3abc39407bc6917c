"""What mkdocs calls: all that the plugin of this checkout's own library does, whichever library is installed."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, ROOT)

from altgrad.site.plugin import AltgradPlugin  # noqa: E402

plugin = AltgradPlugin()
plugin.library = ROOT  # mkdocs takes it off the path again
globals().update({name: getattr(plugin, name) for name in dir(plugin) if name.startswith("on_")})
