"""What a benchmark that takes long has measured so far: noted at once, so that the same command goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Notes:
    """Measurements by name, in a file; those of other code are forgotten.

    Args:
        path: of the file, in a folder that need not be there.
        code: of what is measured, as a digest.
    """

    def __init__(self, path: Path, code: str) -> None:
        self._path, self._code, self.known = path, code, dict[str, Any]()
        try:
            found = json.loads(path.read_text())
            self.known = found["known"] if found["code"] == code else {}
        except (OSError, ValueError, LookupError, TypeError):
            pass

    def of(self, name: str, measure: Callable[[], Any]) -> Any:
        """What was measured, now where nobody has before; JSON."""
        if name not in self.known:
            self.known[name] = measure()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"code": self._code, "known": self.known}))
        return self.known[name]
