"""The tests, laid out as the source is; `tests.support` holds what they share."""
