"""What is left out of what people look at, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.errors import SettingError
from llama_deploy.types.redaction import NO_REDACTION, REDACTED, Redaction

REDACT = Redaction(["*password*", "api_key", "*_token", "pin?"])


@pytest.mark.parametrize(
    "key", ["password", "Password", "db_password_2", "api_key", "API_KEY", "x_token", "_token", "pin1"]
)
def test_keys_that_fit(key: str) -> None:
    assert REDACT.hides(key)


@pytest.mark.parametrize("key", ["", "pass", "api_keys", "my_api_key", "token", "pin", "pin12", "tokens_x"])
def test_keys_that_do_not(key: str) -> None:
    assert not REDACT.hides(key)


def test_values_at_any_depth_and_in_texts_of_json() -> None:
    value = {
        "user": "ada",
        "password": {"any": ["thing"]},
        "list": [{"api_key": 1}, "text", 2, None],
        "input": json.dumps({"login": {"password": "p", "user": "ü"}}),
        "note": "{not json",
    }
    shown = REDACT.value(value)
    assert shown == {
        "user": "ada",
        "password": REDACTED,
        "list": [{"api_key": REDACTED}, "text", 2, None],
        "input": json.dumps({"login": {"password": REDACTED, "user": "ü"}}, ensure_ascii=False),
        "note": "{not json",
    }
    assert value["password"] == {"any": ["thing"]}, "the original stays"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("password=hunter2 user=ada", "password=[redacted] user=ada"),
        ("password=[redacted] user=ada", "password=[redacted] user=ada"),
        ('{"api_key":  [redacted]}', '{"api_key":  [redacted]}'),
        ("{'password': 'hunter 2', 'user': 'ada'}", "{'password': [redacted], 'user': 'ada'}"),
        ('got "api_key": "a b", "x": 1', 'got "api_key": [redacted], "x": 1'),
        ("call(db_password='x', y=1)", "call(db_password=[redacted], y=1)"),
        ("the password is wrong", "the password is wrong"),
        ("my_api_key=1", "my_api_key=1"),
    ],
)
def test_texts_for_people(text: str, shown: str) -> None:
    assert REDACT.text(text) == shown


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "password", "b"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(JSON)
def test_nothing_under_a_key_that_fits_is_shown_and_everything_else_is(value: Any) -> None:
    def check(before: Any, after: Any) -> None:
        if isinstance(before, dict):
            assert after.keys() == before.keys()
            for key, inner in before.items():
                if key == "password":
                    assert after[key] == REDACTED
                else:
                    check(inner, after[key])
        elif isinstance(before, list):
            for one, other in zip(before, after, strict=True):
                check(one, other)
        else:
            assert before == after or (isinstance(before, str) and before[:1] in ("{", "["))

    check(value, REDACT.value(value))
    assert NO_REDACTION.value(value) is value


@pytest.mark.parametrize("pattern", ["", "  ", "x" * 101, "*a*b*c*"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(SettingError):
        Redaction([pattern])
