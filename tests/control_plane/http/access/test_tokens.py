"""What is a token, whose it is, and how the comparison gives nothing away."""

from __future__ import annotations

import hmac
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_deploy.control_plane.http.access.tokens import TokenTable, said_of
from llama_deploy.errors import ForbiddenError, RateLimitedError, SettingError, UnauthenticatedError
from llama_deploy.runtime.credentials import new_token
from llama_deploy.types.access import (
    TOKEN_CHARACTERS_MAX,
    TOKEN_CHARACTERS_MIN,
    Scope,
    Token,
    digest_from,
    digest_of,
    is_token,
    with_implied,
)
from llama_deploy.types.limits import RateLimit

TEXT = "the-right-token-0123456789"
OTHER = "the-other-token-0123456789"


def token(text: str = TEXT, name: str = "ci", *scopes: Scope, rate: RateLimit | None = None) -> Token:
    return Token(name=name, digest=digest_of(text), scopes=with_implied(scopes or [Scope.RUN]), rate=rate)


@pytest.mark.parametrize("header", [f"Bearer {TEXT}", f"bearer {TEXT}", f"BEARER   {TEXT} ", f" Bearer {TEXT}\t"])
def test_who_shows_the_token_is_known(header: str) -> None:
    caller = TokenTable([token()]).caller([header.encode()])
    assert caller.name == "ci"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", f"Basic {TEXT}", TEXT, f"Bearer {TEXT} {TEXT}", f"Bearer {TEXT}x", f"Bearer\t{TEXT}"]
    + [f"Bearer {TEXT[:-1]}", f"Bearer {TEXT.upper()}", f'Bearer "{TEXT}"', f"Bearer sha256:{'0' * 64}", "Bearer é"]
    + [f"Bearer {'x' * (TOKEN_CHARACTERS_MAX + 1)}", "Bearer short", f"Bearer {digest_of(TEXT).hex()}"],
)
def test_anything_else_is_nobody(header: str) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        TokenTable([token()]).caller([header.encode("latin-1")])
    assert TEXT not in caught.value.render()


def test_none_and_two_headers_are_nobody() -> None:
    for sent in ([], [f"Bearer {TEXT}".encode()] * 2):
        with pytest.raises(UnauthenticatedError):
            TokenTable([token()]).caller(sent)


@given(st.binary(max_size=600))
def test_no_bytes_break_the_parser_or_let_anybody_in(header: bytes) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        TokenTable([token()]).caller([header])
    shown = caught.value.render() + str(caught.value.to_problem())
    assert TEXT not in shown


@settings(max_examples=60)
@given(st.from_regex(r"[A-Za-z0-9._~+/=-]{15,40}[ -~]?", fullmatch=True) | st.text(min_size=1, max_size=40))
def test_whatever_is_taken_for_a_token_is_found_again(text: str) -> None:
    if is_token(text):
        assert TokenTable([token(text)]).caller([b"Bearer " + text.encode()]).name == "ci"
    elif not text.startswith("sha256:"):
        with pytest.raises(SettingError) as caught:
            digest_from(text, source="the file")
        if len(text) >= TOKEN_CHARACTERS_MIN:
            assert text not in caught.value.render()


def test_every_comparison_is_of_hashes_with_all_of_them_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    genuine = hmac.compare_digest

    def counted(left: Any, right: Any) -> bool:
        compared.append((left, right))
        return genuine(left, right)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    known = [token(f"token-number-{number}-0123456789", str(number)) for number in range(10)]
    table = TokenTable(known)
    for number in (0, 5, 9):
        compared.clear()
        assert table.caller([f"Bearer token-number-{number}-0123456789".encode()]).name == str(number)
        assert len(compared) == 10
        assert {len(part) for pair in compared for part in pair} == {32}
    compared.clear()
    with pytest.raises(UnauthenticatedError):
        table.caller([b"Bearer unknown-unknown-unknown"])
    assert len(compared) == 10


