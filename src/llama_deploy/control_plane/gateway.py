"""Where service instances connect: one port per connection, over a WebSocket or inside this process.

A port takes deliveries from the queue while it has credits, hands operations over in frames, and turns what the
instance says into calls of the engine. It knows nothing of transports: whoever makes one gives it a function that
sends a batch of operations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
from pydantic import TypeAdapter, ValidationError

from llama_deploy.control_plane.children import Children
from llama_deploy.control_plane.engine import Engine
from llama_deploy.control_plane.leases import Leases
from llama_deploy.control_plane.lookups import Lookups
from llama_deploy.control_plane.places import Places
from llama_deploy.control_plane.refusals import check_id
from llama_deploy.control_plane.registry import check_name
from llama_deploy.control_plane.signals import Signals
from llama_deploy.errors import InvalidRequestError, LlamaDeployError, ProtocolError, ServiceNotFoundError
from llama_deploy.message_queues import Envelope
from llama_deploy.messages.frames import (
    PROTOCOL_VERSION,
    Acknowledged,
    Answer,
    AskInput,
    Call,
    CancelStep,
    Credits,
    DeliverInput,
    Disowned,
    Drain,
    EndCall,
    Events,
    EventsCommitted,
    Goodbye,
    Heartbeat,
    HeldStep,
    Hello,
    InstanceOp,
    LeftBehind,
    Park,
    ParkRefused,
    Refused,
    Remember,
    Remembered,
    Returned,
    Stopped,
    Welcome,
)
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.clock import Timer
from llama_deploy.runtime.logs import get_logger
from llama_deploy.types import InstanceView, ServiceDefinition
from llama_deploy.types.options import SECONDS_MAX

log = get_logger("llama_deploy.gateway")

_definitions = TypeAdapter(list[ServiceDefinition])

Send = Callable[[list[Any]], None]
"""Sends a batch of operations, and deliveries as encoded `msgspec.Raw`; never blocks."""


class Gateway:
    """All connected instances of one control plane."""

    def __init__(self, engine: Engine, signals: Signals, children: Children) -> None:
        self.engine = engine
        self.signals = signals
        self.children = children
        self.ports: dict[Port, None] = {}
        self.leases = Leases(self)
        self._dropped: dict[str, Timer] = {}

    def attach(self, send: Send, *, close: Callable[[], None], in_process: bool = False) -> Port:
        """A new connection. `close` ends it from this side; the transport calls `Port.closed` when it has ended."""
        port = Port(self, send, close, in_process=in_process)
        self.ports[port] = None
        self.leases.watch()
        return port

    def stop(self) -> None:
        """Close every connection; instances keep what is unanswered and come back with it."""
        self.leases.stop()
        for timer in self._dropped.values():
            timer.cancel()
        for port in tuple(self.ports):
            port.flush()
            port.close()

    def drain_instances(self) -> None:
        """Ask every instance to finish what it holds and to take nothing new."""
        for port in self.ports:
            port.post(Drain())

    def drain_instance(self, service: str, instance_id: str, *, timeout_s: float | None = None) -> InstanceView:
        """Ask an instance to finish what it holds, take nothing new and leave; how it stands now. It may be repeated.

        What it has not finished after `timeout_s` it hands back; without, it takes as long as it takes. Raises
        `ServiceNotFoundError`, and `InvalidRequestError` for an instance in the control plane's own process.
        """
        found = self.engine.registry.services.get(service)
        port = found.instances.get(instance_id) if found is not None else None
        if not isinstance(port, Port):
            known = sorted(found.instances) if found is not None else []
            raise ServiceNotFoundError(
                f"{service} has no instance {instance_id!r}", why="instances: " + (", ".join(known) or "none")
            )
        if port.in_process:
            raise InvalidRequestError(
                f"instance {instance_id} lives in the control plane's own process, and could not come back",
                fix=f"pause the service: llamactl services pause {service}",
            )
        port.post(Drain(SECONDS_MAX if timeout_s is None else timeout_s))
        return port.view(service)

    def returned(self, instance_id: str) -> None:
        """An instance whose connection had dropped is here again, in time."""
        timer = self._dropped.pop(instance_id, None)
        if timer is not None:
            timer.cancel()

    def dropped(self, port: Port, *, lost_now: bool) -> None:
        """A connection ended without a goodbye: wait for its instance a moment, then give its steps to others."""
        engine = self.engine

        def give_up() -> None:
            self._dropped.pop(port.instance_id, None)
            self.engine.registry.unregister(port, lost=True)
            self.signals.lost(list(port.held), port.instance_id, f"instance {port.instance_id} was lost")

        if engine.stopping:  # the instance keeps what it holds, and brings it to the next control plane
            engine.registry.unregister(port, lost=True)
        elif lost_now:
            give_up()
        else:
            when = engine.clock.now() + engine.settings.reconnect_grace_s
            self._dropped[port.instance_id] = engine.clock.call_at(when, give_up)


class Port:
    """One instance's connection."""

    def __init__(self, gateway: Gateway, send: Send, close: Callable[[], None], *, in_process: bool) -> None:
        self._gateway = gateway
        self._engine = gateway.engine
        self._send = send
        self.close = close
        self.in_process = in_process
        self.instance_id = ""
        self.held: dict[str, int] = {}
        self.last_seen_at = self._engine.clock.now()
        self.connected_at = self.last_seen_at
        self._hello: Hello | None = None
        self._services: dict[str, ServiceDefinition] = {}
        self._places = Places()
        self._left_behind: dict[str, int] = {}
        self._outgoing: list[Any] = []
        self._flush_scheduled = False
        self._is_closed = False
        self._lookups = Lookups(self._engine, self)
        self._handlers: dict[type, Callable[[Any], None]] = {
            Answer: self._lookups.before(self._answer),
            Events: self._lookups.before(self._events),
            Park: self._lookups.before(self._park),
            AskInput: self._ask,
            Remember: self._remember,
            Call: self._call,
            EndCall: self._end_call,
            Heartbeat: self._heartbeat,
            Stopped: self._stopped,
            LeftBehind: self._left,
            Credits: self._credits,
            Goodbye: self._goodbye,
            **self._lookups.transfers.handlers,
        }

    # --- what the registry and the engine use -----------------------------------------------------------------------

    def cancel(self, step_id: str, reason: str) -> None:
        """Tell the instance to stop a step that it holds."""
        if step_id in self.held:
            self.post(CancelStep(step_id, reason))
            attempt = self.held.pop(step_id)
            name = f"{step_id}/{attempt}"
            if self._places.keep(step_id, name):  # until its code has ended; an instance says so within the grace
                settings = self._engine.settings
                when = self._engine.clock.now() + 2 * settings.cancel_grace_s + settings.heartbeat_s
                self._engine.clock.call_at(when, partial(self._places.free, name))

    def give_input(self, step_id: str, number: int, value: bytes) -> None:
        """Hand a person's input to a step that the instance holds."""
        self.post(DeliverInput(step_id, number, value))

    def capacity(self, service: str) -> int:
        """Steps of a service that the instance takes at once."""
        return self._places.capacities.get(service, 0)

    def view(self, service: str) -> InstanceView:
        """The instance as the API shows it."""
        return InstanceView(
            instance_id=self.instance_id,
            host=self._hello.host if self._hello else "",
            pid=self._hello.pid if self._hello else None,
            connected_at=self.connected_at,
            last_seen_at=self._engine.clock.now() if self.in_process else self.last_seen_at,
            capacity=self.capacity(service),
            running=self._places.busy[service],
            waiting=self._places.waiting(service),
            left_behind=self._left_behind.get(service, 0),
            draining=self.capacity(service) == 0,
        )

    # --- sending ----------------------------------------------------------------------------------------------------

    def post(self, operation: Any) -> None:
        """Send an operation with whatever else this turn of the loop sends."""
        self._outgoing.append(operation)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what has accumulated."""
        self._flush_scheduled = False
        if self._outgoing and not self._is_closed:
            failpoint("gateway.before_send")
            operations, self._outgoing = self._outgoing, []
            self._send(operations)

    def _acknowledge(self, step_id: str) -> None:
        last = self._outgoing[-1] if self._outgoing else None
        if isinstance(last, Acknowledged):
            last.step_ids.append(step_id)
        else:
            self.post(Acknowledged([step_id]))

    # --- receiving --------------------------------------------------------------------------------------------------

    def receive(self, operations: Sequence[InstanceOp]) -> None:
        """What the instance says, in order."""
        self.last_seen_at = self._engine.clock.now()
        for position, operation in enumerate(operations):
            if self._is_closed:
                return
            if self._lookups.busy:
                self._lookups.wait(operations[position:])
                return
            handler = self._handlers.get(type(operation))
            if isinstance(operation, Hello) and self._hello is None:
                self._greet(operation)
            elif self._hello is None or handler is None:
                self._refuse(ProtocolError("an instance says Hello once, as its first operation"))
            else:
                handler(operation)

    def _refuse(self, error: LlamaDeployError) -> None:
        self.post(Refused(0, msgspec.json.encode(error.to_problem())))
        self.flush()
        self.close()
        self.closed()

    def _greet(self, hello: Hello) -> None:
        try:
            if hello.protocol != PROTOCOL_VERSION:
                raise ProtocolError(
                    f"the instance speaks protocol {hello.protocol}, this control plane {PROTOCOL_VERSION}",
                    fix="use the same version of llama_deploy on both sides",
                )
            check_id("instance_id", hello.instance_id, self._engine.settings.id_length_max)
            try:
                definitions = _definitions.validate_json(hello.services)
            except ValidationError as error:
                raise InvalidRequestError("the instance's service definitions are not valid", why=str(error)) from error
            self._engine.registry.check_room(hello.instance_id, definitions)
            for definition in definitions:
                check_name(definition.service_name, self._engine.settings.id_length_max, own=self.in_process)
        except LlamaDeployError as error:
            self._refuse(error)
            return
        failpoint("gateway.hello")
        self._hello = hello
        self.instance_id = hello.instance_id
        self._services = {definition.service_name: definition for definition in definitions}
        registry = self._engine.registry
        before = registry.instances.get(self.instance_id)
        missing: list[str] = []
        if isinstance(before, Port) and before is not self:
            before.replaced()
            kept = {step.step_id for step in hello.held}
            missing = [step_id for step_id in before.held if step_id not in kept]
        self._gateway.returned(self.instance_id)
        self._engine.learn(registry.register(self, definitions))
        if missing:  # sent on the earlier connection and never received
            self._gateway.signals.lost(missing, self.instance_id, "its delivery was lost with a connection")
        self._engine.spawn(self._welcome(hello.held))

    async def _welcome(self, held: list[HeldStep]) -> None:
        """Take back what the instance still holds, tell it what is not its any more, then let work flow to it."""
        disowned: list[str] = []
        inputs: list[tuple[str, int, bytes]] = []
        for step in held:
            entry = await self._engine.cache.load(step.step_id.rpartition(":")[0], patient=True)
            if entry is not None:  # what is on its way to the store decides whether the step is the instance's
                await self._engine.wait_settled(entry)
            if self._is_closed:
                return
            known = entry.open.get(step.step_id) if entry is not None else None
            others = known is not None and known.claimed_by not in (None, self.instance_id)
            if known is None or known.attempt != step.attempt or known.parked or others:
                disowned.append(step.step_id)
                continue
            known.published = True
            self._engine.queue.withdraw([step.step_id])
            if entry is not None and self._engine.admission.gates:
                self._engine.admission.reclaimed(entry, known)
            self._engine.claim(self.instance_id, step.step_id, step.attempt, holds=True)
            self._hold(step.step_id, step.attempt, known.service)
            inputs += [(step.step_id, number, value) for number, value in enumerate(known.inputs, start=1)]
        if self._is_closed:
            return
        failpoint("gateway.before_welcome")
        settings = self._engine.settings
        self.post(Welcome(settings.heartbeat_s, settings.lease_s, disowned, settings.cancel_grace_s))
        for step_id, number, value in inputs:  # it knows those that it has by their numbers
            self.give_input(step_id, number, value)
        for definition in self._services.values():
            name = definition.service_name
            self._places.open(name, definition.concurrency, self._engine.queue.subscribe(name, self._take, credits=0))
        self._gateway.leases.watch()

    def _take(self, envelopes: list[Envelope]) -> None:
        """Deliveries from the queue: claim those that still stand and send them on."""
        for envelope in envelopes:
            failpoint("gateway.before_claim")
            held = self.held.get(envelope.step_id)
            wanted = held != envelope.attempt and self._engine.claim(
                self.instance_id, envelope.step_id, envelope.attempt
            )
            if wanted:
                failpoint("gateway.after_claim")
                self._hold(envelope.step_id, envelope.attempt, envelope.topic)
                self.post(msgspec.Raw(envelope.body))
            if held is not None or not wanted:  # no further place is taken
                subscription = self._places.subscriptions.get(envelope.topic)
                if subscription is not None:
                    subscription.grant(1)

    def _release(self, step_id: str) -> None:
        """The instance does not hold a step any more: it has room for another one."""
        if self.held.pop(step_id, None) is not None:
            self._places.free(step_id)

    def _hold(self, step_id: str, attempt: int, service: str) -> None:
        self._places.take(step_id, service)
        self.held[step_id] = attempt

    def _answer(self, operation: Answer) -> None:
        def done() -> None:
            failpoint("gateway.before_ack")
            self._acknowledge(operation.step_id)

        failpoint("gateway.before_answer")
        self._engine.answers.answer(self.instance_id, operation, done)
        if self.held.get(operation.step_id) == operation.attempt:
            self._release(operation.step_id)

    def _events(self, operation: Events) -> None:
        def done(count: int) -> None:
            self.post(EventsCommitted(operation.step_id, operation.attempt, count))

        self._engine.streams.append(operation.step_id, operation.attempt, operation.first, operation.events, done)

    def _park(self, operation: Park) -> None:
        def done(number: int) -> None:
            if number:
                self.post(ParkRefused(operation.step_id, number))
                self._give_inputs(operation.step_id, number)
            else:
                failpoint("gateway.parked")
                self._release(operation.step_id)
                self._acknowledge(operation.step_id)

        failpoint("gateway.before_park")
        self._gateway.signals.park(operation, done)

    def _give_inputs(self, step_id: str, first: int) -> None:
        """Hand over inputs that the instance does not have: its delivery was made before they were given."""
        entry = self._engine.cache.tasks.get(step_id.rpartition(":")[0])
        known = entry.open.get(step_id) if entry is not None else None
        for number, value in enumerate(known.inputs[first - 1 :] if known is not None else (), start=first):
            self.give_input(step_id, number, value)

    def _ask(self, operation: AskInput) -> None:
        self._gateway.signals.ask(operation, lambda: failpoint("gateway.asked"))

    def _remember(self, operation: Remember) -> None:
        def done(value: bytes, refusal: LlamaDeployError | None) -> None:
            problem = msgspec.json.encode(refusal.to_problem()) if refusal is not None else b""
            self.post(Remembered(operation.step_id, operation.attempt, operation.key, value, problem))

        self._engine.memos.remember(operation, done)

    # --- calls ------------------------------------------------------------------------------------------------------

    def _call(self, operation: Call) -> None:
        self._gateway.children.call(operation, self)

    def _end_call(self, operation: EndCall) -> None:
        self._gateway.children.stop_waiting(operation)
        self._places.insist(operation.step_id, operation.key)

    def lend(self, step_id: str, key: str) -> None:
        """A step waits for a task that it called: its place is free for others."""
        if not self._is_closed:
            self._places.lend(step_id, key)

    def give_back(self, returned: Returned) -> None:
        """Tell a step the outcome of a call, once it has a place again."""
        self._places.ask_back(returned.step_id, returned.key, partial(self.post, returned))

    def refuse_call(self, returned: Returned) -> None:
        """Tell a step that there is no such call."""
        self.post(returned)

    def _heartbeat(self, operation: Heartbeat) -> None:
        disowned = []
        for step in operation.held:
            if self.held.get(step.step_id) == step.attempt:
                if step.heartbeat is not None:
                    self._engine.claims.beaten(step)
                continue
            if step.step_id in self.held:
                continue  # it was said before the newer attempt came, which takes the place of this one there
            entry = self._engine.cache.tasks.get(step.step_id.rpartition(":")[0])
            known = entry.open.get(step.step_id) if entry is not None else None
            if entry is None or entry.settled_seq < entry.row.version:
                continue  # not known, or not yet: what makes it another's may be on its way to the store
            if known is None or known.attempt != step.attempt:
                disowned.append(step.step_id)
        self.post(Disowned(disowned))

    def _stopped(self, operation: Stopped) -> None:
        self._places.free(f"{operation.step_id}/{operation.attempt}")

    def _left(self, operation: LeftBehind) -> None:
        self._left_behind[operation.service] = operation.count

    def _credits(self, operation: Credits) -> None:
        self._places.set_capacity(operation.service, operation.capacity)

    def _goodbye(self, _: Goodbye) -> None:
        """The instance leaves on purpose; what it has not finished goes to others at once."""
        held = list(self.held)
        self._shut()
        self._engine.registry.unregister(self, lost=False)
        reason = f"instance {self.instance_id} handed it back"
        self._gateway.signals.lost(held, self.instance_id, reason, on_purpose=True)
        self.close()

    # --- ending -----------------------------------------------------------------------------------------------------

    def replaced(self) -> None:
        """The same instance is here over a newer connection, which takes over what this one holds."""
        self._shut()
        self.close()

    def closed(self, *, lost_now: bool = False) -> None:
        """The connection has ended. Repeating it does nothing."""
        if self._is_closed:
            return
        self._shut()
        if self._hello is not None and self._engine.registry.instances.get(self.instance_id) is self:
            self._gateway.dropped(self, lost_now=lost_now)

    def _shut(self) -> None:
        self.flush()
        self._is_closed = True
        self._gateway.ports.pop(self, None)
        self._lookups.transfers.close()
        self._places.close()
