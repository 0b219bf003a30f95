"""How operations become frames: in order, none lost, none too large for the other side."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.messages import frames
from llama_deploy.messages.frames import (
    Accepted,
    Acknowledged,
    Answer,
    AskInput,
    CancelStep,
    Deliver,
    DeliverInput,
    Ended,
    Events,
    Forget,
    Heartbeat,
    HeldStep,
    Hello,
    Items,
    Park,
    Submit,
    Subscribe,
    Wait,
    Welcome,
    decode_client_frame,
    decode_control_frame,
    decode_deliver,
    decode_instance_frame,
    decode_reply_frame,
    encode_op,
    frames_of,
    pieces,
)

TARGET = 1000

DELIVERY = Deliver("t:1", 1, "s", "new_task", "t", "t", b"{}", 600.0, [b"1"], b"snapshot")


@pytest.fixture(autouse=True)
def _small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_BYTES_TARGET", TARGET)


@pytest.mark.parametrize(
    ("decode", "operations"),
    [
        (
            decode_instance_frame,
            [
                Hello(1, "i", b"[]", [HeldStep("t:1", 2)], 7, "host"),
                Answer("t:1", 1, b"{}", 0.5, 1.5, 3, [b"1"]),
                Events("t:1", 1, 0, [b"1", b"2"]),
                Park("t:1", 1, b"{}", "answer", None, 0),
                AskInput("t:1", 1, b"{}"),
                Heartbeat([]),
            ],
        ),
        (
            decode_control_frame,
            [
                Welcome(1.0, 2.0, ["t:1"]),
                DELIVERY,
                Acknowledged(["t:1"]),
                CancelStep("t:1", "x"),
                DeliverInput("t:1", 1, b"1"),
            ],
        ),
        (decode_client_frame, [Submit(1, b"{}", True), Wait(2, "t"), Subscribe(3, "t", 0), Forget(4)]),
        (decode_reply_frame, [Accepted(1, "t"), Ended(1, "t", "completed", b"{}"), Items(2, 0, [b"1"])]),
    ],
)
def test_what_is_sent_is_what_arrives(decode: Any, operations: list[Any]) -> None:
    assert [op for frame in frames_of(operations) for op in decode(frame)] == operations
    raw = [msgspec.Raw(encode_op(op)) for op in operations]
    assert [op for frame in frames_of(raw) for op in decode(frame)] == operations


def test_a_delivery_as_a_queue_carries_it() -> None:
    assert decode_deliver(encode_op(DELIVERY)) == DELIVERY


@given(st.lists(st.integers(0, 3 * TARGET), max_size=40))
def test_frames_are_of_bounded_size_and_keep_the_order(sizes: list[int]) -> None:
    operations = [Submit(number, b"x" * size, False) for number, size in enumerate(sizes, start=1)]
    made = list(frames_of(operations))
    assert [op for frame in made for op in decode_client_frame(frame)] == operations
    for frame in made:
        held = decode_client_frame(frame)
        assert len(held) == 1 or len(frame) <= TARGET, "only a large operation alone makes a large frame"
    assert len(made) <= 1 + sum(len(op.definition) + 64 for op in operations) * 2 // TARGET


@given(st.lists(st.integers(0, 3 * TARGET), max_size=40))
def test_pieces_are_of_bounded_size_and_keep_the_numbers(sizes: list[int]) -> None:
    items = [bytes(size) for size in sizes]
    made = list(pieces(items))
    position = 0
    for first, part in made:
        assert first == position
        assert part
        assert len(part) == 1 or sum(map(len, part)) <= TARGET
        position += len(part)
    assert [item for _, part in made for item in part] == items


def test_every_operation_with_a_payload_is_measured() -> None:
    """An operation that is not measured would be sent in frames that nobody reads."""
    for operation in (
        Answer("t:1", 1, b"x" * TARGET, 0.0, 0.0),
        Answer("t:1", 1, b"", 0.0, 0.0, 0, [b"x" * TARGET]),
        Events("t:1", 1, 0, [b"x" * TARGET]),
        Park("t:1", 1, b"x" * TARGET, "answer", None, 0),
        Park("t:1", 1, b"", "redeliver", b"x" * TARGET, 0),
        AskInput("t:1", 1, b"x" * TARGET),
        DeliverInput("t:1", 1, b"x" * TARGET),
        Submit(1, b"x" * TARGET, False),
        Ended(1, "t", "completed", b"x" * TARGET),
        Items(1, 0, [b"x" * TARGET]),
        msgspec.Raw(encode_op(Submit(1, b"x" * TARGET, False))),
    ):
        assert len(list(frames_of([operation, operation]))) == 2, operation