def test_a_hash_stands_for_its_token() -> None:
    assert digest_from(f"sha256:{digest_of(TEXT).hex()}", source="x") == digest_from(TEXT, source="x")
    for wrong in ("sha256:", "sha256:xyz", f"sha256:{'0' * 63}", f"sha256:{'g' * 64}"):
        with pytest.raises(SettingError):
            digest_from(wrong, source="x")


def test_a_token_is_shown_nowhere() -> None:
    made = token()
    assert digest_of(TEXT).hex() not in repr(made)
    assert repr(digest_of(TEXT)) not in repr(made)
    assert is_token(new_token())
    assert new_token() != new_token()


def test_a_scope_that_is_not_there_is_named() -> None:
    caller = TokenTable([token(TEXT, "ci", Scope.RUN)]).caller([f"Bearer {TEXT}".encode()])
    assert caller.refusal(Scope.READ) is None
    error = caller.refusal(Scope.ADMIN)
    assert isinstance(error, ForbiddenError)
    assert error.details == {"scope": "admin", "token": "ci"}
    assert "`read`, `run`" in error.why


def test_a_rate_is_held_and_says_when_to_come_again() -> None:
    now = [100.0]
    limited = token(rate=RateLimit(count=2, seconds=10))
    table = TokenTable([limited], now=lambda: now[0])
    caller = table.caller([f"Bearer {TEXT}".encode()])
    assert [caller.refusal(Scope.RUN) for _ in range(2)] == [None, None]
    error = caller.refusal(Scope.RUN)
    assert isinstance(error, RateLimitedError)
    assert error.details["retry_after_s"] == 10
    table.replace([limited])  # reading the file again is no way to more
    assert isinstance(table.caller([f"Bearer {TEXT}".encode()]).refusal(Scope.RUN), RateLimitedError)
    now[0] += 10
    assert caller.refusal(Scope.RUN) is None


def test_a_server_in_front_says_for_whom_it_asks_and_gives_nobody_more() -> None:
    front = replace(token(TEXT, "front", Scope.RUN, Scope.SERVE), speaks_for_others=True)
    caller = TokenTable([front]).caller([f"Bearer {TEXT}".encode()])
    other = caller.speaking_for(b"page read,admin")
    assert other.token is not None
    assert (other.name, set(other.token.scopes)) == ("page", {Scope.READ})
    assert caller.speaking_for(said_of(other).encode()).refusal(Scope.RUN) is not None
    assert caller.speaking_for(None) is caller
    for wrong in (b"", b"page", b"page root", b"page read;admin"):
        with pytest.raises(UnauthenticatedError):
            caller.speaking_for(wrong)
    plain = TokenTable([token()]).caller([f"Bearer {TEXT}".encode()])
    assert plain.speaking_for(b"boss admin") is plain


def test_a_server_in_front_hands_on_what_a_token_is_for_and_its_rate_is_counted_over_all_that_it_asks() -> None:
    names = frozenset({"reader", "wörter; a,b"})
    own = replace(token(OTHER, "page", Scope.SERVE, rate=RateLimit(count=2, seconds=0.5, burst=1)), services=names)
    said = said_of(TokenTable([own]).caller([f"Bearer {OTHER}".encode()])).encode("latin-1")
    now = [100.0]
    front = replace(token(TEXT, "front", *Scope), speaks_for_others=True)
    caller = TokenTable([front], now=lambda: now[0]).caller([f"Bearer {TEXT}".encode()])
    other = caller.speaking_for(said)
    assert other.token is not None
    assert (other.token.services, other.token.rate) == (names, own.rate)
    assert other.unserved(names) is None
    assert isinstance(other.unserved(["reader", "writer"]), ForbiddenError)
    assert other.refusal(Scope.SERVE) is None
    assert isinstance(caller.speaking_for(said).refusal(Scope.SERVE), RateLimitedError), "another connection of it"
    for wrong in (b"page read;rate=1", b"page read;rate=a/b/c", b"page read;rate=0/1/"):
        with pytest.raises(UnauthenticatedError):
            caller.speaking_for(wrong)


def test_without_tokens_everybody_may() -> None:
    caller = TokenTable().caller([])
    assert (caller.name, caller.refusal(Scope.ADMIN)) == ("anybody", None)
