"""The name of a store that no other store has: what a carrier keeps apart from other deployments' by.

It is made once and kept as a document, so every control plane over the store has the same one. A copy of a store has it
too: two copies that run at the same time on one broker each need a `namespace` of their own.
"""

from __future__ import annotations

import uuid_utils

from llama_deploy.state_stores import StateStore

KIND, NAME = "store", "identity"


async def identity(store: StateStore) -> str:
    """The store's identity, made now where it has none."""
    found = (await store.load_documents(KIND)).get(NAME)
    if found is None:
        await store.put_document(KIND, NAME, str(uuid_utils.uuid7()).encode())
        found = (await store.load_documents(KIND))[NAME]  # another control plane may have been first
    return found.decode()
