"""The page and the summary: templates filled, everything escaped, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import jinja2
from markupsafe import Markup

from probes.report import formatting, glossary
from probes.report.run import Run
from probes.report.sections import Section

_LOADER = jinja2.PackageLoader("probes.report")
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""What a browser may do with the page: no request to anywhere, no script but ours."""


def html(run: Run, sections: list[tuple[Section, Any]]) -> str:
    """The whole page."""
    environment = _environment(autoescape=True)
    style, script = (_source(environment, name) for name in ("page.css", "page.js"))
    policy = _POLICY.format(script=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())
    template = environment.get_template("page.html")
    return template.render(
        run=run, sections=sections, style=Markup(style), script=Markup(script), policy=Markup(policy)
    )


def markdown(run: Run, sections: list[tuple[Section, Any]]) -> str:
    """The summary for a model card."""
    content = {section.key: content for section, content in sections}
    return fill("summary.md", run=run, **content)


def fill(template: str, **content: Any) -> str:
    """A Markdown template filled; what it prints of others' goes through its filter `md`."""
    return _environment(autoescape=False).get_template(template).render(**content)


def _environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=_LOADER,
        autoescape=autoescape,
        finalize=formatting.finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "number": formatting.number,
        "percent": formatting.percent,
        "points": formatting.points,
        "bounds": formatting.bounds,
        "md": formatting.markdown,
        "plural": formatting.plural,
        "cut": formatting.cut,
    }
    environment.filters |= filters
    environment.globals |= {
        "TERM": glossary.term,
        "REGIMES": formatting.REGIMES,
        "ACTIONS": formatting.ACTIONS,
        "EXPLAINED": formatting.EXPLAINED,
    }
    return environment


def _source(environment: jinja2.Environment, name: str) -> str:
    source, _, _ = _LOADER.get_source(environment, name)
    return source
