# ruff: noqa: E501
"""Awkward files, what becomes of each, and where such files were met; docs/import-data.md has all.

A case is imported right (`records`), has rows rejected by line, reason and column (`rejects`), or
is refused as a whole (`refused`, a part of the message, which names the line).
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq

HEAD = "id,unit,question,a,b,answer\n"
ONE = "1,p1,Is it flu?,yes,no,yes\n"
TWO = "2,p2,Is it gout?,yes,no,no\n"
GOOD = HEAD + ONE + TWO
CHOICES = {"columns": ["a", "b"]}
BASE: Mapping[str, Any] = {
    "id": "id",
    "unit": "unit",
    "question": "question",
    "choices": CHOICES,
    "answer": "answer",
}
OPEN = {"choices": None}
BOTH = (("1", "yes"), ("2", "no"))


@dataclass(frozen=True)
class Awkward:
    """One file. record: what its mapping says otherwise than `BASE`; None takes a key away.

    records: id and answer of each record in order, or id and any fields.
    """

    name: str
    content: bytes
    file: str = "cases.csv"
    source: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    records: tuple[Any, ...] = ()
    rejects: tuple[tuple[int, str, str], ...] = ()
    refused: str = ""

    @property
    def met(self) -> str:
        """A link to a public report of such a file in another tool; empty where there is none."""
        tool, place = MET.get(self.name, ("", ""))
        return f"[{tool}](https://github.com/{place})" if tool else ""


def _csv(name: str, text: str, *records: Any, encoding: str = "utf-8", **more: Any) -> Awkward:
    return Awkward(name=name, content=text.encode(encoding), records=records, **more)


def _lines(name: str, *rows: Any, **more: Any) -> Awkward:
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return Awkward(
        name=name, file="cases.jsonl", content=("\n".join(texts) + "\n").encode(), **more
    )


def _row(**changes: Any) -> dict[str, Any]:
    row = {
        "id": "1",
        "unit": "p1",
        "question": "Is it flu?",
        "a": "yes",
        "b": "no",
        "answer": "yes",
    }
    return {**row, **changes}


FHIR = {
    "unit": "subject",
    "question": "note",
    "choices": None,
    "answer": {"template": "{{ row['code.text'] | default(row['code.coding.0.display']) }}"},
}


def _condition(record_id: str, code: dict[str, Any]) -> dict[str, Any]:
    return {
        "resourceType": "Condition",
        "id": record_id,
        "subject": f"Patient/{record_id}",
        "note": "What is it?",
        "code": code,
    }


def _workbook(name: str, *rows: tuple[object, ...], **more: Any) -> Awkward:
    book, written = openpyxl.Workbook(), io.BytesIO()
    for row in (tuple(HEAD.strip().split(",")), *rows):
        book.active.append(row)
    book.create_chartsheet("chart").add_chart(openpyxl.chart.BarChart())
    book.save(written)
    return Awkward(name=name, file="cases.xlsx", content=written.getvalue(), **more)


def _parquet(name: str, column: str, second: pa.Array, **more: Any) -> Awkward:
    """Two good rows, but for what stands in the second one's cell of a column."""
    first, written = _row(), io.BytesIO()
    columns = {one: pa.array([text, text]) for one, text in first.items()}
    columns |= {"id": pa.array(["1", "2"]), column: second}
    pq.write_table(pa.table(columns), written)
    return Awkward(name=name, file="cases.parquet", content=written.getvalue(), **more)


def _second(text: str) -> str:
    return HEAD + ONE + text + "\n"


FIRST = (("1", "yes"),)

