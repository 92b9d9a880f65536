"""Apache Kafka for the tests: fetched from Maven once, started in KRaft mode on free ports; it must never outlive the tests.

Needs Java and Maven. Jars are kept in `~/.cache/waypost-kafka/<version>`, or in the directory named by `WAYPOST_TEST_KAFKA_LIB`.
"""

from __future__ import annotations

import base64
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streams.brokers import free_port
from streams.guarded import GuardedProcess
from tests.support import PATIENCE_SECONDS

HERE = Path(__file__).parent / "kafka"
LIB_ENV = "WAYPOST_TEST_KAFKA_LIB"
WAY_OUT = 'Install them (Debian: apt install openjdk-17-jre-headless maven), or leave these tests out with: pytest -m "not kafka"'


class KafkaUnavailable(RuntimeError):
    """Apache Kafka cannot be had here; the message says why and the way out."""


def version() -> str:
    """The version of Kafka that pom.xml asks for."""
    found = re.search(r"kafka_2\.13</artifactId><version>([^<]+)<", (HERE / "pom.xml").read_text())
    assert found is not None
    return found.group(1)


def java() -> str:
    """Path of the java command. Raises KafkaUnavailable."""
    if (path := shutil.which("java")) is None:
        raise KafkaUnavailable(f"tests on Apache Kafka need Java, and `java` is not on the PATH. {WAY_OUT}")
    return path


def jars() -> Path:
    """The directory with Kafka's jars, fetched from Maven on first use. Raises KafkaUnavailable."""
    if named := os.environ.get(LIB_ENV):
        if not any(Path(named).glob("kafka_*.jar")):
            raise KafkaUnavailable(f"{LIB_ENV} names {named!r}, where there are no jars of Kafka; correct it or unset it")
        return Path(named)
    lib = Path.home() / ".cache" / "waypost-kafka" / version()
    lib.parent.mkdir(parents=True, exist_ok=True)
    with (lib.parent / "lock").open("w") as lock:  # two test runs at once: the second waits for the first one's download
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not lib.is_dir():
            _download(lib)
    return lib


