"""One instance's connection: credits, what the instance holds, what it says and is told.

It takes deliveries from the queue while it has credits, hands operations over in frames, and turns what the instance
says into calls of the engine. It knows nothing of transports: whoever makes one gives it a function that sends a batch
of operations. All connections together are the gateway's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import TypeAdapter, ValidationError

from llama_deploy.control_plane.adoption import Adoption
from llama_deploy.control_plane.intake import Intake
from llama_deploy.control_plane.lookups import Lookups
from llama_deploy.control_plane.places import Places
from llama_deploy.control_plane.refusals import check_id
from llama_deploy.control_plane.registry import check_name
from llama_deploy.control_plane.stopping_code import StoppingCode
from llama_deploy.errors import (
    InvalidRequestError,
    LlamaDeployError,
    ProtocolError,
    ShardLostError,
)
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
    EndCall,
    Events,
    EventsCommitted,
    Goodbye,
    Heartbeat,
    HeldStep,
    Hello,
    InstanceOp,
    LedgerRead,
    LeftBehind,
    Park,
    ParkRefused,
    ReadLedger,
    Refused,
    Remember,
    Remembered,
    Returned,
    Stopped,
    Welcome,
)
from llama_deploy.messages.mesh import Adopted, Begun, Claimed, NotLed, Offer, Queued
from llama_deploy.runtime import failpoint
from llama_deploy.runtime.logs import get_logger
from llama_deploy.types import InstanceView, ServiceDefinition

log = get_logger("llama_deploy.gateway")

if TYPE_CHECKING:
    from llama_deploy.control_plane.gateway import Gateway

_definitions = TypeAdapter(list[ServiceDefinition])

Send = Callable[[list[Any]], None]
"""Sends a batch of operations, and deliveries as encoded `msgspec.Raw`; never blocks."""


Unserved = Callable[[list[str]], LlamaDeployError | None]
"""Why somebody may not serve these services, `None` where they may."""


class Port:
    """One instance's connection."""

    def __init__(self, gateway: Gateway, send: Send, close: Callable[[], None], *, in_process: bool) -> None:
        self._gateway = gateway
        self._engine = gateway.engine
        self._send = send
        self.close = close
        self.in_process = in_process
        self.unserved: Unserved = lambda _: None
        self.instance_id = ""
        self.held: dict[str, int] = {}
        self.last_seen_at = self._engine.clock.now()
        self.connected_at = self.last_seen_at
        self._hello: Hello | None = None
        self.definitions: list[ServiceDefinition] = []
        self._places = Places()
        self.stopping = StoppingCode(self._engine, self._places)
        self._intake = Intake(self._engine, self, self._places, self._hold)
        self._left_behind: dict[str, int] = {}
        self._outgoing: list[Any] = []
        self._flush_scheduled = False
        self._is_closed = self._welcomed = False
        self.adoption = Adoption(self._engine, self, self._hold, lambda: self._is_closed)
        self._lookups = Lookups(self._engine, self)
        self._handlers: dict[type, Callable[[Any], None]] = {
            Answer: self._lookups.before(self._where_led(self._answer)),
            Events: self._lookups.before(self._where_led(self._events)),
            Park: self._lookups.before(self._where_led(self._unless_anothers(self._park))),
            AskInput: self._where_led(self._unless_anothers(self._ask)),
            Remember: self._where_led(self._unless_anothers(self._remember)),
            ReadLedger: self._where_led(self._unless_anothers(self._read_ledger)),
            Call: self._where_led(self._unless_anothers(self._call)),
            Offer: lambda operation: self._engine.spawn(self._offered(operation.held)),
            Queued: lambda operation: self._engine.claims.queued(operation.step_id, operation.attempt),
            Begun: lambda operation: self._engine.claims.begun(operation.step_id, operation.attempt),
            EndCall: self._end_call,
            Heartbeat: self._heartbeat,
            Stopped: self._stopped,
            LeftBehind: self._left,
            Credits: self._credits,
            Goodbye: self._goodbye,
            **self._lookups.transfers.handlers,
        }

    # --- what the registry and the engine use -----------------------------------------------------------------------

    @property
    def release(self) -> str:
        """The release that the instance says it runs; empty for none."""
        return self._hello.release if self._hello is not None else ""

    def change_topics(self) -> None:
        """Take steps from where those of its release wait by now."""
        self._intake.change_topics()

    def cancel(self, step_id: str, reason: str) -> None:
        """Tell the instance to stop a step that it holds."""
        if step_id in self.held:
            self.post(CancelStep(step_id, reason))
            self.stopping.take_away(step_id, self.held.pop(step_id))

    def give_input(self, step_id: str, number: int, value: bytes) -> None:
        """Hand a person's input to a step that the instance holds."""
        self.post(DeliverInput(step_id, number, value))

    @property
    def stays(self) -> bool:
        """Whether it lives in the process of a control plane, which it cannot leave: of this one, or of another."""
        return self.in_process or (self._hello is not None and self._hello.stays)

    def capacity(self, service: str) -> int:
        """Steps of a service that the instance takes at once."""
        return self._places.capacities.get(service, 0)

    def view(self, service: str) -> InstanceView:
        """The instance as the API shows it."""
        return InstanceView(
            instance_id=self.instance_id,
            host=self._hello.host if self._hello else "",
            pid=self._hello.pid if self._hello else None,
            release=self.release or None,
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
            check_id("release", hello.release or None, self._engine.settings.id_length_max)
            try:
                definitions = _definitions.validate_json(hello.services)
            except ValidationError as error:
                raise InvalidRequestError("the instance's service definitions are not valid", why=str(error)) from error
            self._engine.registry.check_room(hello.instance_id, definitions)
            for definition in definitions:
                check_name(definition.service_name, self._engine.settings.id_length_max, own=self.in_process)
            if (refusal := self.unserved([definition.service_name for definition in definitions])) is not None:
                raise refusal
        except LlamaDeployError as error:
            self._refuse(error)
            return
        failpoint("gateway.hello")
        self._hello = hello
        self.instance_id = hello.instance_id
        self.definitions = definitions
        registry = self._engine.registry
        before = registry.instances.get(self.instance_id)
        missing: list[str] = []
        if isinstance(before, Port) and before is not self:
            before.replaced()
            kept = {step.step_id for step in hello.held}
            missing = [step_id for step_id in before.adoption.claimed() if step_id not in kept]
        self._gateway.returned(self.instance_id)
        self._engine.learn(registry.register(self, definitions))
        if missing:  # sent on the earlier connection and never received
            self._gateway.signals.lost(missing, self.instance_id, "its delivery was lost with a connection")
        self._engine.spawn(self._welcome(hello.held))

    @property
    def meshed(self) -> bool:
        """Whether the instance connects to every control plane, and is greeted."""
        return self._welcomed and self._hello is not None and self._hello.mesh

    def let_go(self, task_ids: Collection[str]) -> None:
        """Other control planes lead these tasks now."""
        gone = [step_id for step_id in self.held if step_id.rpartition(":")[0] in task_ids]
        for step_id in gone:
            self._release(step_id)
        if gone and not self.meshed:  # it knows nobody else, and the step begins anew elsewhere
            self.post(Disowned(gone))

    def _where_led(self, then: Callable[[Any], None]) -> Callable[[Any], None]:
        """`then`, for steps whose tasks are led here; the instance is told to ask elsewhere about the others."""
        if not self._engine.leadership.shared:
            return then

        def handle(operation: Any) -> None:
            if operation.step_id.rpartition(":")[0] in self._engine.cache.tasks:
                then(operation)
            else:
                self._engine.spawn(self._look_who_leads(operation, then))

        return handle

    def _unless_anothers(self, then: Callable[[Any], None]) -> Callable[[Any], None]:
        """`then`, for attempts that no other instance has: of those this one is told to let go."""

        def handle(operation: Any) -> None:
            entry = self._engine.cache.tasks.get(operation.step_id.rpartition(":")[0])
            known = entry.open.get(operation.step_id) if entry is not None else None
            current = known is not None and known.attempt == operation.attempt
            if entry is not None and known is not None and current and entry.is_anothers(known, self.instance_id):
                self.post(Disowned([operation.step_id]))
            else:
                then(operation)

        return handle

    async def _look_who_leads(self, operation: Any, then: Callable[[Any], None]) -> None:
        try:
            await self._engine.cache.load(operation.step_id.rpartition(":")[0], patient=True)
        except ShardLostError:
            self._release(operation.step_id)
            step_ids = [operation.step_id]
            self.post(NotLed(step_ids) if self.meshed else Disowned(step_ids))
            return
        if not self._is_closed:
            then(operation)

    async def _offered(self, held: list[HeldStep]) -> None:
        """Adopt what the instance has from a control plane that does not lead it any more."""
        adopted, disowned, inputs = await self.adoption.sort(held)
        if self._is_closed:
            return
        if adopted or disowned:
            failpoint("gateway.adopted")
            self.post(Adopted(adopted, disowned))
        for step_id, number, value in inputs:
            self.give_input(step_id, number, value)

    async def _welcome(self, held: list[HeldStep]) -> None:
        """Take back what the instance still holds, tell it what is not its any more, then let work flow to it."""
        claimed = self._engine.leadership.statistics.claimed
        adopted, disowned, inputs = await self.adoption.sort(held)
        if self._is_closed:
            return
        failpoint("gateway.before_welcome")
        settings = self._engine.settings
        planes = self._gateway.planes()
        welcome = Welcome(
            settings.heartbeat_s,
            settings.lease_s,
            disowned,
            settings.cancel_grace_s,
            adopted=None if planes is None else adopted,
            planes=planes,
            plane="" if planes is None else self._engine.leadership.url,
            redact=list(self._engine.redact.patterns) or None,
        )
        self.post(welcome)
        self._welcomed = True
        if self.meshed and self._engine.leadership.statistics.claimed != claimed:  # while it was looked at
            self.post(Claimed())
        for step_id, number, value in inputs:  # it knows those that it has by their numbers
            self.give_input(step_id, number, value)
        self._intake.open(definitions=self.definitions)
        self._gateway.leases.watch()

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
        if operation.runs_on and self.held.get(operation.step_id) == operation.attempt:
            self.stopping.take_away(operation.step_id, self.held.pop(operation.step_id))
        self._engine.answers.answer(self.instance_id, operation, done)
        if self.held.get(operation.step_id) == operation.attempt:
            self._release(operation.step_id)
        elif not operation.runs_on:  # taken away meanwhile: what has answered does not run any more
            self.stopping.ended(operation.step_id, operation.attempt)

    def _events(self, operation: Events) -> None:
        def done(count: int) -> None:
            self.post(EventsCommitted(operation.step_id, operation.attempt, count))

        op = operation
        by, holds = self.instance_id, self.held.get(op.step_id) == op.attempt
        self._engine.streams.append(op.step_id, op.attempt, op.first, op.events, done, by=by, holds=holds)

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
        if self.held.get(operation.step_id) != operation.attempt:
            self.stopping.ended(operation.step_id, operation.attempt)
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

    def _read_ledger(self, operation: ReadLedger) -> None:
        def done(page: bytes, refusal: LlamaDeployError | None) -> None:
            problem = msgspec.json.encode(refusal.to_problem()) if refusal is not None else b""
            self.post(LedgerRead(operation.step_id, operation.attempt, operation.name, operation.first, page, problem))

        self._engine.ledgers.read(operation, done)

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

    def ask_back(self, step_id: str, key: str, go_on: Callable[[], None]) -> None:
        """A call has ended: go on once the step has a place again. After a reconnect the instance asks anew."""
        if not self._is_closed:
            self._places.ask_back(step_id, key, go_on)

    def tell(self, returned: Returned) -> None:
        """Tell a step what came of a call."""
        self.post(returned)

    def _heartbeat(self, operation: Heartbeat) -> None:
        disowned = []
        for step in operation.held if self._engine.leadership.certain else ():
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
            if known is None or known.attempt != step.attempt or known.claimed_by not in (None, self.instance_id):
                disowned.append(step.step_id)
        self.post(Disowned(disowned))

    def _stopped(self, operation: Stopped) -> None:
        self.stopping.ended(operation.step_id, operation.attempt)

    def _left(self, operation: LeftBehind) -> None:
        self._left_behind[operation.service] = operation.count

    def _credits(self, operation: Credits) -> None:
        self._places.set_capacity(operation.service, operation.capacity)

    def _goodbye(self, _: Goodbye) -> None:
        """The instance leaves on purpose; what it has not finished goes to others at once."""
        held = self.adoption.claimed()
        self._shut()
        self._engine.registry.unregister(self, lost=False)
        self.stopping.gone()
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
        self._intake.close()