# Where such a file was reported for another tool.
MET: Mapping[str, tuple[str, str]] = {
    "a UTF-8 byte-order mark": ("pandas", "pandas-dev/pandas/issues/13497"),
    "UTF-16 with its mark, as Excel's Unicode text": ("doccano", "doccano/doccano/issues/1870"),
    "one row in cp1252 in a file of UTF-8": (
        "tensorflow_chatbot",
        "llSourcell/tensorflow_chatbot/issues/17",
    ),
    "CR alone, as of old Macs": ("PapaParse", "mholt/PapaParse/issues/43"),
    "a line break in a quoted cell": (
        "fast-cpp-csv-parser",
        "ben-strasser/fast-cpp-csv-parser/issues/57",
    ),
    "a semicolon where commas are expected": ("SheetJS", "SheetJS/sheetjs/issues/2239"),
    "a bare delimiter in a text": ("ludwig", "ludwig-ai/ludwig/issues/201"),
    "a quote that never closes": ("csv of Elixir", "beatrichartz/csv/issues/13"),
    "one column name twice": ("pandas", "pandas-dev/pandas/issues/19383"),
    "NaN as an open answer": ("pandas", "pandas-dev/pandas/issues/24681"),
    "NA that means sodium": ("pandas", "pandas-dev/pandas/issues/10647"),
    "one person in ten spellings": ("Calibre-Web", "new-usemame/Calibre-Web-NextGen/pull/416"),
    "an id that a spreadsheet cut": ("orangelight", "pulibrary/orangelight/issues/2695"),
    "leading zeros": ("csvkit", "wireservice/csvkit/issues/977"),
    "a number from 1, where 0 occurs": ("MedMCQA", "medmcqa/medmcqa/issues/9"),
    "a Python list where JSON is expected": ("WDL", "openwdl/wdl/issues/671"),
    "NUL": ("OpenRefine", "OpenRefine/OpenRefine/issues/653"),
    "10 MB in a cell": ("csvkit", "wireservice/csvkit/issues/812"),
    "control tokens of models": ("transformers", "huggingface/transformers/issues/29279"),
    "a decimal comma": ("csvkit", "wireservice/csvkit/issues/876"),
    "03/04 as a date": ("pandas", "pandas-dev/pandas/issues/19402"),
    "one key twice": ("gnatcoll", "AdaCore/gnatcoll-core/issues/3"),
    "NaN as a number": ("conbench", "conbench/conbench/issues/1163"),
    "half of a character": ("json_reindent", "ThomasKliszowski/json_reindent/issues/12"),
    "numbers with all their digits": ("pandas", "pandas-dev/pandas/issues/33766"),
    "#VALUE! as a question": ("ExcelDataReader", "ExcelDataReader/ExcelDataReader/issues/329"),
    "#WERT! as a choice": ("readxl", "tidyverse/readxl/issues/62"),
    "two ways to one column": ("Data API", "stargate/data-api/issues/1848"),
    "two JSON lists in one file": ("Spice", "spiceai/spiceai/issues/12786"),
    "Excel with a sheet that is a chart": ("pandas", "pandas-dev/pandas/issues/41448"),
    "a formula without its result": ("openpyxl", "felipe-prenholato/openpyxl/issues/69"),
    "a text in Parquet that is no UTF-8": ("Daft", "Eventual-Inc/Daft/issues/2845"),
    "a day behind the year 9999": (
        "google-cloud-python",
        "googleapis/google-cloud-python/issues/10468",
    ),
    "bytes of a fixed size as a text": ("DuckDB", "duckdb/duckdb/issues/1617"),
}

