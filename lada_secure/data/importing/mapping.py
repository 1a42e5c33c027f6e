"""The mapping: which columns, constants and templates make a record, as a TOML file says it.

docs/import-data.md has every key. Nothing is guessed here: what the file does not say has the one
meaning that stands beside the field.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from lada_secure.data.importing.templates import row_template
from lada_secure.data.prompts import MAX_CHOICES
from lada_secure.data.tasks import Kind as TaskKind
from lada_secure.data.tasks import Task, parse_task
from lada_secure.data.unit_ids import MissingLike, Spellings
from lada_secure.data.verification import normalised
from lada_secure.errors import ParameterError
from lada_secure.storage.toml_tables import parse_table, unknown_keys

FORMAT: Final = "lada-mapping/1"
Kind: TypeAlias = Literal["csv", "parquet", "jsonl", "json", "excel", "dataset", "sql"]


_Form = TypeVar("_Form", bound="AnyMapping")


def _known_encoding(name: str) -> str:
    try:
        info = codecs.lookup(name)
    except LookupError as error:
        raise ValueError(f"no encoding {name!r}; as utf-8, cp1252, utf-16") from error
    if not info._is_text_encoding:
        raise ValueError(f"{name!r} is no encoding of text")
    return info.name


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SourceSettings(_Frozen):
    """[source]: how the file is read. What is None is found out and said.

    kind: None: by the file's name. encoding: None: by the byte-order mark, or UTF-8. delimiter:
    None: by the file's name, comma or tab. quote: empty where the file has none. skip_lines: lines
    above the header. sheet: of Excel. split: of a saved dataset. query: of a database. at: path of
    the list of rows in a JSON file, as "entry"; empty: the file is the list. inside: the key of an
    element that holds the row, as "resource". only: keep rows with these values, others are passed
    over and counted.
    """

    kind: Kind | None = None
    encoding: Annotated[str, AfterValidator(_known_encoding)] | None = None
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    quote: str = Field(default='"', max_length=1)
    skip_lines: int = Field(default=0, ge=0, le=1000)
    sheet: str | None = None
    split: str | None = None
    query: str | None = None
    at: str = ""
    inside: str = ""
    only: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _signs_apart(self) -> SourceSettings:
        for name in ("delimiter", "quote"):
            if (getattr(self, name) or "-") in "\r\n":
                raise ValueError(f"{name}: expected a sign within a line, got a line end")
        # The file's name may say the delimiter.
        if self.quote and self.quote in (self.delimiter or ",\t"):
            raise ValueError(f"quote: expected another sign than the delimiter, got {self.quote!r}")
        return self


class TextField(_Frozen):
    """Where a text comes from: exactly one of a column, a constant and a template.

    values: what the source's values mean; one that is not in it makes a reject. strip: take white
    space off both ends. A plain text in the mapping is a column's name.
    """

    column: str | None = None
    constant: str | None = None
    template: str | None = None
    values: dict[str, str] = Field(default_factory=dict)
    strip: bool = False

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"column": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_of_three(self) -> TextField:
        given = [self.column, self.constant, self.template]
        if sum(one is not None for one in given) != 1:
            raise ValueError("expected exactly one of column, constant, template")
        if self.template is not None:
            try:
                row_template(self.template)
            except ParameterError as error:
                raise ValueError(str(error)) from error
        return self

    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        if self.template is not None:
            return row_template(self.template).columns
        return () if self.column is None else (self.column,)

    def spared(self) -> frozenset[str]:
        """Those of `columns` that it can do without in every row."""
        if self.template is None:
            return frozenset()
        return frozenset(self.columns()) - row_template(self.template).needed


class AnswerField(TextField):
    """[record.answer]. stands_as: the choice's text, its letter, or its number from 0 or 1.

    match: "folded" takes the choice that differs by case and white space alone. missing_like:
    "meant" keeps an open answer that is a word for a missing value.
    """

    stands_as: Literal["text", "letter", "number from 0", "number from 1"] = "text"
    match: Literal["exact", "folded"] = "exact"
    missing_like: MissingLike = "refuse"


class UnitField(TextField):
    """[record.unit]: who is protected. spellings, missing_like: as in a site's policy, but that
    "one_person" writes all records of a person under the spelling that came first."""

    spellings: Spellings = "refuse"
    missing_like: MissingLike = "refuse"


class ChoicesField(_Frozen):
    """[record.choices]: one column a choice, one column that holds all of them, or constants.

    separator: between choices in one cell; a choice in double quotes may hold it. json: the cell
    is a JSON list. empty: what an empty choice makes: a reject, or one choice less (a letter or
    number still counts it). count: how many there must be, if always the same.
    """

    columns: tuple[str, ...] = ()
    column: str | None = None
    constant: tuple[str, ...] = ()
    separator: str | None = Field(default=None, min_length=1, max_length=8)
    json_list: bool = Field(default=False, alias="json")
    empty: Literal["refuse", "leave_out"] = "refuse"
    count: int | None = Field(default=None, ge=2, le=MAX_CHOICES)

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, given: Any) -> Any:
        """TOML has lists where the frozen fields are tuples."""
        if isinstance(given, list):
            return {"columns": tuple(given)}
        if not isinstance(given, dict):
            return given
        return {key: tuple(one) if isinstance(one, list) else one for key, one in given.items()}

    @model_validator(mode="after")
    def _one_form(self) -> ChoicesField:
        if sum((bool(self.columns), self.column is not None, bool(self.constant))) != 1:
            raise ValueError("expected exactly one of columns, column, constant")
        if (self.column is not None) != (self.json_list or self.separator is not None):
            raise ValueError("a single column needs a separator or json = true, others have none")
        if self.json_list and self.separator is not None:
            raise ValueError("expected a separator or json = true, got both")
        return self

    def named(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return self.columns if self.column is None else (self.column,)


class QuestionFields(_Frozen):
    """What records and samples of a pool have in common. id: None: made from what the row says, and
    stable over imports. choices: None: open questions."""

    id: TextField | None = None
    question: TextField
    choices: ChoicesField | None = None
    answer: AnswerField

    def fields(self) -> Iterator[TextField]:
        """Those that are given, but for the choices."""
        yield from (one for one in (self.id, self.question, self.answer) if one is not None)


class RecordFields(QuestionFields):
    """[record]. rationale: an empty one is none."""

    unit: UnitField
    rationale: TextField | None = None

    def fields(self) -> Iterator[TextField]:
        """See `QuestionFields`."""
        yield from QuestionFields.fields(self)
        yield self.unit
        if self.rationale is not None:
            yield self.rationale


class SampleFields(QuestionFields):
    """[record] for the pool, which is of nobody. rationale: not read."""

    rationale: TextField | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_nobody(cls, given: Any) -> Any:
        if isinstance(given, dict) and "unit" in given:
            raise ValueError(
                "unit says that rows are about somebody, and a pool is public: every site gets all "
                "of it. Where the rows are public, take unit out, in a copy of the mapping"
            )
        return given


class SplitSettings(_Frozen):
    """[split]. held_out: the share of units, not of rows, whose records are kept for tests."""

    held_out: float = Field(default=0.0, ge=0.0, lt=1.0)


class TaskSettings(_Frozen):
    """[task]: what kind of task the records are, for evaluations; left out: nobody says.

    unknown: of yes_no_unknown, the choice that says so. Of number: tolerance is of the gold
    number, absolute in its unit; unit: what every gold answer must have; units: what one of each is
    in a common one. decimal, thousands: the signs in the source's numbers; records have plain ones.
    decimal None: a point, and a number that may be meant otherwise, as 1.000, makes a reject.
    """

    kind: TaskKind
    unknown: str | None = None
    tolerance: int | float | None = None
    absolute: int | float | None = None
    unit: str | None = Field(default=None, min_length=1)
    units: dict[str, int | float] | None = None
    decimal: Literal[".", ","] | None = None
    thousands: Literal["", ".", ",", "'", "\u2019", " "] = ""

    def task(self) -> Task:
        """As records carry it. Raises: ParameterError: keys of another kind, or no sense."""
        return parse_task(
            self.model_dump(exclude_none=True, exclude={"unit", "decimal", "thousands"})
        )

    @model_validator(mode="after")
    def _of_its_kind(self) -> TaskSettings:
        for name in ("unit", "decimal", "thousands"):
            if getattr(self, name) and self.kind != "number":
                raise ValueError(f"{name} is of kind number alone")
        if self.thousands and self.decimal in (None, self.thousands):
            raise ValueError("thousands needs decimal beside it, which is another sign")
        if self.unit is not None and self.units:
            known = {normalised(name) for name in self.units}
            if normalised(self.unit) not in known:
                raise ValueError(f"unit {self.unit!r} is none of units: {', '.join(self.units)}")
        try:
            self.task()
        except ParameterError as error:
            raise ValueError(str(error)) from error
        return self


class PoolSettings(_Frozen):
    """[pool]: read by imports for the pool alone. licence, source: of every sample; an empty cell
    says nothing."""

    licence: TextField | None = None
    source: TextField | None = None


class AnyMapping(_Frozen):
    """What all mappings have in common."""

    format: Literal["lada-mapping/1"]
    source: SourceSettings = SourceSettings()
    record: QuestionFields
    task: TaskSettings | None = None
    pool: PoolSettings = PoolSettings()
    split: SplitSettings = SplitSettings()

    @model_validator(mode="after")
    def _task_has_its_choices(self) -> AnyMapping:
        if self.task is None:
            return self
        kind, choices = self.task.kind, self.record.choices
        if kind in ("text", "number"):
            if choices is not None:
                raise ValueError(f"task.kind {kind} is of open questions, and record has choices")
            return self
        if choices is None:
            raise ValueError(f"task.kind {kind} needs record.choices")
        if kind != "choice" and not choices.constant:
            raise ValueError(
                f"task.kind {kind} has the same labels in every row; name them as "
                "choices = { constant = [...] }"
            )
        if kind == "yes_no_unknown" and (
            len(choices.constant) != 3 or self.task.unknown not in choices.constant
        ):
            raise ValueError(
                "task.kind yes_no_unknown has 3 choices, of which task.unknown is one; "
                f"record.choices has {len(choices.constant)}"
            )
        return self

    def columns(self) -> frozenset[str]:
        """Every column that an import reads."""
        choices = () if self.record.choices is None else self.record.choices.named()
        named = {name for field in self.fields() for name in field.columns()}
        return frozenset({*self.source.only, *choices, *named})

    def spared(self) -> frozenset[str]:
        """Those of `columns` that may be in no row of a nested source."""
        needed = {name for one in self.fields() for name in set(one.columns()) - one.spared()}
        choices = self.record.choices
        if choices is not None and choices.empty == "refuse":
            needed |= set(choices.named())
        for field in self.may_be_empty():
            needed -= set(field.columns())
        return self.columns() - needed - set(self.source.only)

    def fields(self) -> Iterator[TextField]:
        """All that are read, but for the choices."""
        yield from self.record.fields()

    def may_be_empty(self) -> Iterator[TextField]:
        """Those of `fields` that say nothing where their cell is empty."""
        yield from ()


class Mapping(AnyMapping):
    """A whole mapping file, for records."""

    record: RecordFields

    def may_be_empty(self) -> Iterator[TextField]:
        """See `AnyMapping`."""
        if self.record.rationale is not None:
            yield self.record.rationale


class PoolMapping(AnyMapping):
    """A whole mapping file, for the public pool: reasoning and split are not read."""

    record: SampleFields

    def fields(self) -> Iterator[TextField]:
        """See `AnyMapping`."""
        yield from self.record.fields()
        yield from self.may_be_empty()

    def may_be_empty(self) -> Iterator[TextField]:
        """See `AnyMapping`."""
        for field in (self.pool.licence, self.pool.source):
            if field is not None:
                yield field


def parse_mapping(raw: bytes, *, where: str) -> Mapping:
    """Parse a mapping for records. Raises: ParameterError: all that is wrong, a line each."""
    return _parsed(Mapping, raw, where)


def parse_pool_mapping(raw: bytes, *, where: str) -> PoolMapping:
    """Parse a mapping for the pool. Raises: ParameterError: all that is wrong, a line each."""
    return _parsed(PoolMapping, raw, where)


def _parsed(form: type[_Form], raw: bytes, where: str) -> _Form:
    table = parse_table(raw, where=where)
    try:
        return form.model_validate(table)
    except ValidationError as error:
        told = []
        for fault in error.errors(include_url=False, include_input=False):
            *place, last = map(str, fault["loc"] or ("the file",))
            if fault["type"] == "extra_forbidden":
                told.append(f"{where}: {unknown_keys([last], place, form)}")
            else:
                told.append(f"{where}: {'.'.join((*place, last))}: {fault['msg']}")
        raise ParameterError("\n".join(told)) from error
