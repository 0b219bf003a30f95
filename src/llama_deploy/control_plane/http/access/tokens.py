"""From the `Authorization` header to who asks: parsing, comparison in constant time, rates, and tokens that change.

What was sent is hashed, and the hash compared with that of every token, whichever it is; neither is ever shown.
"""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from urllib.parse import quote, unquote

from llama_deploy.control_plane.rates import RateWindow
from llama_deploy.errors import ForbiddenError, LlamaDeployError, RateLimitedError, UnauthenticatedError
from llama_deploy.types.access import Scope, Token, digest_of, is_token
from llama_deploy.types.limits import RateLimit

_FIX = (
    "llamactl --token-file FILE …     or put the token into LLAMA_DEPLOY_TOKEN\n"
    "Client(url, token=…)             in a program"
)


class Caller:
    """Who makes a request: a token that is known, or anybody where no tokens are asked for."""

    def __init__(self, token: Token | None, now: Callable[[], float] = time.monotonic) -> None:
        self.token = token
        self._now = now
        self._window = RateWindow(token.rate) if token is not None and token.rate is not None else None
        self._others: OrderedDict[bytes, Caller] = OrderedDict()
        """Whom it has asked for lately, by what it says of them."""

    @property
    def name(self) -> str:
        """The token's name, for the audit log; `anybody` where none is asked for."""
        return self.token.name if self.token is not None else "anybody"

    def refusal(self, scope: Scope) -> LlamaDeployError | None:
        """Why this may not be done now, `None` where it may; it counts for the token's rate then."""
        if self.token is None:
            return None
        if scope not in self.token.scopes:
            return ForbiddenError(
                f"the token `{self.token.name}` does not allow this",
                why=f"it takes the scope `{scope.value}`; the token has {_listed(self.token.scopes)}",
                fix=f"use a token that has `{scope.value}`, or give it to this one under `access` and reload",
                scope=scope.value,
                token=self.token.name,
            )
        return self._over_rate()

    def _over_rate(self) -> RateLimitedError | None:
        if self._window is None or self.token is None:
            return None
        now = self._now()
        at = self._window.next_at(now)
        if at <= now:
            self._window.begin(now)
            return None
        return RateLimitedError(
            f"the token `{self.token.name}` makes too many requests",
            why=f"its rate is {self._window.limit}",
            fix="ask again later, or raise `rate` of the token under `access`",
            retry_after_s=round(at - now, 3),
            token=self.token.name,
        )

    def unserved(self, services: Iterable[str]) -> ForbiddenError | None:
        """Why these may not be served, `None` where they may."""
        token = self.token
        if token is None or token.services is None:
            return None
        others = sorted(set(services) - token.services)
        if not others:
            return None
        return ForbiddenError(
            f"the token `{token.name}` does not allow serving {', '.join(others)}",
            why=f"it is for {', '.join(sorted(token.services))}",
            fix="use a token that names it under `services`, or names none",
            scope=Scope.SERVE.value,
            token=token.name,
        )

    def takes_over(self, earlier: Caller) -> None:
        """Count on from what an earlier form of the same token has used of its rate."""
        if self._window is not None and earlier._window is not None:
            self._window.begun_before(earlier._window)

    def speaking_for(self, said: bytes | None) -> Caller:
        """Whom this one asks for, as the header `FOR` says; itself where it says nothing or may not speak for others.

        Its rate is counted over all that is asked so. Raises `UnauthenticatedError` for what cannot be read. Nobody
        gets more than this one has.
        """
        if said is None or self.token is None or not self.token.speaks_for_others:
            return self
        known = self._others.get(said)
        if known is None:
            known = self._others[said] = Caller(_token_of(said, self.token), self._now)
            while len(self._others) > OTHERS_MAX:
                self._others.popitem(last=False)
        self._others.move_to_end(said)
        return known


OTHERS_MAX = 1_000
"""For how many others, beside each other, the rate of one is counted whom a server in front asks for."""
FOR = b"x-llama-deploy-for"
"""The header in which a server in front says for whom it asks: a name, a space, scopes with commas between them, and
after semicolons `services=` and `rate=`, where the token has any. Names of services are quoted as in a URL."""


