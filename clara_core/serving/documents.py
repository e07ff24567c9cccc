"""Finds or makes the memories of a request's documents."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clara_core.data.memory import Memory
from clara_core.serving.bodies import DocumentBody, check_texts
from clara_core.serving.failures import Refused

if TYPE_CHECKING:
    from clara_core.serving.state import ServerState


async def memories_of(state: ServerState, documents: Sequence[DocumentBody], *, read: bool) -> list[Memory]:
    """The memory of each document: the stored one if the document has an id, else made from its text.

    Args:
        state: State of the server.
        documents: Documents of the request.
        read: Whether the generator reads them, for which the limit is lower.

    Raises:
        Refused: There are too many documents, or a store does not have one of them.
    """
    limits = state.config.limits
    if read and len(documents) > limits.read:
        raise Refused(
            "context_length_exceeded",
            f"{len(documents)} documents do not fit; at most {limits.read} are read for a question",
            param="documents",
        )
    check_texts([document.text or "" for document in documents], limits.documents, limits.characters, "documents")
    stored = await asyncio.to_thread(_stored, state, documents)
    missing = [
        document.id or ""
        for document, memory in zip(documents, stored, strict=True)
        if memory is None and document.text is None
    ]
    if missing:
        shown = ", ".join(repr(id_[:64]) for id_ in missing[:5])
        raise Refused("document_not_found", f"there is no document with the id {shown}", param="documents")
    found = {at: memory for at, memory in enumerate(stored) if memory is not None}
    for overflow in ("split", "truncate"):
        places = [at for at, each in enumerate(documents) if at not in found and each.overflow == overflow]
        texts = [documents[at].text or "" for at in places]
        if texts:
            engine = state.engine
            made = await (engine.aremember(texts) if overflow == "split" else engine.acompress(texts, "truncate"))
            found |= zip(places, made, strict=True)
    return [found[at] for at in range(len(documents))]


def _stored(state: ServerState, documents: Sequence[DocumentBody]) -> list[Memory | None]:
    """The stored memory of each document, or None if the store has none or has one of another text."""
    wanted: dict[str, list[str]] = {}
    for document in documents:
        if document.store is not None and document.id is not None:
            wanted.setdefault(document.store, []).append(document.id)
    found: dict[tuple[str, str], Memory] = {}
    for name, ids in wanted.items():
        store = state.store(name)
        there = [record.id for record in store.get(dict.fromkeys(ids))]
        found |= {(name, id_): memory for id_, memory in zip(there, store.memories(there), strict=True)}
    memories: list[Memory | None] = []
    for document in documents:
        memory = found.get((document.store or "", document.id or ""))
        stale = memory is not None and document.text is not None and memory.text != document.text
        memories.append(None if stale else memory)
    return memories
