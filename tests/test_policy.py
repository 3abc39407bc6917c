"""The content-security policy: the theme's own inline scripts run, and any other code in a page fails the build."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

pytest.importorskip("material")

import material
from jinja2 import Environment
from mkdocs.exceptions import PluginError
from test_guides import mkdocs, small_site

from altgrad.site.policy import seal_html

SCRIPTS = sorted((Path(material.__file__).parent / "templates/partials/javascripts").glob("*.html"))
BASE = next(path for path in SCRIPTS if path.stem == "base").read_text("utf-8")


def page(body: str) -> str:
    return f"<html><head></head><body>{body}</body></html>"


def in_theme(template: str, base_url: str) -> str:
    """What the theme writes on a page that is as deep in the site."""
    values = {"config": {"extra": {}}, "base_url": base_url, "features": ["content.tabs.link"]}
    return Environment(autoescape=True).from_string(template).render(values)


@pytest.mark.parametrize("base_url", [".", "../..", "https://example.org/0.2/"])
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_of_the_theme_is_allowed_by_its_hash(path: Path, base_url: str) -> None:
    written = in_theme(path.read_text("utf-8"), base_url)
    texts = re.findall(r"<script>(.*?)</script>", written)
    assert texts
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    policy = re.search(r'<head><meta http-equiv="Content-Security-Policy" content="([^"]*)">', seal_html(page(written)))
    assert policy
    assert re.findall(r"'sha256-([^']*)'", policy[1]) == hashes
    assert "form-action 'none'" in policy[1]


@pytest.mark.parametrize(
    "body",
    [
        "<script>alert(1)</script>",
        "<SCRIPT\n>alert(1)</SCRIPT >",
        "<script>alert(1)",
        "<svg><script type='module'>alert(1)</script></svg>",
        '<script type="text/javascript" type="application/json">alert(1)</script>',
        "<script data-x=' type=\"application/json\"'>alert(1)</script>",
        '<script src="x.js">alert(1)</script>',
        in_theme(BASE, ".").replace('"."', '(alert(1),".")'),
        in_theme(BASE, ".").replace('"."', '".",alert("")'),
        in_theme(BASE, ".") + "<script>x</script>",
        "<img src=x onerror=alert(1)>",
        "<svg/ONLOAD = alert(1)>",
        "<p title='>' \n onclick='alert(1)'>",
        '<a href="javascript:alert(1)">a</a>',
        "<a href=' java\nscript&#58;alert(1)'>a</a>",
        "<iframe src=JavaScript&colon;alert(1)></iframe>",
        '<form action="javascript:alert(1)"></form>',
        '<button formaction="javascript:alert(1)">a</button>',
    ],
)
def test_any_other_code_in_a_page_is_an_error_of_one_line_that_names_the_page(body: str) -> None:
    with pytest.raises(PluginError, match=r"^x\.md: the (inline script|attribute) '.*extra_javascript") as caught:
        seal_html(page(body), "x.md")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        '<script src="x.js" defer></script>',
        '<script id="__config" type="application/json">{"base": "."}</script>',
        '<p title="&lt;img onerror=alert(1)&gt; onclick=1">onclick=1 <code>&lt;a href="javascript:1"&gt;</code></p>',
        '<a href="mailto:a@example.org" title="javascript:alert(1)">javascript:alert(1)</a>',
        '<a href="javascript:void(0)" class="md-search__icon">the theme\'s button</a>',
    ],
)
def test_what_runs_nothing_passes(body: str) -> None:
    assert body in seal_html(page(body))
    assert "sha256" not in seal_html(page(body))


def test_an_inline_script_fails_a_strict_build_and_the_theme_s_own_do_not(tmp_path: Path) -> None:
    project = small_site(tmp_path, "# Guide\n\nText.\n")
    with open(project / "mkdocs.yml", "a") as file:
        file.write("theme: {name: material, font: false, features: [content.tabs.link, search.share]}\n")
    done = mkdocs(project)
    assert done.returncode == 0, done.stderr
    assert "'sha256-" in (project / "site/guides/guide/index.html").read_text()
    (project / "docs/guides/guide.md").write_text("# Guide\n\n<script>window.pwned = 1</script>\n")
    done = mkdocs(project)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "window.pwned" in line]
    assert len(told) == 1
    assert "guides/guide.md: the inline script 'window.pwned = 1' is code in a page" in told[0]
    assert "Traceback" not in done.stderr


def test_the_repository_is_linked_and_github_is_not_asked_about_it(tmp_path: Path) -> None:
    project = small_site(tmp_path, "# Guide\n\nText.\n")
    with open(project / "mkdocs.yml", "a") as file:
        file.write("theme: {name: material, font: false}\nrepo_url: https://github.com/owner/name\n")
    done = mkdocs(project)
    assert done.returncode == 0, done.stderr
    html = (project / "site/guides/guide/index.html").read_text()
    assert '<a href="https://github.com/owner/name" title="Go to repository" class="md-source">' in html
    assert 'data-md-component="source"' not in html, "which the theme's script looks for"
