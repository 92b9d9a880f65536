"""Settings: where values come from, what is refused and how it is said, and that the client libraries take what we make of them."""

import asyncio
import base64
import http.server
import json
import ssl
import threading
import time
from typing import ClassVar

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streams.settings import (
    MASK,
    TABLE,
    Settings,
    SettingsError,
    aiokafka_kwargs,
    env_name,
    flag_name,
    librdkafka_config,
)
from streams.tokens import TokenError
from tests.support import PATIENCE_SECONDS

# ---------------------------------------------------------------- sources


def test_flag_wins_over_environment_over_file_over_default(tmp_path):
    file = tmp_path / "waypost.toml"
    file.write_text('partitions = 8\nmemory_mb = 512\ngroup = "from-file"\nbroker = ["a:1", "b:2"]\n')
    environ = {"WAYPOST_CONFIG": str(file), "WAYPOST_MEMORY_MB": "1024", "WAYPOST_GROUP": "from-environment"}
    settings = Settings.load({"group": "from-flag", "console_port": None}, environ=environ)
    assert (settings.partitions, settings.memory_mb, settings.group, settings.console_port) == (8, 1024, "from-flag", 8080)
    assert settings.broker == ("a:1", "b:2")
    assert settings.bootstrap == "a:1,b:2"
    assert [settings.origin_of(name) for name in ("partitions", "memory_mb", "group", "console_port")] == [
        f"file {file}", "environment WAYPOST_MEMORY_MB", "flag --group", "default"]


def test_the_process_environment_is_read(monkeypatch):
    monkeypatch.setenv("WAYPOST_PARTITIONS", "16")
    monkeypatch.delenv("WAYPOST_CONFIG", raising=False)
    assert Settings.load().partitions == 16


def test_an_empty_variable_is_not_set():
    assert Settings.load(environ={"WAYPOST_PARTITIONS": "", "WAYPOST_CONFIG": ""}).partitions == 4


def test_every_setting_can_be_written_in_the_environment_and_read_back():
    """What `environment()` hands to a child process loads to the same settings."""
    settings = Settings.load({"broker": "kafka://a:1, b:2", "security_protocol": "sasl_plaintext", "sasl_mechanism": "scram-sha-256",
                              "sasl_username": "u", "sasl_password": "p,w", "ssl_check_hostname": False, "max_future_hours": 1.5,
                              "workers": ["http://a:1/", "http://b:2"], "data_dir": "/x y", "log_format": "JSON"}, environ={})
    again = Settings.load(environ=settings.environment())
    assert again.model_dump() == settings.model_dump()
    assert again.workers == ("http://a:1", "http://b:2")
    assert again.sasl_password is not None
    assert again.sasl_password.get_secret_value() == "p,w"


def test_every_default_in_the_table_loads_to_the_default():
    written = {row.env: row.default for row in TABLE}
    assert Settings.load(environ=written).model_dump() == Settings.load(environ={}).model_dump()


def test_the_table_names_flag_and_variable():
    assert [row.name for row in TABLE] == list(Settings.model_fields)
    assert all(row.description and row.env == env_name(row.name) for row in TABLE)
    assert (flag_name("sasl_password"), env_name("sasl_password")) == ("--sasl-password", "WAYPOST_SASL_PASSWORD")
    secrets = {"sasl_password", "ssl_password", "oidc_client_secret", "api_token", "internal_secret", "session_secret"}
    assert {row.name for row in TABLE if row.secret} == secrets


def test_secrets_are_masked_wherever_settings_are_shown():
    settings = Settings.load({"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "u",
                              "sasl_password": "hunter2"}, environ={})
    shown = {row.name: row.value for row in settings.rows()}
    assert shown["sasl_password"] == MASK
    assert shown["ssl_password"] == ""
    assert "hunter2" not in repr(settings) + str(settings.rows())


