"""What a finished page may do: a content-security policy, and the build ends where a page has a script of its own.

Inline scripts are the theme's, known by their text in its templates; every other script is a file of the site. What the
policy forbids would do nothing in a browser: it fails the build so that its author hears of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

from altgrad.text import shorten, visible

POLICY = (
    "default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'none'"
)
_SCRIPT = re.compile(r"<script\b([^>]*)>(.*?)(?:</script|$)", re.DOTALL | re.IGNORECASE)
_DATA = re.compile(r'(?: id="\w+")? type="application/json"')
_SLOT = re.compile(r'"\{\{.*?\}\}"|\{\{.*?\}\}')
_ADDRESSES = ("href", "xlink:href", "src", "action", "formaction")
_SUSPECT = (
    re.compile(r"""on(?<=[\s"'/]on)\w+\s*="""),
    *(re.compile(rf"""{name}\s*=\s*["']?(?!https?:)[^"'/#?.>]*[:&]""") for name in ("href", "src", "action")),
)
"""What a page in lower case has that has code in an attribute, and few others have, since to parse a page is slow."""


def seal_html(html: str, name: str = "this page") -> str:
    """A finished page with its policy: no request leaves the site, no form is sent, no script runs but the theme's.

    Not for `mkdocs serve`, which adds a script afterwards.

    Args:
        html: the page.
        name: what an error calls it.

    Raises:
        mkdocs.exceptions.PluginError: an inline script that is not of an installed theme, an event's handler or an
            address that is code; one line.
    """
    allowed: dict[str, None] = {}
    for attributes, text in _SCRIPT.findall(html):
        if _of_theme(text):
            allowed[base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()] = None
        elif text.strip() and not _DATA.fullmatch(attributes):
            raise _refused(name, f"the inline script {_quoted(text)}")
    lower = html.lower()
    if any(pattern.search(lower) for pattern in _SUSPECT):
        _Attributes(name).feed(html)
    policy = POLICY.format(scripts=" ".join(f"'sha256-{value}'" for value in allowed))
    return html.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">', 1)


class _Attributes(HTMLParser):
    """Finds code in attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.page = page

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            address = re.sub(r"[\x00-\x20]", "", value or "").lower()  # as a browser reads it
            code = name in _ADDRESSES and address.startswith("javascript:") and address != "javascript:void(0)"
            if code or name.startswith("on"):
                raise _refused(self.page, f"the attribute {_quoted(f'{name}={value}')} of <{tag}>")


def _refused(page: str, what: str) -> Exception:
    from mkdocs.exceptions import PluginError

    error: Exception = PluginError(f"{page}: {what} is code in a page; put it into a file that extra_javascript names")
    return error


def _quoted(text: str) -> str:
    return repr(shorten(visible(" ".join(text.split())), 60))


@cache
def _of_theme(script: str) -> bool:
    """Whether a script is an installed theme's, with values in its slots."""
    found = (pattern.fullmatch(script) for pattern in _theme_scripts())
    return any(match and all(map(_is_json, match.groups())) for match in found)


@cache
def _theme_scripts() -> tuple[re.Pattern[str], ...]:
    """The inline scripts that the installed themes have on any page, each with a group for every slot."""
    from mkdocs.utils import get_theme_dir, get_theme_names

    folders = [Path(get_theme_dir(name)) for name in get_theme_names()]
    files = [
        path
        for folder in folders
        for name in ("base", "partials/javascripts/*")
        for path in folder.glob(f"{name}.html")
    ]
    texts = [text for path in files for _, text in _SCRIPT.findall(path.read_text("utf-8")) if text.strip()]
    return tuple(re.compile("(.*?)".join(map(re.escape, _SLOT.split(text))), re.DOTALL) for text in texts)


def _is_json(value: str) -> bool:
    """Whether what stands in a slot is a value, which runs nothing."""
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return False
    return True
