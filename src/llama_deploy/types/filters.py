"""The one grammar that chooses tasks: lists, bulk actions and the command line all read it here.

    state:failed,canceled service:writer -error:LD502 origin:child:* paused:yes hops>3 created>2026-01-01 ended<1h

Parsing is pure: it knows neither the time of day nor any task. What an age means now, and which rows fit, is the
control plane's and the store's business.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, cast

from llama_deploy.errors import InvalidRequestError
from llama_deploy.types.state import FINAL_STATES, TaskState

FILTER_CHARACTERS_MAX = 4_000
"""The longest filter, in characters."""
VALUES_MAX = 100
"""The most values that one filter may hold."""

Kind = Literal["state", "text", "flag", "number", "time", "age"]
Operator = Literal[":", "<", "<=", ">", ">="]
Value = str | float | datetime | timedelta

FIELDS: dict[str, Kind] = {
    "state": "state",
    "service": "text",
    "session": "text",
    "id": "text",
    "error": "text",
    "origin": "text",
    "from": "text",
    "paused": "flag",
    "dead": "flag",
    "hops": "number",
    "created": "time",
    "updated": "time",
    "ended": "time",
    "age": "age",
}
"""What can be asked about a task. `dead`: a step of it was given up and not sent again. `from` is the id of the task
that it was made from, in whatever way; `age` is the time since it was created."""

UNFINISHED = "unfinished"
ENDED = "ended"
_STATES = {state.value: (state.value,) for state in TaskState} | {
    UNFINISHED: tuple(state.value for state in TaskState if state not in FINAL_STATES),
    ENDED: tuple(state.value for state in TaskState if state in FINAL_STATES),
}
_UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_AGE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([smhd])")
_NUMBER = re.compile(r"\d{1,9}")
_TERM = re.compile(r"(-?)([^\s:<>,\"]*)(<=|>=|[:<>])?")
_VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"(\*?)|([^\s,"]+)')
_PLAIN = re.compile(r'[^\s,"*\\]+')
_OPENS_AS_TERM = re.compile(rf"-(?:{'|'.join(FIELDS)})[:<>]")


@dataclass(frozen=True, slots=True)
class Term:
    """One condition of a filter. `values` are alternatives; comparisons have one.

    A time is compared with a moment (`datetime`), or with how long ago it was (`timedelta`): `ended<1h` is what ended
    less than an hour ago.
    """

    field: str
    operator: Operator
    values: tuple[Value, ...]
    prefix: bool = False
    """The values are what the text begins with; an empty one means that there is any text at all."""
    negated: bool = False

    def __str__(self) -> str:
        values = ",".join(_shown(value, prefix=self.prefix) for value in self.values)
        return f"{'-' if self.negated else ''}{self.field}{self.operator}{values}"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which tasks are meant: those that fit every term. Its text, parsed, is the same filter."""

    terms: tuple[Term, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, self.terms))


def states_of(term: Term) -> tuple[str, ...]:
    """The states that a term about `state` names, with `unfinished` and `ended` spelt out."""
    named = [state for value in term.values for state in _STATES[str(value)]]
    return tuple(dict.fromkeys(named))


def opens_as_term(argument: str) -> bool:
    """Whether a word of a command line is a negated term, and no option."""
    return _OPENS_AS_TERM.match(argument) is not None


def parse_filter(text: str) -> Filter:
    """The filter that a text means; an empty text means every task.

    Raises `InvalidRequestError` that names the position (`details["position"]`, from 1) and what is possible there.
    """
    if len(text) > FILTER_CHARACTERS_MAX:
        raise InvalidRequestError(
            f"the filter has {len(text)} characters", why=f"at most {FILTER_CHARACTERS_MAX} are read"
        )
    terms: list[Term] = []
    position, count = 0, 0
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        if position == len(text):
            return Filter(tuple(terms))
        term, position = _term(text, position)
        count += len(term.values)
        if count > VALUES_MAX:
            raise _wrong(text, position, f"it has more than {VALUES_MAX} values", "ask in several filters")
        terms.append(term)


def _term(text: str, start: int) -> tuple[Term, int]:
    """The term that begins at `start`, and where it ends."""
    found = _TERM.match(text, start)
    assert found is not None, "every part of it may be empty"
    name, operator = found[2], cast("Operator | None", found[3])
    if operator is None:
        word = name.lower()
        hint = f"state:{word}" if word in _STATES else f"{name}:…, or id:{name or '…'}"
        raise _wrong(text, start, f"{name or text[start]!r} is no field:value", f"did you mean {hint}?")
    kind = FIELDS.get(name)
    if kind is None:
        raise _wrong(text, found.start(2), f"there is no field {name!r}", _nearest(name, FIELDS, "fields"))
    values: list[Value] = []
    prefixes: list[bool] = []
    position = found.end()
    while True:
        value, prefix, position = _value(text, position, name, kind, operator)
        values.append(value)
        prefixes.append(prefix)
        if position == len(text) or text[position].isspace():
            break
        if text[position] != ",":
            raise _wrong(text, position, "a comma or a space must follow a value", 'put "quotes" around all of it')
        if operator != ":":
            raise _wrong(text, position, f"{name}{operator} takes one value", "begin a further term after a space")
        position += 1
    if any(prefixes) and not all(prefixes):
        raise _wrong(text, start, "it mixes values with and without *", "give all of them a *, or none")
    return Term(name, operator, tuple(values), prefix=any(prefixes), negated=bool(found[1])), position


