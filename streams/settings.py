"""Settings: the one table of what can be set, read by the code and by the documentation; it must never open a connection.

A value comes from, strongest first: a flag of the command, the environment variable `WAYPOST_<NAME>`, the TOML file named by
`WAYPOST_CONFIG`, the default (contract, section 5). Each value remembers which of them it came from.
"""

from __future__ import annotations

import os
import re
import ssl
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

ENV_PREFIX = "WAYPOST_"
CONFIG_ENV = "WAYPOST_CONFIG"
TEST_ENV_PREFIX = "WAYPOST_TEST_"
"""Variables of the test suite, which are no settings."""
MASK = "********"
SERVICE_LINK = re.compile("(tcp|udp)://")
SERVICE_LINK_HINT = (
    "It looks like a service link that Kubernetes puts into the environment: set enableServiceLinks to false"
)
DAY_MS = 86_400_000
MIN_SECRET = 32  # characters

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]


class SettingsError(ValueError):
    """A setting that cannot be used; the message names the setting, the value, where it came from, and the way out."""


SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\s:/\[\]]+):([0-9]{1,5})")
"""host:port; an IPv6 address stands in brackets."""


def _upper(value: Any) -> Any:
    return value.strip().upper() if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _words(value: Any) -> Any:
    """`"a, b"` and `["a", "b"]` are the same list."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return tuple(value) if isinstance(value, list) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


class Settings(BaseModel):
    """All settings of all parts of Waypost. Make one with `Settings.load()`; the fields below are the table."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=False, hide_input_in_errors=True, allow_inf_nan=False
    )

    # --- the broker
    broker: Words = Field((), description="Bootstrap servers, `host:port`, comma-separated. "
                          "Empty: `waypost up` and `waypost demo` start the embedded broker.")
    security_protocol: Annotated[SecurityProtocol, BeforeValidator(_upper)] = Field(
        "PLAINTEXT", description="How to talk to the broker.")
    sasl_mechanism: Annotated[SaslMechanism | None, BeforeValidator(_upper)] = Field(
        None, description="How to log in, with SASL_PLAINTEXT and SASL_SSL.")
    sasl_username: str | None = Field(None, description="User name for SASL; with OAUTHBEARER the client id.")
    sasl_password: SecretStr | None = Field(None, description="Password for SASL; with OAUTHBEARER the client secret.")
    sasl_oauth_token_url: str | None = Field(None, description="With OAUTHBEARER: where tokens come from (client credentials).")
    sasl_oauth_scope: str | None = Field(None, description="With OAUTHBEARER: the scope to ask for, where one is needed.")
    ssl_cafile: Path | None = Field(None, description="Certificates (PEM) that vouch for the broker. Empty: those of the system.")
    ssl_certfile: Path | None = Field(None, description="Our own certificate (PEM), where the broker wants one.")
    ssl_keyfile: Path | None = Field(None, description="The key (PEM) of our own certificate.")
    ssl_password: SecretStr | None = Field(None, description="Password of the key file.")
    ssl_check_hostname: bool = Field(True, description="Whether the broker's certificate must name the host it is reached by.")

    # --- topics
    topic_prefix: str = Field("waypost.", max_length=100, pattern=r"^[a-zA-Z0-9._-]*$",
                              description="What the names of all topics begin with.")
    partitions: int = Field(4, ge=1, le=10_000, description="Partitions of each contact-keyed topic. "
                            "Cannot be changed once there are records.")
    replication_factor: int = Field(1, ge=1, le=100, description="Copies the broker keeps of each topic made by `waypost topics`.")
    activities_retention_ms: int = Field(365 * DAY_MS, ge=-1, description="How long activities stay on the log, which is how far back "
                                         "a replay can see. -1: for ever.")
    stage_changes_retention_ms: int = Field(30 * DAY_MS, ge=-1, description="How long stage changes stay on the log. -1: for ever.")
    audit_retention_ms: int = Field(400 * DAY_MS, ge=-1, description="How long it stays on the log who changed what. -1: for ever.")
    rejected_retention_ms: int = Field(30 * DAY_MS, ge=-1, description="How long rejected records stay on the log. -1: for ever.")

    # --- workers
    group: str = Field("waypost-workers", min_length=1, max_length=200, pattern=r"^[a-zA-Z0-9._-]+$",
                       description="Consumer group of the workers. Workers of one group share the partitions.")
    group_instance_id: str | None = Field(None, max_length=200, description="Fixed name of this worker or recalculator in its group, so that a "
                                          "quick restart gets its partitions back without a rebalance. Different for each process.")
    session_timeout_seconds: float = Field(8.0, ge=1, le=1800, description="A worker that is silent for so long loses its partitions.")
    heartbeat_seconds: float = Field(2.0, ge=0.1, le=600, description="How often a worker tells the group that it lives.")
    standby_replicas: int = Field(0, ge=0, le=10, description="How many other workers keep a warm copy of each partition.")
    data_dir: Path = Field(Path(".waypost"), description="Directory of the local state (rebuilt from the broker when lost) and of the "
                           "embedded broker's log. One for each worker.")
    memory_mb: int = Field(256, ge=16, description="Memory in MiB for a worker's state, beside the 150 MiB of its code.")
    background_share: float = Field(0.2, ge=0, le=0.9, description="Share of a worker's time that background work (views that are built, "
                                    "rebuilt evidence) gets at least while more arrives than can be done, and of its speed that a recalculator keeps "
                                    "then. 0: background work waits until nothing arrives.")
    worker_host: str = Field("127.0.0.1", min_length=1, description="Address on which a worker listens.")
    worker_port: int = Field(0, ge=0, le=65535, description="Port on which a worker listens. 0: a free one.")
    worker_advertised_url: str | None = Field(None, pattern=r"^https?://[^\s/]+", description="URL by which the console reaches this "
                                              "worker. Empty: made of worker_host and the port.")

    # --- the console
    workers: Words = Field((), description="URLs of the workers, comma-separated. Empty: found through the consumer group.")
    console_host: str = Field("127.0.0.1", min_length=1, description="Address on which the console listens.")
    console_port: int = Field(8080, ge=0, le=65535, description="Port on which the console listens. 0: a free one.")
    http_connections: int = Field(1000, ge=16, le=100_000, description="Connections that the console has at once, and a worker up to 128 of them. "
                                  "One that waits for its client gives way to a new one. Fewer where the process may not have so many open files.")
    http_connections_per_address: int = Field(200, ge=4, le=100_000, description="Of these from one address, or one /64 of IPv6. Does not hold for "
                                              "`trusted_proxies`.")
    http_header_seconds: float = Field(10.0, gt=0, le=600, description="So long the headers of a request may take.")
    http_body_seconds: float = Field(20.0, gt=0, le=3600, description="So long a body may take, and a second more for each 4 KiB that are there.")
    live_streams: int = Field(500, ge=1, le=100_000, description="Streams of live results that the console has open at once.")
    live_streams_per_session: int = Field(20, ge=1, le=100_000, description="Of these of one session, one token, or, where nobody logs in, one "
                                          "address.")

    trusted_proxies: Words = Field(("127.0.0.1", "::1"), description="Addresses and networks (`10.0.0.0/8`) of the proxies before the console, "
                                   "comma-separated. Only their `X-Forwarded-For` and `X-Forwarded-Proto` are believed.")

    users_file: Path | None = Field(None, description="File of the users and tokens of the console, made by `waypost user`. Empty: everybody "
                                    "who reaches the console may do everything, so that it listens on loopback alone.")
    oidc_issuer: str | None = Field(None, pattern=r"^https?://[^\s]+", description="Provider of identities (OpenID Connect) at which people log in "
                                    "to the console, with or without a file of users.")
    oidc_client_id: str | None = Field(None, description="What the provider knows this console by.")
    oidc_client_secret: SecretStr | None = Field(None, description="The secret that the provider gave for it.")
    oidc_role_claim: str = Field("roles", min_length=1, description="The claim of the ID token that names a role: viewer, editor, operator, or the "
                                 "same with waypost- before it.")
    session_hours: float = Field(12.0, gt=0, le=720, description="How long somebody stays logged in.")
    session_secret: SecretStr | None = Field(None, description="Part of the key that signs sessions, the same for all consoles, at least 32 "
                                             "characters. Empty: sessions are signed with the keys on the topic `sessions` alone, and "
                                             "whoever can read it can make a session. A changed value logs everybody out.")
    api_token: SecretStr | None = Field(None, description="Token with which commands ask the API of a console that has users.")
    internal_secret: SecretStr | None = Field(None, description="What the console says to workers, which answer nobody else. The same for all; "
                                              "needed where workers listen beyond loopback.")

    # --- rules of the engine
    max_future_hours: float = Field(24.0, ge=0, description="How far ahead of the clock an activity's time may be; others are rejected.")
    max_merges: int = Field(10_000, ge=1, description="How many merges one person may have; further ones are rejected.")
    totals_interval_seconds: float = Field(1.0, ge=0.05, description="How often a worker publishes changed totals.")

    # --- recalculation
    recalculation_schedule: str = Field("", max_length=200, description="When journeys whose `scheduled_recalculation` is on are "
                                        "recalculated: a cron expression, `0 2 * * *` for every night at two. Empty: never by itself.")
    recalculation_time_zone: str = Field("UTC", max_length=100, description="Time zone in which `recalculation_schedule` is read, such as "
                                         "Europe/Berlin.")
    recalculation_events_per_second: float | None = Field(None, ge=1, description="Activities a second that recalculations read at most, "
                                                          "unless one says otherwise. Empty: as fast as the living allows.")
    recalculation_tolerance_share: float = Field(0.2, ge=0, le=1000, description="By how much of what is visible the rebuilt results of a stage "
                                                 "may differ; a recalculation that differs by more waits for somebody's confirmation.")
    recalculation_tolerance_contacts: int = Field(100, ge=1, le=2**53 - 1, description="A stage that differs by fewer contacts needs no "
                                                  "confirmation, whatever share of the visible ones they are.")
    evidence_retention_days: float = Field(7.0, ge=0, description="How long evidence of rules that no journey needs any more is kept, so that "
                                           "undoing an edit is quick.")

    # --- logs
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = Field(
        "INFO", description="What is logged: this and all that is graver.")
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = Field("text", description="How log lines are written.")

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    # ---------------------------------------------------------------- loading

    @classmethod
    def load(cls, flags: Mapping[str, Any] | None = None, *, environ: Mapping[str, str] | None = None) -> Self:
        """Settings from *flags* (None values: not given), the environment, the file named by `WAYPOST_CONFIG`, the defaults.

        An environment variable that is set but empty counts as not set. Raises SettingsError.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for source in (_from_file(environ), _from_environment(environ), _from_flags(flags or {})):
            for name, value, origin in source:
                values[name], origins[name] = value, origin
        return cls._checked(values, origins)

    @classmethod
    def _checked(cls, values: Mapping[str, Any], origins: Mapping[str, str]) -> Self:
        try:
            settings = cls.model_validate(values)
        except ValidationError as refused:
            raise SettingsError("\n".join(_sentence(error, values, origins) for error in refused.errors())) from None
        settings._origins.update(origins)
        return settings

    def replaced(self, origin: str, **values: Any) -> Self:
        """The same settings with *values* instead, checked again; `origin_of` then answers *origin* for them."""
        return self._checked({**self.given(), **values}, {**self._origins, **dict.fromkeys(values, origin)})

    def given(self) -> dict[str, Any]:
        """The values that are not defaults, as Python values; secrets stay wrapped."""
        return {name: getattr(self, name) for name in self._origins}

    def origin_of(self, name: str) -> str:
        """Where the value came from: `flag --broker`, `environment WAYPOST_BROKER`, `file /etc/waypost.toml`, `default`."""
        return self._origins.get(name, "default")

    def environment(self) -> dict[str, str]:
        """The values that are not defaults as environment variables, for a child process. Holds secrets in the clear."""
        return {env_name(name): _plain(value) for name, value in self.given().items() if _plain(value)}

    def rows(self) -> list[SettingValue]:
        """What is in force, for `waypost config`: one row a setting, secrets masked."""
        return [SettingValue(spec.name, MASK if spec.secret and getattr(self, spec.name) is not None
                             else _plain(getattr(self, spec.name)), self.origin_of(spec.name)) for spec in TABLE]

    # ---------------------------------------------------------------- rules

    @field_validator("*", mode="before")
    @classmethod
    def _not_a_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` and `false` where a number is wanted: pydantic would read 1 and 0."""
        wanted = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and wanted is not bool:
            raise ValueError(f"{str(value).lower()} is not of the type of this setting, which is: {_type_words(wanted)[0]}")
        return value

    @field_validator("data_dir", "ssl_cafile", "ssl_certfile", "ssl_keyfile", "users_file", mode="before")
    @classmethod
    def _expanded(cls, value: Any) -> Any:
        """Replace a leading `~` by the home directory, which only shells do."""
        return _expanded_path(value) if isinstance(value, str | Path) else value

    @field_validator("broker")
    @classmethod
    def _bootstrap(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        servers = tuple(word.removeprefix("kafka://").rstrip("/") for word in value)
        for server in servers:
            found = SERVER.fullmatch(server)
            if found is None or not 0 < int(found[3]) < 65536:
                example = "[::1]:9092" if server.count(":") > 1 else "127.0.0.1:9092"
                raise ValueError(f"{server!r} is not host:port; write for example {example}")
        return servers

    @field_validator("workers")
    @classmethod
    def _urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} is not a URL; write for example http://10.0.0.7:6066")
        return tuple(url.rstrip("/") for url in value)

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            try:
                network = ip_network(word)
            except ValueError as error:
                raise ValueError(f"{error}; write addresses and networks, for example 10.0.0.7, 10.1.0.0/16") from None
            if network.prefixlen == 0:
                raise ValueError(f"{word} is every address, so that anybody could choose the address he seems to come from; name the proxies alone")
        return value

    @field_validator("ssl_cafile", "ssl_certfile", "ssl_keyfile")
    @classmethod
    def _is_there(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("there is no such file; name a PEM file that this process may read")
        return value

    @field_validator("session_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < MIN_SECRET:
            raise ValueError(f"it has fewer than {MIN_SECRET} characters and could be guessed; make one with `openssl rand -hex 32`")
        return value

    @field_validator("users_file")
    @classmethod
    def _users(cls, value: Path | None) -> Path | None:
        if value is not None and value.exists() and not value.is_file():
            raise ValueError("this is no file; name one, which `waypost user add` makes")
        return value

    @field_validator("recalculation_schedule")
    @classmethod
    def _cron(cls, value: str) -> str:
        if value.strip():
            try:
                CronSim(value.strip(), datetime.now(UTC))
            except CronSimError as error:
                raise ValueError(f"{value!r} is no cron expression: {error}; write for example `0 2 * * *`, every night at two") from None
        return value.strip()

    @field_validator("recalculation_time_zone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is no time zone known here; write one of the IANA list, for example Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        sasl, tls = self.security_protocol.startswith("SASL"), self.security_protocol.endswith("SSL")
        if sasl and not (self.sasl_mechanism and self.sasl_username and self.sasl_password is not None):
            raise ValueError(f"security_protocol {self.security_protocol} needs sasl_mechanism, sasl_username and sasl_password; "
                             "set all three")
        if (self.sasl_mechanism == "OAUTHBEARER") != (self.sasl_oauth_token_url is not None):
            raise ValueError("sasl_mechanism OAUTHBEARER and sasl_oauth_token_url belong together; set both or none")
        if self.sasl_mechanism and not sasl:
            raise ValueError(f"sasl_mechanism is set, but security_protocol {self.security_protocol} does not log in; "
                             "set security_protocol to SASL_SSL (or SASL_PLAINTEXT), or leave sasl_mechanism out")
        if (self.ssl_cafile or self.ssl_certfile) and not tls:
            raise ValueError(f"TLS files are set, but security_protocol {self.security_protocol} does not encrypt; "
                             "set security_protocol to SSL or SASL_SSL, or leave the files out")
        if len({self.oidc_issuer is None, self.oidc_client_id is None, self.oidc_client_secret is None}) > 1:
            raise ValueError("oidc_issuer, oidc_client_id and oidc_client_secret belong together; set all three or none")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("ssl_certfile and ssl_keyfile belong together; set both or none")
        if self.heartbeat_seconds * 3 > self.session_timeout_seconds:
            raise ValueError(f"heartbeat_seconds {self.heartbeat_seconds:g} is more than a third of session_timeout_seconds "
                             f"{self.session_timeout_seconds:g}; one lost heartbeat would cost the partitions: lower the first "
                             "or raise the second")
        return self

    # ---------------------------------------------------------------- said otherwise

    @property
    def bootstrap(self) -> str:
        """The bootstrap servers as clients take them; raises SettingsError when there are none."""
        if not self.broker:
            raise SettingsError("broker is empty: set --broker, WAYPOST_BROKER or `broker` in the file to host:port of your Kafka, "
                                "or use `waypost up`, which starts a broker of its own")
        return ",".join(self.broker)

    @property
    def max_future_ms(self) -> int:
        """How far ahead of the clock an activity's time may be, in milliseconds."""
        return int(self.max_future_hours * 3_600_000)

    @property
    def evidence_retention_ms(self) -> int:
        """How long evidence that no journey needs is kept, in milliseconds."""
        return int(self.evidence_retention_days * DAY_MS)

    @property
    def uses_tls(self) -> bool:
        return self.security_protocol.endswith("SSL")

    @property
    def uses_sasl(self) -> bool:
        return self.security_protocol.startswith("SASL")


# ---------------------------------------------------------------- the table, for documentation and for `waypost config`


@dataclass(frozen=True)
class SettingSpec:
    """One row of the table: what a setting is."""

    name: str
    type: str  # in words: "text", "integer", "one of PLAINTEXT, SSL"
    default: str  # as it would be written in the environment; "" = empty
    description: str
    secret: bool
    env: str


@dataclass(frozen=True)
class SettingValue:
    """One row of `waypost config`: what a setting is now; secrets are masked."""

    name: str
    value: str
    origin: str


def env_name(name: str) -> str:
    """The environment variable of the setting *name*."""
    return ENV_PREFIX + name.upper()


def flag_name(name: str) -> str:
    """The flag of the setting *name*."""
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> str:
    """A value as it is written in the environment; secrets in the clear."""
    match value:
        case None:
            return ""
        case SecretStr():
            return value.get_secret_value()
        case bool():
            return "true" if value else "false"
        case tuple():
            return ",".join(value)
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _type_words(annotation: Any) -> tuple[str, bool]:
    """(type in words, secret?) of a field's annotation."""
    options = [option for option in get_args(annotation) if option is not type(None)]
    if options and all(isinstance(option, str) for option in options):
        return "one of " + ", ".join(options), False
    if options and annotation != tuple[str, ...]:
        return _type_words(options[0])
    words = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path",
             tuple[str, ...]: "list of texts", SecretStr: "text"}
    return words[annotation], annotation is SecretStr


def _table() -> tuple[SettingSpec, ...]:
    rows = []
    for name, field in Settings.model_fields.items():
        kind, secret = _type_words(field.annotation)
        rows.append(SettingSpec(name, kind, _plain(field.default), field.description or "", secret, env_name(name)))
    return tuple(rows)


TABLE: tuple[SettingSpec, ...] = _table()


# ---------------------------------------------------------------- sources: each yields (name, value, origin)


def _from_flags(flags: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    for name, value in flags.items():
        if value is not None:
            yield name, value, f"flag {flag_name(name)}"


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    known = {env_name(name): name for name in Settings.model_fields}
    for variable, value in environ.items():
        if not value or not variable.startswith(ENV_PREFIX) or variable == CONFIG_ENV or variable.startswith(TEST_ENV_PREFIX):
            continue
        if variable not in known:
            raise SettingsError(_unknown_variable(variable, value, known))
        yield known[variable], value, f"environment {variable}"


def _unknown_variable(variable: str, value: str, known: Iterable[str]) -> str:
    """Return the sentence that refuses an environment variable which names no setting."""
    if SERVICE_LINK.match(value) or re.search(r"_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP)", variable):
        return f"{variable} (environment) is not a setting. {SERVICE_LINK_HINT}"
    close = get_close_matches(variable, list(known), n=1, cutoff=0.8)
    hint = f"did you mean {close[0]}?" if close else "`waypost config` lists all of them"
    return f"{variable} (environment) is not a setting; {hint}"


def _expanded_path(value: str | Path) -> Path:
    """Return *value* with a leading `~` replaced. Raises ValueError where there is no home directory, or for a path that none can be."""
    if "\0" in str(value):
        raise ValueError("holds a zero byte; name a path without one")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{error}; write the path from / on") from None


def _from_file(environ: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    if not (path := environ.get(CONFIG_ENV)):
        return
    try:
        data = tomllib.loads(_expanded_path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not TOML: {error}; correct that line") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{CONFIG_ENV} names {path!r}, which cannot be read ({error}); correct the path or unset it") from None
    for name, value in data.items():
        yield name, value, f"file {path}"


def _sentence(error: Any, values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """One pydantic error as a sentence: the setting, its value, its origin, the way out."""
    text = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return text
    name = str(error["loc"][0])
    origin = origins.get(name, "default")
    if error["type"] == "extra_forbidden":
        return f"{name} ({origin}) is not a setting; `waypost config` lists all of them"
    secret = any(spec.secret for spec in TABLE if spec.name == name)
    value = MASK if secret else repr(values.get(name))
    if isinstance(raw := values.get(name), str) and SERVICE_LINK.match(raw) and origin.startswith("environment"):
        text += f". {SERVICE_LINK_HINT}"
    if origin == "default":
        return f"{name}: {text}"
    return f"{name} = {value} ({origin}): {text}"


# ---------------------------------------------------------------- the same settings as each client library takes them


def _ssl_context(settings: Settings) -> ssl.SSLContext | None:
    if not settings.uses_tls:
        return None
    context = ssl.create_default_context(cafile=str(settings.ssl_cafile) if settings.ssl_cafile else None)
    context.check_hostname = settings.ssl_check_hostname
    if settings.ssl_certfile:
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, _secret(settings.ssl_password))
    return context


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()


def aiokafka_kwargs(settings: Settings) -> dict[str, Any]:
    """Arguments by which aiokafka's consumer, producer and admin client connect. Reads the TLS files: raises OSError, ssl.SSLError."""
    kwargs: dict[str, Any] = {"bootstrap_servers": settings.bootstrap, "security_protocol": settings.security_protocol,
                              "ssl_context": _ssl_context(settings)}
    if settings.sasl_oauth_token_url is not None:
        from .tokens import Tokens

        cafile = None if settings.ssl_cafile is None else str(settings.ssl_cafile)
        tokens = Tokens(settings.sasl_oauth_token_url, settings.sasl_username or "", _secret(settings.sasl_password) or "", settings.sasl_oauth_scope,
                        cafile)
        kwargs |= {"sasl_mechanism": settings.sasl_mechanism, "sasl_oauth_token_provider": tokens}
    elif settings.uses_sasl:
        kwargs |= {"sasl_mechanism": settings.sasl_mechanism, "sasl_plain_username": settings.sasl_username,
                   "sasl_plain_password": _secret(settings.sasl_password)}
    return kwargs


def librdkafka_config(settings: Settings) -> dict[str, Any]:
    """Configuration by which confluent-kafka's clients connect; they report unreadable TLS files when made."""
    config: dict[str, Any] = {"bootstrap.servers": settings.bootstrap, "security.protocol": settings.security_protocol}
    if settings.uses_tls:
        config["ssl.endpoint.identification.algorithm"] = "https" if settings.ssl_check_hostname else "none"
        for key, path in (("ssl.ca.location", settings.ssl_cafile), ("ssl.certificate.location", settings.ssl_certfile),
                          ("ssl.key.location", settings.ssl_keyfile)):
            if path is not None:
                config[key] = str(path)
        if settings.ssl_password is not None:
            config["ssl.key.password"] = _secret(settings.ssl_password)
    if settings.sasl_oauth_token_url is not None:
        config |= {"sasl.mechanism": settings.sasl_mechanism, "sasl.oauthbearer.method": "oidc",
                   "sasl.oauthbearer.token.endpoint.url": settings.sasl_oauth_token_url,
                   "sasl.oauthbearer.client.id": settings.sasl_username, "sasl.oauthbearer.client.secret": _secret(settings.sasl_password)}
        if settings.sasl_oauth_scope is not None:
            config["sasl.oauthbearer.scope"] = settings.sasl_oauth_scope
        if settings.ssl_cafile is not None:
            config["https.ca.location"] = str(settings.ssl_cafile)
    elif settings.uses_sasl:
        config |= {"sasl.mechanism": settings.sasl_mechanism, "sasl.username": settings.sasl_username,
                   "sasl.password": _secret(settings.sasl_password)}
    return config

