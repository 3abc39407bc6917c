"""A document: Markdown that a person writes, with Jinja slots where values are placed.

``{{ gap }}`` is a value, ``{% if %}`` chooses between a sentence and the one that stands where runs are missing, and
``[text](altgrad:reports/format_comparison#results)`` leads to a page wherever the document is written. An unknown slot
is an error: a sentence with a hole in it would still look like a result.
"""

from __future__ import annotations

import posixpath
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError
from jinja2.runtime import Undefined

from altgrad.pages.content import PageRef, markdown, resolve
from altgrad.text import Md


class DocumentError(ValueError):
    """A document that cannot be rendered: one line that names the file, the line and what is wrong."""


def render_document(
    text: str, values: Mapping[str, Any], name: str, filters: Mapping[str, Callable[..., Any]] | None = None
) -> Md:
    """The document with its values, whose links to pages are still to be resolved (`place_document`).

    Args:
        text: Markdown with slots.
        values: by the name of their slot; text that is not `Md` is escaped.
        name: of the file, for messages.
        filters: what a slot may apply to a value, by name.

    Raises:
        DocumentError: a slot is unknown or cannot be computed, or the template is malformed.
    """
    environment = Environment(
        undefined=StrictUndefined, finalize=_written, keep_trailing_newline=True, trim_blocks=True
    )
    environment.filters |= filters or {}
    try:
        code = environment.compile(text, name, name)
        return Md(environment.template_class.from_code(environment, code, environment.make_globals({})).render(values))
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
        line = getattr(error, "lineno", None) or (lines or [1])[-1]
        raise DocumentError(f"{name}:{line}: {error}; correct the slot, or give it a value") from None


def place_document(text: Md, path: str) -> str:
    """A rendered document as the Markdown source of the site's page `path`."""
    return resolve(text, partial(source_address, path))


def source_address(path: str, reference: PageRef) -> str:
    """Where a page or a file is, as the Markdown source of the page `path` links to it."""
    place = reference.path if reference.is_file else f"{reference.path}.md"
    anchor = f"#{reference.anchor}" if reference.anchor else ""
    return posixpath.relpath(place, posixpath.dirname(path) or ".") + anchor


def _written(value: Any) -> Any:
    return value if isinstance(value, Undefined) else markdown(value if isinstance(value, str) else str(value))