def test_a_changed_copy_remembers_who_changed_it():
    settings = Settings.load({"partitions": 8}, environ={}).replaced("embedded broker", broker="127.0.0.1:4711")
    assert (settings.bootstrap, settings.origin_of("broker"), settings.origin_of("partitions")) == (
        "127.0.0.1:4711", "embedded broker", "flag --partitions")
    with pytest.raises(SettingsError, match="not host:port"):
        settings.replaced("test", broker="nonsense")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(("environ", "sentence"), [
    ({"WAYPOST_PARTITIONS": "four"}, "partitions = 'four' (environment WAYPOST_PARTITIONS): Input should be a valid integer"),
    ({"WAYPOST_PARTITIONS": "0"}, "partitions = '0' (environment WAYPOST_PARTITIONS): Input should be greater than or equal to 1"),
    ({"WAYPOST_BROKER": "kafka"}, "broker = 'kafka' (environment WAYPOST_BROKER): 'kafka' is not host:port; write for example"),
    ({"WAYPOST_BROKER": "a:1,b:99999"}, "'b:99999' is not host:port"),
    ({"WAYPOST_LOG_LEVEL": "loud"}, "log_level = 'LOUD' (environment WAYPOST_LOG_LEVEL): Input should be 'DEBUG', 'INFO'"),
    ({"WAYPOST_TOPIC_PREFIX": "a b"}, "topic_prefix = 'a b'"),
    ({"WAYPOST_WORKERS": "10.0.0.1:80"}, "'10.0.0.1:80' is not a URL; write for example http://"),
    ({"WAYPOST_TRUSTED_PROXIES": "10.0.0.1, proxy"}, "trusted_proxies = '10.0.0.1, proxy' (environment WAYPOST_TRUSTED_PROXIES): 'proxy' does not"),
    ({"WAYPOST_TRUSTED_PROXIES": "10.0.0.1/8"}, "has host bits set; write addresses and networks, for example"),
    ({"WAYPOST_TRUSTED_PROXIES": "*"}, "write addresses and networks, for example 10.0.0.7"),
    ({"WAYPOST_TRUSTED_PROXIES": "0.0.0.0/0"}, "0.0.0.0/0 is every address"),
    ({"WAYPOST_WORKER_ADVERTISED_URL": "host"}, "worker_advertised_url = 'host'"),
    ({"WAYPOST_SSL_CAFILE": "/nowhere.pem", "WAYPOST_SECURITY_PROTOCOL": "SSL"}, "ssl_cafile = '/nowhere.pem' (environment "
     "WAYPOST_SSL_CAFILE): there is no such file; name a PEM file"),
    ({"WAYPOST_SECURITY_PROTOCOL": "SASL_SSL"}, "needs sasl_mechanism, sasl_username and sasl_password; set all three"),
    ({"WAYPOST_SASL_MECHANISM": "PLAIN"}, "sasl_mechanism is set, but security_protocol PLAINTEXT does not log in; set"),
    ({"WAYPOST_SSL_CAFILE": __file__}, "TLS files are set, but security_protocol PLAINTEXT does not encrypt; set"),
    ({"WAYPOST_SSL_CERTFILE": __file__, "WAYPOST_SECURITY_PROTOCOL": "SSL"}, "ssl_certfile and ssl_keyfile belong together"),
    ({"WAYPOST_HEARTBEAT_SECONDS": "5"}, "more than a third of session_timeout_seconds 8"),
    ({"WAYPOST_CONSOLE_PORT": "tcp://10.0.0.9:80"}, "set enableServiceLinks to false"),
    ({"WAYPOST_CONSOLE_PORTT": "80"}, "WAYPOST_CONSOLE_PORTT (environment) is not a setting; did you mean WAYPOST_CONSOLE_PORT?"),
    ({"WAYPOST_PORTT": "80"}, "WAYPOST_PORTT (environment) is not a setting; `waypost config` lists all of them"),
    ({"WAYPOST_PORT": "tcp://10.0.0.9:80"}, "WAYPOST_PORT (environment) is not a setting. It looks like a service link"),
    ({"WAYPOST_PORT_80_TCP_ADDR": "10.0.0.9"}, "set enableServiceLinks to false"),
    ({"WAYPOST_KAFKA_SERVICE_HOST": "10.0.0.9"}, "set enableServiceLinks to false"),
    ({"WAYPOST_BROKER": "::1:9092"}, "'::1:9092' is not host:port; write for example [::1]:9092"),
    ({"WAYPOST_BROKER": "[::1]"}, "is not host:port; write for example [::1]:9092"),
    ({"WAYPOST_BROKER": "a b:9092"}, "'a b:9092' is not host:port"),
    ({"WAYPOST_DATA_DIR": "~no-such-user/x"}, "write the path from / on"),
    ({"WAYPOST_CONFIG": "/nowhere.toml"}, "WAYPOST_CONFIG names '/nowhere.toml', which cannot be read"),
])
def test_what_cannot_be_used_is_refused_with_name_value_origin_and_way_out(environ, sentence):
    with pytest.raises(SettingsError) as refused:
        Settings.load(environ=environ)
    assert sentence.lower() in str(refused.value).lower()


NUMBERS = [row.name for row in TABLE if row.type in ("integer", "number")]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_finite_and_no_truth_value(name, tmp_path):
    """TOML has `inf`, `nan` and `true`; pydantic would read the last as 1."""
    file = tmp_path / "waypost.toml"
    for written in ("inf", "-inf", "nan", "true", "false"):
        file.write_text(f"{name} = {written}\n")
        with pytest.raises(SettingsError, match=f"^{name}"):
            Settings.load(environ={"WAYPOST_CONFIG": str(file)})
        with pytest.raises(SettingsError, match=f"^{name}"):
            Settings.load(environ={env_name(name): written})


