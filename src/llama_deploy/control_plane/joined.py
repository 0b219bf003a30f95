"""What several control planes say of the same, as one: counts are added, lists are joined, and nothing is there twice.

Pure: it asks nobody. Parts come with the name of the control plane that has said them, the one that was asked first;
where they differ about what all should know (a definition, a pause), that one's word counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from llama_deploy.types import InstanceView, MissingPlane, ServiceView, WaitingPage, WaitingStep


def joined_services(
    parts: Sequence[tuple[str, Sequence[ServiceView]]], missing: Sequence[MissingPlane]
) -> list[ServiceView]:
    """Every service that any of them knows, by name."""
    by_name: dict[str, list[tuple[str, ServiceView]]] = {}
    for plane, views in parts:
        for view in views:
            by_name.setdefault(view.definition.service_name, []).append((plane, view))
    return [joined_service(by_name[name], missing) for name in sorted(by_name)]


def joined_service(parts: Sequence[tuple[str, ServiceView]], missing: Sequence[MissingPlane]) -> ServiceView:
    """One service, of at least one part."""
    views = [view for _, view in parts]
    instances: dict[str, list[tuple[str, InstanceView]]] = {}
    for plane, view in parts:
        for instance in view.instances:
            instances.setdefault(instance.instance_id, []).append((plane, instance))
    held_back: Counter[str] = Counter()
    for view in views:
        held_back.update(view.held_back)
    first = views[0]
    joined = first.model_copy(
        update={
            "instances": [joined_instance(found) for found in instances.values()],
            "waiting": sum(view.waiting for view in views),
            "running": sum(view.running for view in views),
            "answered": sum(view.answered for view in views),
            "oldest_waiting_s": max(filter(None, (view.oldest_waiting_s for view in views)), default=None),
            "held_back": dict(held_back),
            "missing": list(missing),
        }
    )
    joined.state = _state(joined, views)
    return joined


def _state(joined: ServiceView, views: Sequence[ServiceView]) -> str:
    if not joined.instances:
        return "returning" if any(view.state == "returning" for view in views) else "down"
    if all(instance.draining for instance in joined.instances):
        return "draining"
    return "paused" if joined.paused is not None else "up"


def joined_instance(parts: Sequence[tuple[str, InstanceView]]) -> InstanceView:
    """One instance as those know it that it is connected to: what each has given it is added."""
    views = [view for _, view in parts]
    draining = any(view.draining for view in views)  # it tells each of them, not all in the same moment
    return views[0].model_copy(
        update={
            "connected_at": min(_known(view.connected_at for view in views), default=None),
            "last_seen_at": max(_known(view.last_seen_at for view in views), default=None),
            "capacity": 0 if draining else max(view.capacity for view in views),
            "running": sum(view.running for view in views),
            "waiting": sum(view.waiting for view in views),
            "left_behind": max(view.left_behind for view in views),
            "draining": draining,
            "control_planes": sorted(plane for plane, _ in parts),
        }
    )


def _known(times: Iterable[float | None]) -> list[float]:
    return [time for time in times if time is not None]


# --- what waits -------------------------------------------------------------------------------------------------------


def rank_before(counts: Sequence[int], after: int) -> int:
    """How many places of each queue come before the joined place `after`, where queues of these lengths take turns."""
    low, high = 0, max(counts, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(count, middle) for count in counts) <= after:
            low = middle
        else:
            high = middle - 1
    return low


def joined_waiting(parts: Sequence[tuple[str, WaitingPage]], *, after: int, skip: int, limit: int) -> WaitingPage:
    """A page of what waits, of pages that begin after the same place of each queue.

    Each hands out what is next in its own queue, all at the same time: so the first ones of each go before the second
    ones, and among them who has the higher priority, or waits longer. `skip` of them stand on the page before.
    """
    order: list[tuple[tuple[float, ...], str, WaitingStep]] = []
    for number, (plane, page) in enumerate(parts):
        order += [((step.place, -step.priority, -step.waiting_s, number), plane, step) for step in page.items]
    order.sort(key=lambda found: found[0])
    chosen = order[skip : skip + limit]
    items = [
        step.model_copy(update={"place": place, "control_plane": plane})
        for place, (_, plane, step) in enumerate(chosen, start=after + 1)
    ]
    more = len(order) > skip + limit or any(page.next is not None for _, page in parts)
    total = sum(page.total for _, page in parts)
    return WaitingPage(items=items, total=total, next=after + len(items) if more and items else None)


# --- status -----------------------------------------------------------------------------------------------------------

_ADDED = ("unfinished_in_memory", "clients", "commits", "transitions")
_OF_ONE = (
    "ready", "version", "started_at", "now", "store", "queue", "unfinished_in_memory", "instances", "clients",
    "statistics", "commits", "transitions",
)  # fmt: skip
_OF_ITS_LEADERSHIP = (
    "url", "seat", "shards", "lease_left_s", "looks", "claimed", "takeovers", "handed_over", "lost", "commits_refused",
)  # fmt: skip


def joined_status(parts: Sequence[tuple[str, dict[str, Any]]], missing: Sequence[MissingPlane]) -> dict[str, Any]:
    """The status of all: the sum of what is counted, each by itself, and else what the one says that was asked."""
    documents = [document for _, document in parts]
    first = documents[0]
    added = {name: sum(document.get(name, 0) for document in documents) for name in _ADDED}
    statistics: Counter[str] = Counter()
    for document in documents:
        statistics.update(document["statistics"])
    services: dict[str, bool] = {}
    for document in documents:
        for name, served in document["services"].items():
            services[name] = services.get(name, False) or served
    instances = {instance for document in documents for instance in document.get("instance_ids", ())}
    return {
        **{name: value for name, value in first.items() if name != "instance_ids"},
        **added,
        "statistics": dict(statistics),
        "services": dict(sorted(services.items())),
        "instances": len(instances),
        "store": first["store"] | {"backlog": sum(document["store"]["backlog"] for document in documents)},
        "queue": first["queue"] | {"waiting": sum(document["queue"]["waiting"] for document in documents)},
        "control_planes": [_of_one(name, document) for name, document in parts],
        "missing": [one.model_dump() for one in missing],
    }


def _of_one(name: str, document: dict[str, Any]) -> dict[str, Any]:
    leadership = document.get("leadership") or {}
    own = {key: document[key] for key in _OF_ONE if key in document}
    return {"name": name, **{key: leadership[key] for key in _OF_ITS_LEADERSHIP if key in leadership}, **own}
