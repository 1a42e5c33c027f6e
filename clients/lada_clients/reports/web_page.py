"""What this project's pages share: templates, one style, light and dark, no script.

A page is self-contained. Its template stands beside the module that makes it and extends
`web_page.html.j2`; whatever is put into it is escaped.
"""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from lada_clients.reports.charts import DARK, LIGHT, NARROW, WIDE


def render(module: str, template: str, /, **values: object) -> str:
    """A page from a template that stands beside a module. Args: values: what the template names."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(beside, ".") for beside in (module, __name__)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {
        "light": LIGHT,
        "dark": DARK,
        "widths": {"wide": WIDE, "narrow": NARROW},
    }
    environment.filters["plain_number"] = plain_number
    return environment.get_template(template).render(values)


def plain_number(value: float) -> str:
    """A number as people write it: 1e-5 rather than 1e-05."""
    mantissa, exponent_mark, exponent = f"{value:g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent_mark else mantissa