@pytest.mark.parametrize("name", [row.name for row in TABLE if row.type != "true or false"])
def test_only_truth_values_take_true(name):
    with pytest.raises(SettingsError, match="true is not of the type of this setting"):
        Settings.load({name: True}, environ={})


def test_a_leading_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "waypost.toml").write_text('data_dir = "~/state"\nusers_file = "~/users.toml"\n')
    settings = Settings.load(environ={"WAYPOST_CONFIG": "~/waypost.toml"})
    assert (settings.data_dir, settings.users_file) == (tmp_path / "state", tmp_path / "users.toml")
    assert Settings.load(environ={"WAYPOST_DATA_DIR": "~/state"}).data_dir == tmp_path / "state"
    assert all(row.type != "path" or row.name in {"data_dir", "users_file", "ssl_cafile", "ssl_certfile", "ssl_keyfile"} for row in TABLE)


def test_an_address_in_brackets_is_a_broker():
    assert Settings.load({"broker": "[::1]:9092,[fe80::1%eth0]:9093,kafka-1.example:9092"}, environ={}).bootstrap == (
        "[::1]:9092,[fe80::1%eth0]:9093,kafka-1.example:9092")


def test_variables_of_the_test_suite_are_no_settings():
    assert Settings.load(environ={"WAYPOST_TEST_RUN": "1", "WAYPOSTS": "2", "OTHER": "3"}).rows() == Settings.load(environ={}).rows()


def test_mistakes_in_the_file_are_refused(tmp_path):
    file = tmp_path / "waypost.toml"
    file.write_text("partitoins = 4\n")
    with pytest.raises(SettingsError, match=r"partitoins \(file .*waypost.toml\) is not a setting; `waypost config` lists"):
        Settings.load(environ={"WAYPOST_CONFIG": str(file)})
    file.write_text("partitions = \n")
    with pytest.raises(SettingsError, match=r"waypost.toml is not TOML: .* line 1"):
        Settings.load(environ={"WAYPOST_CONFIG": str(file)})


def test_all_mistakes_are_said_at_once_and_no_secret_is_repeated():
    with pytest.raises(SettingsError) as refused:
        Settings.load({"partitions": -1, "sasl_password": ["hunter2"], "memory_mb": "x"}, environ={})
    assert str(refused.value).count("\n") == 2
    assert "hunter2" not in str(refused.value)


def test_without_a_broker_the_way_out_is_named():
    with pytest.raises(SettingsError, match="broker is empty: set --broker, WAYPOST_BROKER"):
        _ = Settings.load(environ={}).bootstrap


# ---------------------------------------------------------------- what the libraries are given


def test_without_tls_and_login_nothing_is_said_of_them():
    settings = Settings.load({"broker": "a:1,b:2"}, environ={})
    assert aiokafka_kwargs(settings) == {"bootstrap_servers": "a:1,b:2", "security_protocol": "PLAINTEXT", "ssl_context": None}
    assert librdkafka_config(settings) == {"bootstrap.servers": "a:1,b:2", "security.protocol": "PLAINTEXT"}


def test_tls_without_login():
    settings = Settings.load({"broker": "a:1", "security_protocol": "SSL", "ssl_check_hostname": False}, environ={})
    context = aiokafka_kwargs(settings)["ssl_context"]
    assert isinstance(context, ssl.SSLContext)
    assert (context.check_hostname, context.verify_mode) == (False, ssl.CERT_REQUIRED)
    assert librdkafka_config(settings)["ssl.endpoint.identification.algorithm"] == "none"


def secure(kafka, tmp_path, **changed):
    return Settings.load({"broker": kafka.secure_bootstrap, "security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512",
                          "sasl_username": kafka.login.username, "sasl_password": kafka.login.password,
                          "ssl_cafile": kafka.login.cafile, "data_dir": tmp_path} | changed, environ={})


async def connects(**kwargs):
    consumer = AIOKafkaConsumer(**kwargs)
    try:
        await consumer.start()
        return await consumer.topics() is not None
    finally:
        await consumer.stop()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_all_libraries_log_in_over_tls(secure_kafka, tmp_path, mechanism):
    settings = secure(secure_kafka, tmp_path, sasl_mechanism=mechanism)
    assert await connects(**aiokafka_kwargs(settings))
    assert AdminClient(librdkafka_config(settings)).list_topics(timeout=PATIENCE_SECONDS).brokers


