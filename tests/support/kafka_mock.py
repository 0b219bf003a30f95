"""A program: the mock cluster of librdkafka, which speaks Kafka's protocol and keeps everything in memory.

It is part of the library that `confluent-kafka` brings, and is reached through its C interface. It writes its port to
the file that it is given. SIGUSR1 takes the broker down with all of its connections, SIGUSR2 brings it up again with
what it had.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from importlib.metadata import files
from pathlib import Path

PRODUCER = 0
BROKER = 1


def library() -> ctypes.CDLL:
    """Librdkafka, as the wheel brings it."""
    found = next(file for file in files("confluent-kafka") or () if "librdkafka" in file.name)
    return ctypes.CDLL(str(found.locate()))


def main(port_file: Path) -> None:
    """Run until SIGTERM."""
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    kafka = library()
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(kafka, name).restype = ctypes.c_void_p
    kafka.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    said = ctypes.create_string_buffer(512)
    handle = kafka.rd_kafka_new(PRODUCER, ctypes.c_void_p(kafka.rd_kafka_conf_new()), said, ctypes.c_size_t(512))
    assert handle, said.value
    cluster = ctypes.c_void_p(kafka.rd_kafka_mock_cluster_new(ctypes.c_void_p(handle), BROKER))
    kafka.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, ctypes.c_int32(0))
    port_file.write_text(kafka.rd_kafka_mock_cluster_bootstraps(cluster).decode().rpartition(":")[2])
    while (asked := signal.sigwait([signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])) != signal.SIGTERM:
        change = kafka.rd_kafka_mock_broker_set_down if asked == signal.SIGUSR1 else kafka.rd_kafka_mock_broker_set_up
        change(cluster, ctypes.c_int32(BROKER))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
