"""The content-security policy of finished pages."""

from __future__ import annotations

import base64
import hashlib
import re


def seal_html(html: str) -> str:
    """A finished page with a content-security policy: no request leaves the site, and no script runs but its own.

    The page's inline scripts are allowed by their hashes. Not for `mkdocs serve`, which adds a script afterwards.
    """
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = dict.fromkeys(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    policy = (
        f"default-src 'self'; script-src 'self' {allowed}; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'self'"
    )
    return html.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">', 1)
