"""A model that needs no key: each service says what it would answer. With `OPENAI_API_KEY`, the real one is asked.

`OPENAI_BASE_URL` and `OPENAI_MODEL` name another server that speaks the same protocol, and another model.
"""

from __future__ import annotations

import os

import httpx2

TIMEOUT_S = 60.0


async def complete(prompt: str, *, otherwise: str) -> str:
    """The model's answer to a prompt; without a key, `otherwise`."""
    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        return otherwise
    url = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1") + "/chat/completions"
    body = {"model": os.environ.get("OPENAI_MODEL", "gpt-4o-mini"), "messages": [{"role": "user", "content": prompt}]}
    async with httpx2.AsyncClient(timeout=TIMEOUT_S) as client:
        answer = await client.post(url, json=body, headers={"Authorization": f"Bearer {key}"})
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])
