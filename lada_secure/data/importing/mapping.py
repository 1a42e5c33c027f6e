"""The mapping: which columns, constants and templates make a record, as a TOML file says it.

docs/import-data.md has every key. Nothing is guessed here: what the file does not say has the one
meaning that stands beside the field.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from lada_secure.data.importing.templates import RowTemplate
from lada_secure.data.prompts import MAX_CHOICES
from lada_secure.data.unit_ids import MissingLike, Spellings
from lada_secure.errors import ParameterError
from lada_secure.storage.toml_tables import parse_table

FORMAT: Final = "lada-mapping/1"
Kind: TypeAlias = Literal["csv", "parquet", "jsonl", "json", "excel", "dataset", "sql"]


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
                RowTemplate(self.template)
            except ParameterError as error:
                raise ValueError(str(error)) from error
        return self

    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        if self.template is not None:
            return RowTemplate(self.template).columns
        return () if self.column is None else (self.column,)

    def spared(self) -> frozenset[str]:
        """Those of `columns` that it can do without in every row."""
        if self.template is None:
            return frozenset()
        return frozenset(self.columns()) - RowTemplate(self.template).needed


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


class RecordFields(_Frozen):
    """[record]. id: None: made from what the record says, keyed, and stable over imports.
    choices: None: open questions. rationale: an empty one is none."""

    id: TextField | None = None
    unit: UnitField
    question: TextField
    choices: ChoicesField | None = None
    answer: AnswerField
    rationale: TextField | None = None


class SplitSettings(_Frozen):
    """[split]. held_out: the share of units, not of rows, whose records are kept for tests."""

    held_out: float = Field(default=0.0, ge=0.0, lt=1.0)


class Mapping(_Frozen):
    """A whole mapping file."""

    format: Literal["lada-mapping/1"]
    source: SourceSettings = SourceSettings()
    record: RecordFields
    split: SplitSettings = SplitSettings()

    def columns(self) -> frozenset[str]:
        """Every column that an import reads."""
        choices = () if self.record.choices is None else self.record.choices.named()
        named = {name for field in self._fields() for name in field.columns()}
        return frozenset({*self.source.only, *choices, *named})

    def spared(self) -> frozenset[str]:
        """Those of `columns` that may be in no row of a nested source."""
        needed = {name for one in self._fields() for name in set(one.columns()) - one.spared()}
        choices = self.record.choices
        if choices is not None and choices.empty == "refuse":
            needed |= set(choices.named())
        if self.record.rationale is not None:
            needed -= set(self.record.rationale.columns())
        return self.columns() - needed - set(self.source.only)

    def _fields(self) -> Iterator[TextField]:
        record = self.record
        for field in (record.id, record.unit, record.question, record.answer, record.rationale):
            if field is not None:
                yield field


def parse_mapping(raw: bytes, *, where: str) -> Mapping:
    """Parse a mapping. Raises: ParameterError: all that is wrong, a line each."""
    table = parse_table(raw, where=where)
    try:
        return Mapping.model_validate(table)
    except ValidationError as error:
        told = []
        for fault in error.errors(include_url=False, include_input=False):
            place = ".".join(str(part) for part in fault["loc"]) or "the file"
            told.append(f"{where}: {place}: {fault['msg']}")
        raise ParameterError("\n".join(told)) from error
