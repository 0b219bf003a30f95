"""`python -m llama_deploy.cli`: how the supervisor starts its children, without relying on `PATH`."""

from __future__ import annotations

from llama_deploy.cli import main

main()
