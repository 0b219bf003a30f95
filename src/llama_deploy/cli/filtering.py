"""Filters on a command line: `-state:failed` is a term and no option, and what a filter says is checked here first.

The grammar itself is in `llama_deploy.types.filters`.
"""

from __future__ import annotations

from collections.abc import Sequence

import click


class FilterCommand(click.Command):
    """A command that takes terms of a filter among its arguments, negated ones too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep negated terms from being read as options."""
        from llama_deploy.types.filters import opens_as_term

        options = args[: args.index("--")] if "--" in args else args
        terms = [argument for argument in options if opens_as_term(argument)]
        if terms:
            rest = args[len(options) + 1 :]
            args = [*(argument for argument in options if not opens_as_term(argument)), "--", *terms, *rest]
        return super().parse_args(ctx, args)


def filter_text(terms: Sequence[str]) -> str | None:
    """The terms of a command line as one filter, `None` where there are none. Raises `InvalidRequestError`."""
    from llama_deploy.types.filters import parse_filter

    if not terms:
        return None
    text = " ".join(terms)
    parse_filter(text)
    return text