def _value(text: str, start: int, name: str, kind: Kind, operator: str) -> tuple[Value, bool, int]:
    """The value that begins at `start`, whether a `*` follows it, and where it ends."""
    found = _VALUE.match(text, start)
    if found is None:
        if text[start : start + 1] == '"':
            raise _wrong(text, start, "the quotes are not closed", 'end the value with "')
        raise _wrong(text, start, f"a value is missing after {name}{operator}", _example(name, kind))
    if found[1] is not None:
        plain, prefix = re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL), bool(found[2])
    else:
        plain = found[3]
        prefix = plain.endswith("*") and kind == "text"
        plain = plain.removesuffix("*") if prefix else plain
        if "*" in plain and kind == "text":
            raise _wrong(text, start + plain.index("*"), "a * is possible at the end only", 'quote it: "a*b"')
    if prefix and kind != "text":
        raise _wrong(text, start, f"{name} takes no *", _example(name, kind))
    try:
        return _read(plain, kind, operator), prefix, found.end()
    except _Unfit as unfit:
        raise _wrong(text, start, unfit.what, unfit.fix or _example(name, kind)) from None


class _Unfit(Exception):  # noqa: N818 - never leaves this module
    """A value that its field cannot have."""

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix


def _read(plain: str, kind: Kind, operator: str) -> Value:
    """A value of a field of this kind. Raises `_Unfit`."""
    if kind in ("state", "text", "flag") and operator != ":":
        raise _Unfit(f"{operator} compares numbers and times only", "use a colon")
    if kind == "text":
        return plain
    if kind == "state":
        if plain not in _STATES:
            raise _Unfit(f"there is no state {plain!r}", _nearest(plain, _STATES, "states"))
        return plain
    if kind == "flag":
        if plain not in ("yes", "no"):
            raise _Unfit(f"{plain!r} is neither yes nor no")
        return plain
    if kind == "number":
        if not _NUMBER.fullmatch(plain) or not plain.isascii():
            raise _Unfit(f"{plain!r} is not a number")
        return float(plain)
    if operator == ":":
        raise _Unfit("a time can only be compared, with < or >")
    return _time(plain, kind)


def _time(plain: str, kind: Kind) -> datetime | timedelta:
    found = _AGE.fullmatch(plain)
    if found is not None and plain.isascii():
        try:
            return timedelta(seconds=float(found[1]) * _UNIT_S[found[2]])
        except OverflowError:
            raise _Unfit(f"{plain} is too long ago") from None
    if kind == "age":
        raise _Unfit(f"{plain!r} is not an age")
    try:
        moment = datetime.fromisoformat(plain)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _Unfit(f"{plain!r} is neither a date nor an age") from None


def _example(name: str, kind: Kind) -> str:
    """What a value of a field looks like."""
    return {
        "state": f"states: {', '.join(_STATES)}",
        "text": f'for example {name}:abc, {name}:abc*, {name}:"with spaces"',
        "flag": f"{name}:yes or {name}:no",
        "number": f"for example {name}>3",
        "time": f"for example {name}>2026-01-31, {name}>2026-01-31T08:00Z, {name}<1h (units s m h d)",
        "age": f"for example {name}>2d (units s m h d)",
    }[kind]


def _nearest(name: str, known: Iterable[str], what: str) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]}? " if close else "") + f"{what}: {', '.join(known)}"


def _wrong(text: str, position: int, what: str, fix: str) -> InvalidRequestError:
    """The refusal of a filter, with a mark under the place."""
    shown = "".join(" " if character.isspace() else character for character in text)
    first = max(0, position - 60)
    return InvalidRequestError(
        f"the filter cannot be read at character {position + 1}: {what}",
        why=f"{shown[first : position + 20]}\n{' ' * (position - first)}^",
        fix=fix,
        position=position + 1,
    )


def _shown(value: Value, *, prefix: bool) -> str:
    """A value as the grammar has it."""
    star = "*" if prefix else ""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return _shown_age(value)
    if isinstance(value, float):
        return f"{value:.0f}"
    if (prefix and value == "") or _PLAIN.fullmatch(value):
        return value + star
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"{star}'


def _shown_age(age: timedelta) -> str:
    seconds = age.days * 86_400 + age.seconds
    if age.microseconds:
        return f"{seconds}.{age.microseconds:06}".rstrip("0") + "s"
    unit = next(unit for unit in "dhms" if seconds % _UNIT_S[unit] == 0)
    return f"{seconds // _UNIT_S[unit]}{unit}"
