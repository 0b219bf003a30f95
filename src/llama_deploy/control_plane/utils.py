"""A published import path, for the keys of a state: `llama_deploy._published` says where its names live."""

from typing import TYPE_CHECKING

from llama_deploy._lazy import published_names

if not TYPE_CHECKING:
    __getattr__, __dir__ = published_names(__name__)