class TokenEndpoint(http.server.BaseHTTPRequestHandler):
    """Gives tokens that nobody signed, to the one client it knows."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.asked.append(body)
        known = self.headers["authorization"] == "Basic " + base64.b64encode(b"worker:s3cret").decode()
        now = int(time.time())
        parts = [{"alg": "none"}, {"sub": "worker", "iat": now, "exp": now + 600, "scope": "kafka"}]
        token = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."
        said = json.dumps({"access_token": token, "token_type": "bearer", "expires_in": 600} if known else {"error": "invalid_client"}).encode()
        self.send_response(200 if known else 401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def token_url():
    TokenEndpoint.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), TokenEndpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/token"
        server.shutdown()


async def test_all_libraries_log_in_with_tokens(secure_kafka, tmp_path, token_url):
    oauth = {"sasl_mechanism": "OAUTHBEARER", "sasl_username": "worker", "sasl_password": "s3cret", "sasl_oauth_token_url": token_url}
    settings = secure(secure_kafka, tmp_path, **oauth, sasl_oauth_scope="kafka")
    kwargs = aiokafka_kwargs(settings)
    assert await connects(**kwargs)
    assert await connects(**kwargs)
    assert len(TokenEndpoint.asked) == 1, "a token is used until it ends"
    assert "grant_type=client_credentials" in TokenEndpoint.asked[0]
    assert "scope=kafka" in TokenEndpoint.asked[0]
    assert (await asyncio.to_thread(AdminClient(librdkafka_config(settings)).list_topics, timeout=PATIENCE_SECONDS)).brokers


async def test_a_wrong_client_secret_is_told_without_the_secret(secure_kafka, tmp_path, token_url):
    oauth = {"sasl_mechanism": "OAUTHBEARER", "sasl_username": "worker", "sasl_password": "wr0ng", "sasl_oauth_token_url": token_url}
    settings = secure(secure_kafka, tmp_path, **oauth)
    with pytest.raises(TokenError, match=r"/token answered 401; see to sasl_username") as refused:
        await aiokafka_kwargs(settings)["sasl_oauth_token_provider"].token()
    assert "wr0ng" not in str(refused.value)
    nobody = secure(secure_kafka, tmp_path, **{**oauth, "sasl_oauth_token_url": "http://127.0.0.1:9/token"})
    with pytest.raises(TokenError, match="gave no token"):
        await aiokafka_kwargs(nobody)["sasl_oauth_token_provider"].token()


def test_tokens_and_where_they_come_from_belong_together():
    for odd in ({"sasl_mechanism": "OAUTHBEARER"}, {"sasl_mechanism": "PLAIN", "sasl_oauth_token_url": "http://x/token"}):
        with pytest.raises(SettingsError, match="belong together"):
            Settings.load({"security_protocol": "SASL_SSL", "sasl_username": "a", "sasl_password": "b"} | odd, environ={})


async def test_a_wrong_password_is_refused(secure_kafka, tmp_path):
    settings = secure(secure_kafka, tmp_path, sasl_password="wrong")
    with pytest.raises(KafkaError):
        await connects(**aiokafka_kwargs(settings))
    with pytest.raises(KafkaException):
        AdminClient(librdkafka_config(settings)).list_topics(timeout=3)


async def test_a_broker_nobody_vouches_for_is_refused(secure_kafka, tmp_path):
    settings = secure(secure_kafka, tmp_path, ssl_cafile=None)
    with pytest.raises(KafkaError):
        await connects(**aiokafka_kwargs(settings))
    with pytest.raises(KafkaException):
        AdminClient(librdkafka_config(settings)).list_topics(timeout=3)


async def test_a_certificate_for_another_host_is_refused_unless_told_otherwise(secure_kafka, tmp_path):
    """The broker's certificate names localhost, not 127.0.0.1; but it advertises localhost, so only the first connection tells."""
    other = f"127.0.0.1:{secure_kafka.secure_port}"
    with pytest.raises(KafkaError):
        await connects(**aiokafka_kwargs(secure(secure_kafka, tmp_path, broker=other)))
    trusting = secure(secure_kafka, tmp_path, broker=other, ssl_check_hostname=False)
    assert await connects(**aiokafka_kwargs(trusting))
    assert AdminClient(librdkafka_config(trusting)).list_topics(timeout=PATIENCE_SECONDS).brokers


async def test_a_record_goes_through_the_secured_broker(secure_kafka, tmp_path, prefix):
    from streams.topics import names, provision
    from tests.support.records import values

    settings = secure(secure_kafka, tmp_path, topic_prefix=prefix)
    provision(settings)
    producer = AIOKafkaProducer(**aiokafka_kwargs(settings))
    await producer.start()
    try:
        await producer.send_and_wait(names(settings)["activities"], b"v", partition=3)
    finally:
        await producer.stop()
    assert values(settings, names(settings)["activities"]) == {3: [(0, b"v")]}