def _download(lib: Path) -> None:
    if (maven := shutil.which("mvn")) is None:
        raise KafkaUnavailable(f"tests on Apache Kafka need Maven to fetch it, and `mvn` is not on the PATH. {WAY_OUT}")
    with tempfile.TemporaryDirectory(dir=lib.parent) as temp:
        shutil.copy(HERE / "pom.xml", temp)
        done = subprocess.run([maven, "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={temp}/lib"],
                              cwd=temp, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise KafkaUnavailable(f"Maven could not fetch Apache Kafka {version()}:\n{(done.stdout + done.stderr)[-2000:]}\n{WAY_OUT}")
        os.rename(f"{temp}/lib", lib)


@dataclass(frozen=True)
class Login:
    """What a client needs for the listener with TLS and SASL."""

    username: str
    password: str
    cafile: Path


class KafkaBroker:
    """One Apache Kafka node. `start()` returns the bootstrap string; the data stays in *directory* until that is removed.

    *secure*: a second listener, SASL_SSL with PLAIN and SCRAM, at `secure_bootstrap`, for `login`. *host*: the address to listen on. *session_ms*:
    so long it may be silent before it is fenced, and so long it waits to be taken again when it was killed. *lasting*: Java compiles it as
    thoroughly as one that runs for days; without, it starts with half the work, and is slower where it is busy for long. *properties*:
    further lines of its server.properties, which win over those of the template.
    """

    kind = "kafka"

    def __init__(
        self, directory: Path, *, heap_mb: int = 512, secure: bool = False, host: str = "127.0.0.1", session_ms: int = 3000, lasting: bool = False,
        properties: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.directory = directory
        self.host = host
        self.port, self.controller_port, self.secure_port = free_port(), free_port(), free_port()
        self.node, self.replicas, self.cluster_id = 1, 1, base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self.voters = f"1@127.0.0.1:{self.controller_port}"
        self._heap_mb, self._session_ms, self._lasting = heap_mb, session_ms, lasting
        self._secure = secure
        self._properties = "".join(f"{name}={value}\n" for name, value in (properties or {}).items())
        self._process: GuardedProcess | None = None
        self.login = Login("alice", "al1ce-secret", directory / "ca.pem")

    @property
    def bootstrap(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def secure_bootstrap(self) -> str:
        return f"localhost:{self.secure_port}"

    @property
    def log(self) -> Path:
        return self.directory / "kafka.log"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> str:
        """Starts (or starts again, with the data it had) and waits until it serves. Raises KafkaUnavailable."""
        self.launch()
        return self.serves()

    def launch(self) -> None:
        """Starts it and waits for nothing."""
        command = [java(), f"-Xmx{self._heap_mb}m", "-XX:+UseSerialGC", *([] if self._lasting else ["-XX:TieredStopAtLevel=1"]),
                   "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{jars()}/*"]
        properties = self.directory / "server.properties"
        if not properties.exists():
            self._prepare(properties, command)
        self._process = GuardedProcess([*command, "kafka.Kafka", str(properties)], log=self.log, cwd=self.directory)

    def serves(self) -> str:
        """Waits until it does. Raises KafkaUnavailable."""
        assert self._process is not None, "not started"
        until = time.monotonic() + PATIENCE_SECONDS
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 200})
        while True:
            try:
                if admin.list_topics(timeout=1.0).brokers:
                    return self.bootstrap
            except KafkaException:
                pass  # not listening yet: the loop's clock decides
            if not self._process.alive or time.monotonic() > until:
                tail = self._process.tail()
                self._process.kill()
                raise KafkaUnavailable(f"Apache Kafka did not start; its log, {self.log}, ends:\n{tail}")
            time.sleep(0.1)

    def _prepare(self, properties: Path, command: list[str]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        template = Template((HERE / "server.properties").read_text())
        properties.write_text(template.substitute(
            node=self.node, voters=self.voters, replicas=self.replicas, host=self.host,
            session_ms=self._session_ms,
            port=self.port, controller_port=self.controller_port, data_dir=self.directory / "data",
            secure_listener=f",SASL_SSL://localhost:{self.secure_port}" if self._secure else "",
            secure=self._secure_properties() if self._secure else "") + self._properties)
        scram = [f"{name}=[name={self.login.username},password={self.login.password}]" for name in ("SCRAM-SHA-256", "SCRAM-SHA-512")]
        _run([*command, "kafka.tools.StorageTool", "format", f"--cluster-id={self.cluster_id}", "-c", str(properties),
              *(word for text in scram if self._secure for word in ("--add-scram", text))])

    def _secure_properties(self) -> str:
        """A certificate of our own making for `localhost`, and the users."""
        if (keytool := shutil.which("keytool")) is None:
            raise KafkaUnavailable(f"tests on TLS need Java's `keytool`, which is not on the PATH. {WAY_OUT}")
        store, password = self.directory / "broker.p12", "store-secret"
        common = ["-keystore", str(store), "-storetype", "PKCS12", "-storepass", password, "-alias", "broker"]
        _run([keytool, "-genkeypair", *common, "-keyalg", "EC", "-dname", "CN=localhost", "-ext", "san=dns:localhost", "-validity", "2"])
        _run([keytool, "-exportcert", "-rfc", *common, "-file", str(self.login.cafile)])
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        return "\n".join([
            f"ssl.keystore.location={store}", "ssl.keystore.type=PKCS12", f"ssl.keystore.password={password}",
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            f'listener.name.sasl_ssl.plain.sasl.jaas.config={plain} user_{self.login.username}="{self.login.password}";',
            # takes tokens that nobody signed: for tests
            "listener.name.sasl_ssl.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;",
            f"listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={scram}",
            f"listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={scram}"])

    def stop(self) -> None:
        """Ends it in good order (its log says so); safe to call again."""
        if self._process is not None:
            self._process.stop(timeout_seconds=20.0)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()

    def pause(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing."""
        assert self._process is not None
        self._process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.signal(signal.SIGCONT)

    def restart(self) -> str:
        """Ends it in good order and starts it again, same ports, same data."""
        self.stop()
        return self.start()


class KafkaCluster:
    """Three nodes, each broker and controller: what is acknowledged by all replicas outlives the loss of one."""

    def __init__(self, directory: Path, *, heap_mb: int = 256) -> None:
        self.nodes = [KafkaBroker(directory / f"node-{number}", heap_mb=heap_mb) for number in (1, 2, 3)]
        voters = ",".join(f"{number}@127.0.0.1:{node.controller_port}" for number, node in enumerate(self.nodes, 1))
        for number, node in enumerate(self.nodes, 1):
            node.node, node.replicas, node.voters, node.cluster_id = number, 3, voters, self.nodes[0].cluster_id

    @property
    def bootstrap(self) -> str:
        return ",".join(node.bootstrap for node in self.nodes)

    def start(self) -> str:
        """Starts all and waits until all serve. Raises KafkaUnavailable."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.serves()
        return self.bootstrap

    def kill(self) -> None:
        """SIGKILL to all."""
        for node in self.nodes:
            node.kill()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KafkaUnavailable(f"`{' '.join(command[:1] + command[-6:])}` failed:\n{(done.stdout + done.stderr)[-2000:]}")