def said_of(caller: Caller) -> str:
    """What a server in front says of who asks it."""
    token = caller.token
    scopes = token.scopes if token is not None else frozenset(Scope)
    said = f"{caller.name} {','.join(scope.value for scope in Scope if scope in scopes)}"
    if token is not None and token.services is not None:
        said += f";services={','.join(quote(name, safe='') for name in sorted(token.services))}"
    if token is not None and token.rate is not None:
        said += f";rate={token.rate.count}/{token.rate.seconds!r}/{token.rate.burst or ''}"
    return said


def _token_of(said: bytes, asks: Token) -> Token:
    """The token that a server in front speaks of, with no more rights than its own."""
    name, _, rest = said.decode("latin-1").rpartition(" ")
    listed, *more = rest.split(";")
    try:
        scopes = frozenset(Scope(word) for word in listed.split(","))
        given = dict(part.split("=", 1) for part in more)
        limit = _rate_of(given["rate"]) if "rate" in given else None
    except ValueError:
        raise UnauthenticatedError(f"the header `{FOR.decode()}` cannot be read") from None
    services = given.get("services")
    return replace(
        asks,
        name=name or asks.name,
        scopes=scopes & asks.scopes,
        rate=limit,
        services=frozenset(map(unquote, services.split(","))) if services is not None else asks.services,
        speaks_for_others=False,
    )


def _rate_of(text: str) -> RateLimit:
    count, seconds, burst = text.split("/")
    return RateLimit(count=int(count), seconds=float(seconds), burst=int(burst) if burst else None)


ANYBODY = Caller(None)


class TokenTable:
    """The tokens that are valid now."""

    def __init__(self, tokens: Sequence[Token] = (), *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._callers: list[Caller] = []
        self.replace(tokens)

    @property
    def asked_for(self) -> bool:
        """Whether anybody has to show a token."""
        return bool(self._callers)

    def replace(self, tokens: Sequence[Token]) -> None:
        """These are the tokens from now on; who keeps one keeps what it has used of its rate."""
        earlier = {caller.token.digest: caller for caller in self._callers if caller.token is not None}
        self._callers = [Caller(token, self._now) for token in tokens]
        for caller in self._callers:
            if caller.token is not None and (before := earlier.get(caller.token.digest)) is not None:
                caller.takes_over(before)

    def has(self, token: Token) -> bool:
        """Whether exactly this token, with these scopes, is still valid."""
        return any(
            known.token is not None
            and (known.token.digest, known.token.scopes, known.token.services)
            == (token.digest, token.scopes, token.services)
            for known in self._callers
        )

    def caller(self, authorization: Sequence[bytes]) -> Caller:
        """Who sends these `Authorization` headers. Raises `UnauthenticatedError` where that is not to be known."""
        if not self._callers:
            return ANYBODY
        sent = digest_of(_presented(authorization))
        found: Caller | None = None
        for caller in self._callers:  # all of them, so that the time says nothing about where one was found
            assert caller.token is not None
            if hmac.compare_digest(caller.token.digest, sent):
                found = caller
        if found is None:
            raise UnauthenticatedError(
                "the control plane does not know this token", why="it is wrong, or is not valid any more", fix=_FIX
            )
        return found


def _presented(authorization: Sequence[bytes]) -> str:
    """The token of a header (RFC 6750). Raises `UnauthenticatedError`, which never shows it."""
    if not authorization:
        raise UnauthenticatedError("this control plane asks for a token, and none was sent", fix=_FIX)
    if len(authorization) > 1:
        raise UnauthenticatedError("two `Authorization` headers were sent", fix="send one")
    scheme, _, token = authorization[0].decode("latin-1").strip(" \t").partition(" ")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or not is_token(token):
        raise UnauthenticatedError(
            "the `Authorization` header has no token", why="it is `Bearer`, a space, and the token", fix=_FIX
        )
    return token


def _listed(scopes: frozenset[Scope]) -> str:
    return ", ".join(f"`{scope.value}`" for scope in Scope if scope in scopes)
