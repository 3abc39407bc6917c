"""Where the reports were. `altgrad.reports` has them now; this name goes with the next version."""

import warnings

from altgrad.reports import *  # noqa: F403

warnings.warn("altgrad.analysis.reports is altgrad.reports now; change the import", FutureWarning, stacklevel=2)
