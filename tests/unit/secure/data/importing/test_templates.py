"""Templates do what a mapping needs and nothing else, whoever wrote the mapping."""

from __future__ import annotations

import pytest

from lada_secure.data.importing.templates import RowTemplate, Unusable
from lada_secure.errors import ParameterError


@pytest.mark.parametrize(
    ("text", "cells", "filled"),
    [
        ("{{ age }} years", {"age": "7"}, "7 years"),
        ("{{ row['body site'] }}", {"body site": "arm"}, "arm"),
        ("{% if sex == 'f' %}She{% else %}He{% endif %}", {"sex": "f"}, "She"),
        ("{% if note is defined %}{{ note }}{% endif %}.", {"note": None}, "."),
        ("{{ note | default('none') }}", {"note": ""}, "none"),
        ("{{ dose | number(',', '.') }} mg", {"dose": "-1.234,50"}, "-1234.50 mg"),
        ("{{ day | date('%d.%m.%Y') }}", {"day": "3.4.2025"}, "2025-04-03"),
        ("{{ a | after('####') | trim }}", {"a": "1 #### 2 #### 72 "}, "72"),
        ("{{ a | before('####') | trim }}", {"a": "1 #### 72"}, "1"),
        ("{{ a | replace('x', 'y') ~ '!' }}", {"a": "xx"}, "yy!"),
        ("{{ a }}", {"a": "{{ 7 * 7 }}"}, "{{ 7 * 7 }}"),
        ("{{ a | plain_id }}", {"a": "007"}, "7"),
        ("{{ a | plain_id }}", {"a": " 7.0 "}, "7"),
        ("{{ a | plain_id }}", {"a": "ward 3/P-0017"}, "P-17"),
        ("{{ a | plain_id }}", {"a": "000"}, "0"),
        ("{{ a | plain_id }}", {"a": "1.05"}, "1.05"),
        ("{{ a | reference }}", {"a": "Patient/14"}, "Patient/14"),
        ("{{ a | reference }}", {"a": "http://kis/fhir/Patient/14/_history/2"}, "Patient/14"),
        ("{{ a | reference }}", {"a": "urn:uuid:0-1"}, "urn:uuid:0-1"),
        ("{{ a | striptags }}", {"a": "<b>x</b>"}, "x"),
        ("{{ 1 if a is in ['x', b] else 0 }}", {"a": "y", "b": "y"}, "1"),
    ],
)
def test_a_template_is_filled(text: str, cells: dict[str, str | None], filled: str) -> None:
    assert RowTemplate(text).fill(cells) == filled


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ a.__init__.__globals__ }}",
        "{{ a['__class__'] }}",
        "{{ row['a']['__class__'] }}",
        "{{ row.items() }}",
        "{{ row }}",
        "{{ self }}",
        "{{ self._TemplateReference__context }}",
        "{{ a | attr('__class__') }}",
        "{{ [a] | map(attribute='__class__') | list }}",
        "{{ a.format(a) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'a' * 999999999 }}",
        "{{ 2 ** 999999999 }}",
        "{{ range(9) }}",
        "{{ lipsum() }}",
        "{{ cycler.__init__ }}",
        "{% for one in a %}{{ one }}{% endfor %}",
        "{% set b = a %}{{ b }}",
        "{% macro m() %}{% endmacro %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends a %}",
        "{% block a %}{% endblock %}",
        "{{ a | center(999999999) }}",
        "{{ a | xmlattr }}",
        "{{ a is callable }}",
        "{{ a[0:3] }}",
        "{{ a if",
        "{{ " + "(" * 5_000,
        "{% if a %}" * 120 + "x" + "{% endif %}" * 120,
        "{{ a | number(',', '.', '!') }}",
        "{{ a | date }}",
        "{{ a | replace(old='x') }}",
        "{{ a | trim(side='left') }}",
        "{{ (a, b) }}",
        "{{ [a, b] | default('x') }}",
        "{{ a | default(['x', 'y']) }}",
        "{% if a is eq ['x'] %}x{% endif %}",
        "{{ a | date(form='%d', form='%m') }}",
        "{{ a | default(*b) }}",
        "{% if a is eq %}x{% endif %}",
        "{% if a is defined(3) %}x{% endif %}",
        "{{ " + "9" * 5_000 + " }}",
        "{% if a in [(b, c)] %}x{% endif %}",
        "x" * 10_000,
    ],
)
def test_whatever_else_a_template_asks_for_is_refused_before_a_row_is_read(text: str) -> None:
    with pytest.raises(ParameterError):
        RowTemplate(text)


