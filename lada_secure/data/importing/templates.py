"""Templates of a mapping: texts put together from a row's cells, by jinja2 in its sandbox.

A mapping may come from somebody else, so a template can do little: name columns, compare, choose,
and apply the filters below. There are no calls, loops, attributes or inclusions; they are refused
when the mapping is read. Adversary: the author of a mapping, who must not read files, run code or
fill the memory of whoever imports by it.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, Final

from jinja2 import Environment, StrictUndefined, TemplateError, Undefined, UndefinedError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lada_secure.data.importing.rows import ListOfObjects
from lada_secure.data.unit_ids import plain_id
from lada_secure.errors import ParameterError

MAX_TEMPLATE_CHARACTERS: Final = 8 * 1024
ROW: Final = "row"

# Nothing here can call, loop, import, multiply a text, or reach an attribute of Python.
_ALLOWED: Final[tuple[type[nodes.Node], ...]] = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.If,
    nodes.CondExpr,
    nodes.Const,
    nodes.Name,
    nodes.Getitem,
    nodes.Filter,
    nodes.Test,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Concat,
    nodes.Keyword,
    nodes.List,
    nodes.Tuple,
)
_OF_JINJA: Final = (
    *("default", "d", "trim", "lower", "upper", "capitalize", "title", "striptags", "length"),
)
_OWN: Final = ("after", "before", "date", "hash", "number", "plain_id", "reference", "replace")
# Names that mean something to jinja2; columns of these names are reached through `row`.
_TAKEN: Final = frozenset({"self", "super", "loop", "caller", "varargs", "kwargs"})
MAX_TEXT_CHARACTERS: Final = 64 * 1024
_GUARDS: Final = ("defined", "undefined", "default", "d")
_MEMBERSHIP: Final = ("in", "notin")
_TESTS: Final = ("defined", "undefined", "in", "eq", "equalto", "==", "ne", "!=")


class Unusable(ValueError):
    """A row that a template cannot be filled from. reason: of `REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# What is shown between braces, up to its filters.
_SHOWN: Final = re.compile(r"\{\{([^{}|'\"()\[\]~]+)")
_REFERENCE: Final = re.compile(
    r"(?:(https?://[^\s#]+)/)?([A-Z][A-Za-z]+/[A-Za-z0-9.-]+)(?:/_history/[A-Za-z0-9.-]+)?"
)
# The digits of a number with all signs that stand within one somewhere.
NUMERAL: Final = re.compile(r"[.,]?\d(?:[\d.,'\u2019\s]*\d)?")


class _Unreadable:
    """A list of objects in a template: it is there, and cannot be written."""

    def __str__(self) -> str:
        raise Unusable("list-of-objects")


def number(text: object, decimal: str = ".", thousands: str = "") -> str:
    """A number as it is written somewhere, in plain digits with a full stop.

    Args: decimal, thousands: the signs that are used. Raises: ValueError: not such a number.
    """
    if len(decimal) != 1 or len(thousands) > 1 or decimal == thousands:
        raise ValueError
    grouped = rf"[0-9]{{1,3}}(?:{re.escape(thousands)}[0-9]{{3}})+|" if thousands else ""
    form = rf"([+-]?)({grouped}[0-9]+)(?:{re.escape(decimal)}([0-9]+))?"
    found = re.fullmatch(form, str(text).strip(), re.ASCII)
    if found is None:
        raise ValueError
    sign, whole, part = found.groups()
    whole = whole.replace(thousands, "") if thousands else whole
    return f"{'-' if sign == '-' else ''}{whole}{'.' + part if part else ''}"


def with_plain_number(text: str, decimal: str, thousands: str) -> str:
    """A text with its first number in plain digits. Raises: ValueError: see `number`."""

    def plain(found: re.Match[str]) -> str:
        written = unicodedata.normalize("NFKC", found.group())
        # A number may begin with its decimal sign.
        return number("0" * written.startswith(decimal) + written, decimal, thousands)

    return NUMERAL.sub(plain, text, count=1)


def date(text: object, form: str) -> str:
    """A date as it is written somewhere, as YYYY-MM-DD.

    Args: form: in the signs of strptime, as "%d.%m.%Y". Raises: ValueError: not such a date.
    """
    return datetime.strptime(str(text).strip(), form).date().isoformat()


def replace(text: object, old: str, new: str) -> str:
    """A text with one part of it exchanged for another, everywhere.

    Raises: ValueError: nothing is to be replaced, or the result passes 64 KiB. Replacements can be
        chained, and each multiplies what the last one left.
    """
    whole = str(text)
    longer = whole.count(old) * (len(new) - len(old))
    if not old or len(whole) + longer > MAX_TEXT_CHARACTERS:
        raise ValueError
    return whole.replace(old, new)


def before(text: object, sign: str) -> str:
    """What stands before the last sign of its kind. Raises: ValueError: there is none."""
    found, there, _ = str(text).rpartition(sign)
    if not there:
        raise ValueError
    return found


def after(text: object, sign: str) -> str:
    """What stands behind the last sign of its kind. Raises: ValueError: there is none."""
    _, there, found = str(text).rpartition(sign)
    if not there:
        raise ValueError
    return found


def hashed(text: object) -> str:
    """24 hexadecimal digits that stand for a text; whoever has the text can make them again."""
    return hashlib.sha256(str(text).encode("utf-8")).hexdigest()[:24]


class References:
    """References of FHIR to one server's resources, as Type/id.

    The base of the first whole URL is the server's. Two servers may have a Patient/14 each, so a
    reference to another one is refused, as is one that has a meaning in its own resource alone.
    A urn:uuid: or urn:oid: stays, for nobody else has it.
    """

    def __init__(self) -> None:
        self._base: str | None = None

    def read(self, text: object) -> str:
        """Type/id. Raises: ValueError: not such a reference."""
        given = str(text).strip()
        if given.startswith(("urn:uuid:", "urn:oid:")):
            return given
        found = _REFERENCE.fullmatch(given)
        if found is None:
            raise ValueError
        base, own = found.groups()
        if base is not None and self._base is None:
            self._base = base
        if base not in (None, self._base):
            raise ValueError
        return own


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    environment.globals.clear()
    kept = {name: environment.filters[name] for name in _OF_JINJA}
    environment.filters.clear()
    own = {
        "after": after,
        "before": before,
        "date": date,
        "hash": hashed,
        "number": number,
        "plain_id": lambda text: plain_id(str(text)),
        "reference": References().read,
        "replace": replace,
    }
    environment.filters.update(kept, **{name: _defined(read) for name, read in own.items()})
    tests = {name: environment.tests[name] for name in _TESTS}
    environment.tests.clear()
    environment.tests.update(tests)
    return environment


def _defined(read: Any) -> Any:
    """A filter that says of an empty cell that it is empty, and not that it is unreadable."""

    @wraps(read)
    def checked(text: object, *args: object, **kwargs: object) -> object:
        if isinstance(text, Undefined):
            str(text)
        return read(text, *args, **kwargs)

    return checked


@lru_cache(maxsize=256)
def row_template(text: str) -> RowTemplate:
    """The template of a text, read once: that takes longer than filling it a hundred times.

    Raises: ParameterError: see `RowTemplate`.
    """
    return RowTemplate(text)


class RowTemplate:
    """A template that was read. columns: those it names, sorted. needed: those without which it
    cannot be filled: it neither asks whether they are defined nor has a default for them. filters:
    those it applies."""

    def __init__(self, text: str) -> None:
        """Raises: ParameterError: not a template, or one that asks for more than it may."""
        if len(text) > MAX_TEMPLATE_CHARACTERS:
            raise ParameterError(
                f"template: {len(text)} characters, at most {MAX_TEMPLATE_CHARACTERS}"
            )
        environment = _environment()
        try:
            parsed = environment.parse(text)
            self.columns = tuple(sorted(_columns(parsed, text)))
            self.needed = _needed(parsed)
            self.filters = frozenset(one.name for one in parsed.find_all(nodes.Filter))
            # Before it is compiled, which folds constants: a list in them would be seen no more.
            _check_calls(parsed, environment)
            self._template = environment.from_string(parsed)
        except (SyntaxError, RecursionError) as error:
            raise ParameterError("template: nested too deep; say it in fewer steps") from error
        except (TemplateError, ValueError) as error:
            raise ParameterError(f"template: {error}{_odd_name(text)}") from error

    def fill(self, cells: Mapping[str, str | None]) -> str:
        """The text for a row; an empty cell is undefined, so `default` works on it.

        Raises: Unusable: "cell-empty", "list-of-objects" or "template-failed".
        """
        known = {
            name: _Unreadable() if isinstance(text, ListOfObjects) else text
            for name in self.columns
            if (text := cells.get(name))
        }
        try:
            return self._template.render({**known, ROW: known})
        except Unusable:
            raise
        except UndefinedError as error:
            raise Unusable("cell-empty") from error
        except Exception as error:
            # Whatever a filter makes of a value, it is this row's fault and ends no import.
            raise Unusable("template-failed") from error


def _odd_name(text: str) -> str:
    """How the first column whose name is none of jinja2 is reached; empty where there is none."""
    for shown in _SHOWN.findall(text):
        name = shown.strip("- \t\r\n")
        if not name.isidentifier() and any(map(str.isalpha, name)) and " if " not in name:
            return f"; a column called {name} is row['{name}']"
    return ""


def _columns(parsed: nodes.Template, text: str) -> set[str]:
    found: set[str] = set()
    bare = 0
    for node in parsed.find_all(nodes.Node):
        if not isinstance(node, _ALLOWED):
            raise ParameterError(
                f"template, line {node.lineno}: {type(node).__name__.lower()} is not allowed; "
                "expected columns as {{ name }} or {{ row['any name'] }}, {% if %}, comparisons, "
                f"and the filters {', '.join((*_OF_JINJA, *_OWN))}{_odd_name(text)}"
            )
        if isinstance(node, nodes.Getitem):
            found.add(_of_row(node))
            bare -= 1
        elif isinstance(node, nodes.Name) and node.name == ROW:
            bare += 1
        elif isinstance(node, nodes.Name):
            if node.name in _TAKEN:
                raise ParameterError(
                    f"template: {node.name} means something else; write row['{node.name}']"
                )
            found.add(node.name)
    if bare:
        raise ParameterError("template: expected row['a column'], got row alone")
    return found


def _needed(node: nodes.Node) -> frozenset[str]:
    """The columns without which a part of a template cannot be filled, whatever the others hold."""
    if isinstance(node, nodes.Name):
        return frozenset() if node.name == ROW else frozenset({node.name})
    if isinstance(node, nodes.Getitem):
        return frozenset({_of_row(node)})
    if isinstance(node, nodes.If):
        rest: nodes.Node = nodes.Template([*node.else_])
        for branch in reversed(node.elif_):
            rest = nodes.If(branch.test, branch.body, [], [rest])
        return _needed(node.test) | (_needed(nodes.Template([*node.body])) & _needed(rest))
    if isinstance(node, nodes.CondExpr):
        other = frozenset() if node.expr2 is None else _needed(node.expr2)
        return _needed(node.test) | (_needed(node.expr1) & other)
    if isinstance(node, nodes.And | nodes.Or):
        # What stands on the right is looked at only if the left does not decide.
        return _needed(node.left)
    if isinstance(node, nodes.Filter | nodes.Test) and node.name in _GUARDS:
        guarded = node.node
        if guarded is None or isinstance(guarded, nodes.Name | nodes.Getitem):
            return frozenset()
        return _needed(guarded)
    return frozenset().union(*map(_needed, node.iter_child_nodes()))


def _check_calls(parsed: nodes.Template, environment: Environment) -> None:
    """Raises: ParameterError: arguments that a filter or test does not take, or a list is shown."""
    compared = {id(one.expr) for one in parsed.find_all(nodes.Operand) if one.op in _MEMBERSHIP}
    for node in parsed.find_all((nodes.Filter, nodes.Test)):
        is_filter = isinstance(node, nodes.Filter)
        what = "filter" if is_filter else "test"
        known: Mapping[str, Any] = environment.filters if is_filter else environment.tests
        if node.name not in known:
            # jinja2 says so itself.
            continue
        named = {str(one.key): one.value for one in node.kwargs}
        try:
            if node.dyn_args or node.dyn_kwargs or len(named) < len(node.kwargs):
                raise TypeError("stars, or one name twice")
            inspect.signature(known[node.name]).bind(node.node, *node.args, **named)
        except TypeError as error:
            raise ParameterError(
                f"template, line {node.lineno}: the {what} {node.name} does not take these "
                f"arguments: {error}"
            ) from error
        if not is_filter and node.name == "in":
            compared |= set(map(id, node.args))
    for listed in parsed.find_all((nodes.List, nodes.Tuple)):
        if id(listed) not in compared:
            raise ParameterError(
                f"template, line {listed.lineno}: a list stands behind `in` alone; put texts "
                "together as {{ a }}, {{ b }} or {{ a ~ ', ' ~ b }}"
            )


def _of_row(node: nodes.Getitem) -> str:
    column, table = node.arg, node.node
    if (
        isinstance(column, nodes.Const)
        and isinstance(column.value, str)
        and isinstance(table, nodes.Name)
        and table.name == ROW
    ):
        return column.value
    raise ParameterError(
        f"template, line {node.lineno}: brackets stand behind `row` alone and hold a column's name"
    )