CASES: tuple[Awkward, ...] = (
    # Encodings.
    _csv("a UTF-8 byte-order mark", GOOD, *BOTH, encoding="utf-8-sig"),
    Awkward("UTF-16 with its mark, as Excel's Unicode text", codecs.BOM_UTF16_LE + GOOD.replace(",", "\t").encode("utf-16-le"), source={"delimiter": "\t"}, records=BOTH),
    Awkward("UTF-16 without its mark", GOOD.encode("utf-16-le"), refused="cases.csv:1: every second byte is zero"),
    Awkward("UTF-32 with its mark", codecs.BOM_UTF32_LE + GOOD.encode("utf-32-le"), records=BOTH),
    Awkward("a mark that contradicts the mapping", codecs.BOM_UTF16_LE + GOOD.encode("utf-16-le"), source={"encoding": "cp1252"}, refused="cases.csv:1: the byte-order mark says utf-16"),
    Awkward("one row in cp1252 in a file of UTF-8", _second("2,p2,Caf\u00e9?,yes,no,no").encode("cp1252"), records=FIRST, rejects=((3, "not-in-encoding", "question"),)),
    _csv("cp1252 that the mapping names", HEAD + "1,p1,Caf\u00e9 \u20ac5?,yes,no,yes\n", {"record_id": "1", "question": "Caf\u00e9 \u20ac5?"}, encoding="cp1252", source={"encoding": "cp1252"}),
    _csv("cp1252 read as Latin-1", HEAD + ONE + "2,p2,Cost \u20ac5?,yes,no,no\n", *FIRST, encoding="cp1252", source={"encoding": "latin-1"}, rejects=((3, "control-character", "question"),)),
    _csv("a header that is no UTF-8", "id,unit,question,a,b,answer,caf\u00e9\n1,p1,Q,yes,no,yes,x\n", encoding="latin-1", refused="cases.csv:1: the header is not in this encoding"),
    Awkward("UTF-16 that ends inside a character", codecs.BOM_UTF16_LE + GOOD.encode("utf-16-le")[:-1], refused="is not utf-16"),
    # Line ends, delimiters, quotes.
    _csv("CR LF", GOOD.replace("\n", "\r\n"), *BOTH),
    _csv("CR alone, as of old Macs", GOOD.replace("\n", "\r"), *BOTH),
    _csv("both line ends in one file", HEAD + ONE.replace("\n", "\r\n") + TWO, *BOTH),
    _csv("no line end at the end", GOOD.rstrip("\n"), *BOTH),
    _csv("blank lines between rows", HEAD + "\n" + ONE + "\n\n" + TWO + "\n", *BOTH),
    _csv("a line break in a quoted cell", HEAD + '1,p1,"Is it\nflu?",yes,no,yes\n' + TWO[:-1] + "x\n", {"record_id": "1", "question": "Is it\nflu?"}, rejects=((4, "answer-not-among-choices", "answer"),)),
    _csv("a semicolon where commas are expected", GOOD.replace(",", ";"), refused="say delimiter = ';'"),
    _csv("a semicolon that the mapping names", GOOD.replace(",", ";"), *BOTH, source={"delimiter": ";"}),
    Awkward("a file of tabs called .tsv", GOOD.replace(",", "\t").encode(), file="cases.tsv", records=BOTH),
    _csv("a bare delimiter in a text", _second("2,p2,Is it gout, or not?,yes,no,no"), *FIRST, rejects=((3, "too-many-columns", ""),)),
    _csv("a row that was cut", _second("2,p2,Is it"), *FIRST, rejects=((3, "too-few-columns", ""),)),
    _csv("quotes doubled inside a cell", HEAD + '1,p1,"Is it ""flu""?",yes,no,yes\n', {"record_id": "1", "question": 'Is it "flu"?'}),
    _csv("a quote that never closes", _second('2,p2,"Is it gout?,yes,no,no'), refused="cases.csv:3: the quotes are broken"),
    _csv("text behind a closing quote", _second('2,p2,"Is it" gout?,yes,no,no'), refused="cases.csv:3: the quotes are broken"),
    _csv("inches, where quotes mean nothing", HEAD + '1,p1,A 5" cut?,yes,no,yes\n', {"record_id": "1", "question": 'A 5" cut?'}, source={"quote": ""}),
    # Headers.
    _csv("a column that is not there", GOOD.replace("answer", "anwser", 1), refused="has no column 'answer', which the mapping names; near it are 'anwser'"),
    _csv("one column name twice", GOOD.replace("id,unit", "id,id", 1), refused="cases.csv:1: 1 column name(s) stand twice"),
    _csv("the header again in the middle", HEAD + ONE + HEAD + TWO, *BOTH, rejects=((3, "header-again", ""),)),
    _csv("the header again, with a byte-order mark", HEAD + ONE + "\ufeff" + HEAD + TWO, *BOTH, rejects=((3, "header-again", ""),)),
    _csv("the header again, with spaces", HEAD + ONE + HEAD.replace("unit", " unit ") + TWO, *BOTH, rejects=((3, "header-again", ""),)),
    _csv("a title above the header", "Export of 2026\n" + GOOD, *BOTH, source={"skip_lines": 1}),
    Awkward("an empty file", b"", refused="holds nothing; expected at least one row"),
    Awkward("a header and no row", HEAD.encode(), refused="no record to train on in 0 rows"),
    # Missing values.
    _csv("an empty answer", _second("2,p2,Is it gout?,yes,no,"), *FIRST, rejects=((3, "cell-empty", "answer"),)),
    _csv("NaN as an open answer", _second("2,p2,What is it?,,,NaN"), *FIRST, record=OPEN, rejects=((3, "answer-looks-missing", "answer"),)),
    _csv("NA that means sodium", HEAD + "1,p1,Which ion?,NA,K,NA\n", {"record_id": "1", "answer": "NA"}),
    _csv("None that is meant", HEAD + "1,p1,Which drug?,,,none\n", ("1", "none"), record={"choices": None, "answer": {"column": "answer", "missing_like": "meant"}}),
    _csv("#REF! as the unit", _second("2,#REF!,Is it gout?,yes,no,no"), *FIRST, rejects=((3, "unit-looks-missing", "unit"),)),
    _csv("spaces alone as a question", _second("2,p2,   ,yes,no,no"), *FIRST, rejects=((3, "cell-empty", "question"),)),
    _csv("#VALUE! as a question", _second("2,p2,#VALUE!,yes,no,no"), *FIRST, rejects=((3, "cell-looks-missing", "question"),)),
    _csv("#WERT! as a choice", _second("2,p2,Is it gout?,yes,#WERT!,yes"), *FIRST, rejects=((3, "cell-looks-missing", "b"),)),
    _csv("#N/A as the record id", _second("#N/A,p2,Is it gout?,yes,no,no"), *FIRST, rejects=((3, "cell-looks-missing", "id"),)),
    _csv("nan as a rationale", HEAD.replace("answer", "answer,why") + ONE.replace("\n", ",It burns\n") + TWO.replace("\n", ",nan\n"), *FIRST, record={"rationale": "why"}, rejects=((3, "cell-looks-missing", "why"),)),
    _csv("an empty cell in a template", _second("2,p2,,yes,no,no"), *FIRST, record={"question": {"template": "{{ question }} Say."}}, rejects=((3, "cell-empty", "question"),)),
    # Units.
    _csv("one person in ten spellings", HEAD + "".join(f"{n},{unit},Q{n}?,yes,no,yes\n" for n, unit in enumerate(("M\u00fcller-17", "Mu\u0308ller-17", "M\u00fcller-17 ", "\u00a0M\u00fcller-17", "M\u00dcLLER-17", "M\u00fcller\u201117", "M\u00fcller-17\u200b", "\ufeffM\u00fcller-17", "m\u00fcller-17", "M\u00fcller\u221217"))), ("0", "yes"), rejects=tuple((n + 2, "unit-spelled-otherwise", "unit") for n in range(1, 10))),
    _csv("two spellings that the mapping takes as one", HEAD + ONE + "2,P1 ,Is it gout?,yes,no,no\n", {"record_id": "1", "unit": "p1"}, {"record_id": "2", "unit": "p1"}, record={"unit": {"column": "unit", "spellings": "one_person"}}),
    _lines("Infinity as the unit", _row(), _row(id="2", unit=float("inf")), records=FIRST, rejects=((2, "unit-looks-missing", "unit"),)),
    _csv("an id that a spreadsheet cut", _second("2,1.23457E+15,Is it gout?,yes,no,no"), *FIRST, rejects=((3, "unit-in-exponent-form", "unit"),)),
    _csv("leading zeros", HEAD + "1,007,Q?,yes,no,yes\n2,7,Q2?,yes,no,yes\n", {"record_id": "1", "unit": "007"}, {"record_id": "2", "unit": "7"}),
    _csv("one id twice", _second("1,p2,Is it gout?,yes,no,no"), *FIRST, rejects=((3, "row-repeated", "id"),)),
    _csv("one row twice, without ids", GOOD + TWO, {"answer": "yes"}, {"answer": "no"}, record={"id": None}, rejects=((4, "row-repeated", ""),)),
    # Answers and choices.
    _csv("an answer in capitals", _second("2,p2,Is it gout?,yes,no,No"), *FIRST, rejects=((3, "answer-differs-by-case-or-space", "answer"),)),
    _csv("an answer in capitals, with the fix", _second("2,p2,Is it gout?,yes,no,No "), *BOTH, record={"answer": {"column": "answer", "match": "folded"}}),
    _csv("an answer that is no choice", _second("2,p2,Is it gout?,yes,no,maybe"), *FIRST, rejects=((3, "answer-not-among-choices", "answer"),)),
    _csv("a letter for the answer", GOOD.replace(",yes\n", ",A\n").replace(",no\n", ",b\n"), *BOTH, record={"answer": {"column": "answer", "stands_as": "letter"}}),
    _csv("a letter beyond the choices", HEAD + "1,p1,Is it flu?,yes,no,A\n2,p2,Is it gout?,yes,no,C\n", *FIRST, record={"answer": {"column": "answer", "stands_as": "letter"}}, rejects=((3, "answer-no-place", "answer"),)),
    _csv("a number from 1, where 0 occurs", HEAD + "1,p1,Is it flu?,yes,no,1\n2,p2,Is it gout?,yes,no,0\n", *FIRST, record={"answer": {"column": "answer", "stands_as": "number from 1"}}, rejects=((3, "answer-no-place", "answer"),)),
    _csv("choices in one cell, with the separator inside", 'id,unit,question,options,answer\n1,p1,Q?,"yes; ""no; never""","no; never"\n', ("1", "no; never"), record={"choices": {"column": "options", "separator": ";"}}),
    _csv("choices in one cell, by a separator of two signs", 'id,unit,question,options,answer\n1,p1,Q?,"yes; ""no; never""","no; never"\n', ("1", "no; never"), record={"choices": {"column": "options", "separator": "; "}}),
    _csv("choices in one cell, one in each line", 'id,unit,question,options,answer\n1,p1,Q?,"yes\n""no"", or never",yes\n2,p2,Q?,"yes\nno",no\n', ("2", "no"), record={"choices": {"column": "options", "separator": "\n"}}, rejects=((2, "choices-unreadable", "options"),)),
    _csv("choices in one cell, one too many", 'id,unit,question,options,answer\n1,p1,Q?,yes;no,yes\n2,p2,Q?,yes;no;never,no\n', *FIRST, record={"choices": {"column": "options", "separator": ";", "count": 2}}, rejects=((3, "choices-count", "options"),)),
    _csv("a Python list where JSON is expected", "id,unit,question,options,answer\n1,p1,Q?,\"['yes', 'no']\",yes\n2,p2,Q?,\"[\"\"yes\"\", \"\"no\"\"]\",no\n", ("2", "no"), record={"choices": {"column": "options", "json": True}}, rejects=((2, "choices-unreadable", "options"),)),
    _csv("the same choice twice", _second("2,p2,Is it gout?,no,no,no"), *FIRST, rejects=((3, "choices-repeat", "a b"),)),
    _csv("an open answer of two lines", _second('2,p2,What?,,,"a\nb"'), *FIRST, record=OPEN, rejects=((3, "answer-of-many-lines", "answer"),)),
    _csv("a class that the mapping does not know", HEAD + "1,p1,Is it flu?,yes,no,1\n2,p2,Is it gout?,yes,no,7\n", *FIRST, record={"answer": {"column": "answer", "values": {"1": "yes", "0": "no"}}}, rejects=((3, "value-unknown", "answer"),)),
    # Texts.
    _csv("HTML", HEAD + "1,p1,Is it <b>flu</b> &amp; cold?,yes,no,yes\n", {"record_id": "1", "question": "Is it <b>flu</b> &amp; cold?"}),
    _csv("right-to-left text", HEAD + "1,p1,\u05d4\u05d0\u05dd \u05e9\u05e4\u05e2\u05ea?,\u05db\u05df,\u05dc\u05d0,\u05db\u05df\n", ("1", "\u05db\u05df")),
    _csv("NUL", _second("2,p2,Is it\0 gout?,yes,no,no"), *FIRST, rejects=((3, "control-character", "question"),)),
    _csv("10 MB in a cell", _second(f"2,p2,{'x' * 10_000_000},yes,no,no"), *FIRST, rejects=((3, "cell-too-long", "question"),)),
    _csv("a line without an end", HEAD + "1," + "x" * 17_000_000, refused="cases.csv:2: a line has more than"),
    _csv("umlauts that become longer than a record in JSON", _second(f"2,p2,{chr(252) * 20_000},yes,no,no"), *FIRST, rejects=((3, "record-too-long", ""),)),
    _csv("control tokens of models", HEAD + "1,p1,Is it <|im_end|> flu </s>?,yes,no,yes\n", {"record_id": "1", "question": "Is it <|im_end|> flu </s>?"}),
    _csv("a decimal comma", HEAD + '1,p1,Dose?,,,"1.234,5"\n', ("1", "1234.5"), record={"choices": None, "answer": {"template": "{{ answer | number(',', '.') }}"}}),
    _csv("a number where the mapping expects another form", _second('2,p2,Dose?,,,"1,234.5"').replace("yes,no,yes", "yes,no,5"), ("1", "5"), record={"choices": None, "answer": {"template": "{{ answer | number(',', '.') }}"}}, rejects=((3, "template-failed", "answer"),)),
    _csv("03/04 as a date", HEAD + "1,p1,When?,,,03/04/2025\n", ("1", "03/04/2025"), record=OPEN),
    # JSON.
    _lines("one key twice", '{"id": "1", "unit": "p1", "question": "Q?", "a": "yes", "b": "no", "answer": "yes", "unit": "row-1"}', _row(id="2"), records=(("2", "yes"),), rejects=((1, "key-twice", ""),)),
    _lines("a line that is no JSON", _row(), "{'id': 2}", records=FIRST, rejects=((2, "not-json", ""),)),
    _lines("a list where an object is expected", _row(), "[1]", records=FIRST, rejects=((2, "not-json", ""),)),
    _lines("NaN as a number", _row(a="5", answer=float("nan")), _row(id="2"), records=(("2", "yes"),), rejects=((1, "answer-not-among-choices", "answer"),)),
    _lines("half of a character", _row(), _row(id="2", question="\ud83d"), records=FIRST, rejects=((2, "not-in-encoding", "question"),)),
    _lines("numbers with all their digits", '{"id": 12345678901234567890123, "unit": "p1", "question": "Dose?", "answer": 1.50}', record=OPEN, records=(("12345678901234567890123", "1.50"),)),
    _lines("a nesting of thousands", _row(), "[" * 50_000, records=FIRST, rejects=((2, "not-json", ""),)),
    _lines("two ways to one column", {"id": "1", "patient.id": "p1", "patient": {"id": "p2"}, "question": "Q?", "answer": "yes"}, {"id": "2", "patient": {"id": "p2"}, "question": "Q?", "answer": "yes"}, record={"choices": None, "unit": "patient.id"}, records=(("2", "yes"),), rejects=((1, "key-twice", "patient.id"),)),
    Awkward("one key twice in an element of a list", b"[" + json.dumps(_row()).encode() + b',\n{"id": "2", "id": "3"}]', file="cases.json", records=FIRST, rejects=((2, "key-twice", ""),)),
    Awkward("two JSON lists in one file", json.dumps([_row()]).encode() + b"\n" + json.dumps([_row(id="2")]).encode(), file="cases.json", refused="cases.json:2: something stands behind the end"),
    Awkward("the key of the list twice", b'{"rows": ' + json.dumps([_row()]).encode() + b',\n"rows": []}', file="cases.json", source={"at": "rows"}, refused="cases.json:2: the key 'rows' stands here again"),
    Awkward("a JSON object that breaks off behind its list", b'{"rows": ' + json.dumps([_row()]).encode() + b",", file="cases.json", source={"at": "rows"}, refused="cases.json:1: this is not JSON"),
    Awkward("a JSON list that breaks off", json.dumps([_row(), _row(id="2")], indent=1)[:-30].encode(), file="cases.json", refused="this is not JSON"),
    Awkward("a JSON object around the list", json.dumps({"total": 2, "rows": [_row(), _row(id="2", answer="no")]}).encode(), file="cases.json", source={"at": "rows"}, records=BOTH),
    Awkward("a JSON list that is somewhere else", json.dumps({"rows": [_row()]}).encode(), file="cases.json", refused="cases.json:1: expected a list"),
    # FHIR, as the ready mapping reads it.
    _lines("conditions behind a thousand other resources", *({"resourceType": "Patient", "id": f"q{n}"} for n in range(1001)), _condition("1", {"text": "flu"}), record=FHIR, source={"only": {"resourceType": "Condition"}}, records=(("1", "flu"),)),
    _lines("conditions with a text and no code", _condition("1", {"text": "flu"}), _condition("2", {"text": "gout"}), record=FHIR, records=(("1", "flu"), ("2", "gout"))),
    # Typed cells.
    _workbook("Excel with a sheet that is a chart", ("1", "p1", "Is it flu?", "yes", "no", "yes"), records=FIRST),
    _workbook("a formula without its result", ("1", "p1", "Is it flu?", "yes", "no", "yes"), ("2", "p2", "Is it gout?", "yes", "no", "=E3"), refused="cases.xlsx:3: column 'answer' is a formula"),
    _parquet("a text in Parquet that is no UTF-8", "question", pa.array([b"Is it flu?", b"Is it gout\xff?"]).view(pa.string()), records=FIRST, rejects=((2, "not-in-encoding", "question"),)),
    _parquet("a day behind the year 9999", "question", pa.array([0, 10**7], pa.int32()).view(pa.date32()), records=({"question": "1970-01-01"},), rejects=((2, "value-unreadable", "question"),)),
    _parquet("bytes of a fixed size as a text", "unit", pa.array([b"p1", b"p2"], pa.binary(2)), refused="no record to train on"),
    _parquet("bytes by a dictionary as a text", "unit", pa.array([b"p1", b"p2"]).dictionary_encode(), refused="no record to train on"),
    _parquet("a list of bytes as a text", "unit", pa.array([[b"p1"], [b"p2"]]), refused="no record to train on"),
)  # fmt: skip