def test_chained_replacements_do_not_fill_the_memory() -> None:
    grow = " | replace('a', 'aaaaaaaaaaaaaaaaaaaa')" * 8
    with pytest.raises(Unusable, match="template-failed"):
        RowTemplate("{{ a" + grow + " }}").fill({"a": "a" * 1000})


@pytest.mark.parametrize(
    ("text", "cell", "reason"),
    [
        ("{{ a }}", None, "cell-empty"),
        ("{{ a | number }}", "", "cell-empty"),
        ("{{ a | number }}", "1,5", "template-failed"),
        ("{{ a | number(',', '.') }}", "12.34,5", "template-failed"),
        ("{{ a | number('.', ',') }}", "1e5", "template-failed"),
        ("{{ a | number }}", "\u0661", "template-failed"),
        ("{{ a | date('%d.%m.%Y') }}", "31.2.2025", "template-failed"),
        ("{{ a | after('#') }}", "72", "template-failed"),
    ],
)
def test_a_value_that_does_not_fit_is_this_rows_fault(
    text: str, cell: str | None, reason: str
) -> None:
    with pytest.raises(Unusable, match=reason):
        RowTemplate(text).fill({"a": cell})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{{ Fall-Nr }}", "Fall-Nr"),
        ("{{ a }} {{ Fall Nr | trim }}", "Fall Nr"),
        ("{{ code.text }}", "code.text"),
    ],
)
def test_a_column_with_signs_in_its_name_is_told_how_to_write_it(text: str, name: str) -> None:
    with pytest.raises(ParameterError) as refused:
        RowTemplate(text)
    assert str(refused.value).endswith(f"a column called {name} is row['{name}']")


def test_a_reference_to_a_second_server_or_inside_its_resource_makes_a_reject() -> None:
    template = RowTemplate("{{ a | reference }}")
    assert template.fill({"a": "http://kis/fhir/Patient/14"}) == "Patient/14"
    assert template.fill({"a": "Patient/14"}) == "Patient/14"
    for other in ("http://lab/fhir/Patient/14", "#p1"):
        with pytest.raises(Unusable, match="template-failed"):
            template.fill({"a": other})


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("{{ a }} {{ row['b c'] | lower }}", "a,b c"),
        ("{{ a | default(b) }}", ""),
        ("{{ a | trim | default(b) }}", "a"),
        ("{% if a is defined %}{{ a }}{% else %}{{ b }}{% endif %}", ""),
        ("{% if a is defined %}{{ a }}, {% endif %}{{ b }}", "b"),
        ("{% if a == 'x' %}{{ b }} {{ c }}{% else %}{{ b }}{% endif %}", "a,b"),
        ("{% if a == 'x' %}{{ b }}{% elif c %}{{ b }}{% endif %}", "a"),
        ("{{ a if a is defined else b }}", ""),
        ("{{ a if b in ['x', c] else a }}", "a,b,c"),
        ("{{ a is defined and b or c }}", ""),
        ("{{ a ~ b }}", "a,b"),
    ],
)
def test_a_column_is_needed_where_no_row_can_do_without_it(text: str, needed: str) -> None:
    assert ",".join(sorted(RowTemplate(text).needed)) == needed
