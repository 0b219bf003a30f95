"""How many steps one instance works on: which of its places are taken, lent to others, and wanted back.

A step takes a place of its service from its delivery until its answer. One that waits for a task that it has called
lends its place to others meanwhile, so that a service may call itself; before it goes on it gets a place again, ahead
of anything new. What the places are for, and every message about them, is the gateway's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from llama_deploy.message_queues.base import Subscription


class Places:
    """The places of one connected instance."""

    def __init__(self) -> None:
        self.busy: Counter[str] = Counter()
        """Places that are taken, by service."""
        self.capacities: dict[str, int] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self._service_of: dict[str, str] = {}
        self._lent: dict[str, set[str]] = {}
        """Steps without a place, and the keys of the calls that each waits for."""
        self._returning: dict[str, deque[tuple[str, Callable[[], None]]]] = {}
        """By service: steps that wait for a place to go on, and how each does."""

    def open(self, service: str, capacity: int, subscription: Subscription) -> None:
        """Let work of a service flow to the instance."""
        self.capacities[service] = capacity
        self.subscriptions[service] = subscription
        subscription.grant(max(0, capacity - self.busy[service]))

    def close(self) -> None:
        """Nothing new flows to the instance."""
        for subscription in self.subscriptions.values():
            subscription.close()
        self.subscriptions.clear()

    def waiting(self, service: str) -> int:
        """How many of the instance's steps of a service have no place."""
        return sum(self._service_of.get(step_id) == service for step_id in self._lent) + len(
            self._returning.get(service, ())
        )

    def take(self, step_id: str, service: str) -> None:
        """A step is handed to the instance."""
        if step_id not in self._service_of:
            self.busy[service] += 1
            self._service_of[step_id] = service

    def free(self, step_id: str) -> None:
        """A step is answered, or taken away: its place is free."""
        service = self._service_of.pop(step_id, None)
        if service is None or self._lent.pop(step_id, None) is not None:
            return
        returning = self._returning.get(service)
        if returning and (waiting := [one for one in returning if one[0] == step_id]):
            returning.remove(waiting[0])
            return
        self.busy[service] -= 1
        self._place_is_free(service)

    def keep(self, step_id: str, name: str) -> bool:
        """A step is taken away whose code still runs: it keeps its place, under a name that `free` takes later.

        False where it has none.
        """
        service = self._service_of.get(step_id)
        returning = any(one[0] == step_id for one in self._returning.get(service or "", ()))
        if service is None or step_id in self._lent or returning:
            self.free(step_id)
            return False
        del self._service_of[step_id]
        self._service_of[name] = service
        return True

    def set_capacity(self, service: str, capacity: int) -> None:
        """The instance takes more, or less: nothing at all while it drains."""
        subscription = self.subscriptions.get(service)
        if subscription is None:
            return
        before = max(0, self.capacities.get(service, 0) - self.busy[service])
        self.capacities[service] = max(0, capacity)
        subscription.grant(max(0, capacity - self.busy[service]) - before)
        while self._returning.get(service) and (not capacity or self.busy[service] < capacity):
            self._let_return(service)

    # --- lending ----------------------------------------------------------------------------------------------------

    def lend(self, step_id: str, key: str) -> None:
        """A step waits for a call: others may have its place."""
        service = self._service_of.get(step_id)
        if service is None:
            return
        if step_id in self._lent:
            self._lent[step_id].add(key)
            return
        self._lent[step_id] = {key}
        self.busy[service] -= 1
        self._place_is_free(service)

    def ask_back(self, step_id: str, key: str, go_on: Callable[[], None]) -> None:
        """A call has ended. With the last one of a step it wants a place; `go_on` is called when it has one."""
        if not self._ends_waiting(step_id, key):
            go_on()
            return
        service = self._service_of[step_id]
        capacity = self.capacities.get(service, 0)
        if capacity and self.busy[service] >= capacity:
            self._returning.setdefault(service, deque()).append((step_id, go_on))
        else:
            self._occupy(service)
            go_on()

    def insist(self, step_id: str, key: str) -> None:
        """A step goes on without waiting for a call any longer: it runs already, be there a place or not."""
        if self._ends_waiting(step_id, key):
            self._occupy(self._service_of[step_id])

    def _ends_waiting(self, step_id: str, key: str) -> bool:
        """Whether this was the last call that a step without a place has waited for."""
        keys = self._lent.get(step_id)
        if keys is None or key not in keys:
            return False
        keys.discard(key)
        if keys:
            return False
        del self._lent[step_id]
        return True

    def _occupy(self, service: str) -> None:
        """Take a place, from what new steps have been promised where there is that much room."""
        subscription = self.subscriptions.get(service)
        if subscription is not None and self.busy[service] < self.capacities.get(service, 0):
            subscription.grant(-1)
        self.busy[service] += 1

    def _place_is_free(self, service: str) -> None:
        if self.busy[service] >= self.capacities.get(service, 0):
            return
        if self._returning.get(service):
            self._let_return(service)
        elif (subscription := self.subscriptions.get(service)) is not None:
            subscription.grant(1)

    def _let_return(self, service: str) -> None:
        _, go_on = self._returning[service].popleft()
        self.busy[service] += 1
        go_on()
