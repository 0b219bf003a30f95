"""The grammar of filters: what it reads, how it says what it cannot read, and that its text means the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.errors import InvalidRequestError
from llama_deploy.types.filters import (
    FIELDS,
    FILTER_CHARACTERS_MAX,
    VALUES_MAX,
    Filter,
    Term,
    Value,
    opens_as_term,
    parse_filter,
    states_of,
)
from llama_deploy.types.state import TaskState


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("state:failed,canceled", Term("state", ":", ("failed", "canceled"))),
        ("-state:completed", Term("state", ":", ("completed",), negated=True)),
        ("service:writer", Term("service", ":", ("writer",))),
        ("id:abc*", Term("id", ":", ("abc",), prefix=True)),
        ("origin:child:*", Term("origin", ":", ("child:",), prefix=True)),
        ("error:*", Term("error", ":", ("",), prefix=True)),
        ('origin:""', Term("origin", ":", ("",))),
        ('service:"a b, c*"', Term("service", ":", ("a b, c*",))),
        ('service:"a b"*', Term("service", ":", ("a b",), prefix=True)),
        (r'service:"say \"hi\" \\"', Term("service", ":", (r'say "hi" \\'[:-1],))),
        ("paused:yes", Term("paused", ":", ("yes",))),
        ("hops>=3", Term("hops", ">=", (3.0,))),
        ("hops:1,2", Term("hops", ":", (1.0, 2.0))),
        ("created>2026-01-01", Term("created", ">", (datetime(2026, 1, 1, tzinfo=UTC),))),
        ("created>2026-01-01T10:00+02:00", Term("created", ">", (datetime(2026, 1, 1, 8, tzinfo=UTC),))),
        ("created<=2026-01-01T08:00:00Z", Term("created", "<=", (datetime(2026, 1, 1, 8, tzinfo=UTC),))),
        ("ended<1h", Term("ended", "<", (timedelta(hours=1),))),
        ("age>1.5d", Term("age", ">", (timedelta(days=1.5),))),
    ],
)
def test_terms(text: str, term: Term) -> None:
    assert parse_filter(text) == Filter((term,))
    assert parse_filter(str(term)) == Filter((term,))


def test_all_terms_must_hold_and_nothing_means_everything() -> None:
    assert [term.field for term in parse_filter("  state:failed \t service:a\nhops>1 ").terms] == [
        "state",
        "service",
        "hops",
    ]
    assert parse_filter("") == parse_filter("  ") == Filter()
    assert str(Filter()) == ""


def test_words_for_several_states() -> None:
    assert states_of(parse_filter("state:unfinished,working").terms[0]) == (
        "submitted",
        "working",
        "input_required",
        "auth_required",
    )
    assert set(states_of(parse_filter("state:ended").terms[0])) == {"completed", "failed", "canceled", "rejected"}


@pytest.mark.parametrize(
    ("text", "position", "what", "fix"),
    [
        ("stat:failed", 1, "there is no field 'stat'", "did you mean state?"),
        ("service:a sesion:b", 11, "there is no field 'sesion'", "did you mean session?"),
        ("state:faild", 7, "there is no state 'faild'", "did you mean failed?"),
        ("state:failed,", 14, "a value is missing after state:", "states: submitted"),
        ("failed", 1, "'failed' is no field:value", "did you mean state:failed?"),
        ("abc", 1, "'abc' is no field:value", "id:abc"),
        ("service>a", 9, "> compares numbers and times only", "use a colon"),
        ("service:a*b", 10, "a * is possible at the end only", "quote it"),
        ("service:a,b*", 1, "it mixes values with and without *", "give all of them"),
        ('service:"a', 9, "the quotes are not closed", "end the value"),
        ('service:"a"b', 12, "a comma or a space must follow a value", "quotes"),
        ("paused:maybe", 8, "'maybe' is neither yes nor no", "paused:yes"),
        ("hops:many", 6, "'many' is not a number", "hops>3"),
        ("hops>1,2", 7, "hops> takes one value", "further term"),
        ("created:2026-01-01", 9, "a time can only be compared", "created>"),
        ("created>yesterday", 9, "'yesterday' is neither a date nor an age", "created<1h"),
        ("age>2026-01-01", 5, "'2026-01-01' is not an age", "age>2d"),
        ("state:fail*", 7, "there is no state 'fail*'", "states:"),
        ("state:", 7, "a value is missing", "states:"),
        (":x", 1, "there is no field ''", "fields: state"),
        ("ended<9999999999999d", 7, "neither a date nor an age", "ended"),
    ],
)
def test_refusals_name_the_place_and_what_is_possible(text: str, position: int, what: str, fix: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_filter(text)
    assert refused.value.details == {"position": position}
    assert what in refused.value.what
    assert fix in refused.value.fix
    line, mark = refused.value.why.splitlines()
    assert mark.index("^") == min(position, len(line) + 1) - 1


def test_limits() -> None:
    with pytest.raises(InvalidRequestError, match="characters"):
        parse_filter("id:" + "a" * FILTER_CHARACTERS_MAX)
    with pytest.raises(InvalidRequestError, match="values"):
        parse_filter("id:" + ",".join("a" for _ in range(VALUES_MAX + 1)))


def test_negated_terms_are_no_options_of_a_command_line() -> None:
    assert opens_as_term("-state:failed")
    assert opens_as_term("-hops>3")
    for option in ("-s", "-shttp://host:1", "--state", "-o", "state:failed", "-"):
        assert not opens_as_term(option)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES: dict[str, st.SearchStrategy[Value]] = {
    "state": st.sampled_from([*(state.value for state in TaskState), "unfinished", "ended"]),
    "text": TEXTS,
    "flag": st.sampled_from(["yes", "no"]),
    "number": st.integers(0, 999_999_999).map(float),
    "time": st.datetimes(timezones=st.just(UTC))
    | st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=9_999)),
    "age": st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=9_999)),
}


@st.composite
def terms(draw: st.DrawFn) -> Term:
    """Any term that there can be."""
    field = draw(st.sampled_from(sorted(FIELDS)))
    kind = FIELDS[field]
    compared = kind in ("time", "age") or (kind == "number" and draw(st.booleans()))
    values = draw(st.lists(VALUES[kind], min_size=1, max_size=1 if compared else 4))
    return Term(
        field,
        draw(st.sampled_from(["<", "<=", ">", ">="])) if compared else ":",
        tuple(values),
        prefix=kind == "text" and draw(st.booleans()),
        negated=draw(st.booleans()),
    )


@given(st.lists(terms(), max_size=5))
def test_the_text_of_a_filter_is_the_same_filter(made: list[Term]) -> None:
    filter_ = Filter(tuple(made))
    assert parse_filter(str(filter_)) == filter_


PIECES = st.sampled_from([*FIELDS, ":", "<", ">=", "-", ",", "*", '"', "\\", " ", "1h", "2026-01-01", "failed", "yes"])


@given(TEXTS | st.lists(PIECES | TEXTS, max_size=12).map("".join))
def test_rubbish_is_refused_or_read_and_never_crashes(text: str) -> None:
    try:
        found = parse_filter(text)
    except InvalidRequestError as refused:
        assert 1 <= refused.details["position"] <= len(text) + 1  # noqa: PT017
    else:
        assert parse_filter(str(found)) == found
