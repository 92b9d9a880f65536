"""Metrics: the one catalogue; no other module names a metric. Its table becomes the reference in the docs."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

ACTIVITIES = Counter("waypost_activities_total", "Activities read, by outcome: hit, no_hit or rejected.", ["outcome"])
RECORDS = Counter("waypost_records_total", "Records read, by topic without its prefix.", ["topic"])
REJECTED = Counter(
    "waypost_rejected_total",
    "Records sent to the rejected topic, by topic and code of the broken rule.",
    ["topic", "code"],
)
STAGE_CHANGES = Counter(
    "waypost_stage_changes_total", "Stage changes announced, by change and cause.", ["change", "cause"]
)
HANDOFFS = Counter("waypost_handoffs_total", "Messages sent to other partitions, by kind.", ["kind"])
STEP_SECONDS = Histogram(
    "waypost_step_seconds",
    "Time of one step of a batch, in seconds: decide, changes, handoffs, changelog, rocksdb.",
    ["step"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
WORK_SECONDS = Counter(
    "waypost_work_seconds_total",
    "Time in which decisions were made and written to RocksDB, by kind: live (what arrives) or background (views that are built, rebuilt evidence). "
    "While both have work, background gets at least background_share of it.",
    ["kind"],
)
VISIBLE_SECONDS = Histogram(
    "waypost_visible_seconds",
    "Time from the record time of the oldest activity of a batch until the batch is in the numbers, in seconds.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
PARTITIONS = Gauge("waypost_partitions", "Partitions of this worker, by state: recovering, live.", ["state"])
SCAN_CONTACTS = Counter("waypost_scan_contacts_total", "Contacts taken into views by scans.")
RECOVERED_RECORDS = Counter("waypost_recovered_records_total", "Changelog records joined during recovery.")
FOREIGN_RECORDS = Counter(
    "waypost_foreign_changelog_records_total", "Changelog records of another writer found and answered."
)
UNSENT_RECORDS = Counter(
    "waypost_unsent_records_total",
    "Records that were too large for their topic and were not sent, by topic without its prefix. Always 0, unless the limit of a topic was lowered.",
    ["topic"],
)
TRUNCATED = Counter(
    "waypost_truncated_total",
    "What was cut because it was too large for one record: hits, profiles or merges of a person, values of rejected records.",
    ["what"],
)
LEDGER_BYTES = Gauge("waypost_ledger_bytes", "Bytes on disk of the RocksDB of a partition.", ["partition"])
SOURCE_LAG = Gauge(
    "waypost_source_lag_records",
    "Records of a source topic that a live partition has not done yet, by topic without its prefix. Summed over workers it is the lag.",
    ["topic", "partition"],
)
RULE_FAULTS = Counter(
    "waypost_rule_faults_total",
    "Activities on which the own code of a rule type failed, by rule; such an activity does not meet the rule.",
    ["rule"],
)
DAMAGED = Counter(
    "waypost_damaged_partitions_total",
    "Partitions whose RocksDB was found damaged, set aside and read again from the changelog.",
)
BACKGROUND_FAILURES = Counter(
    "waypost_background_failures_total",
    "Failures of background work, which is tried again: totals, reports, recalculations, rejections.",
    ["work"],
)

INTERNAL_CLOSED = Counter(
    "waypost_internal_connections_closed_total",
    "Connections of a worker's internal interface that were closed early, by reason, as of waypost_http_connections_closed_total.",
    ["reason"],
)

CATALOGUE = (
    ACTIVITIES, RECORDS, REJECTED, STAGE_CHANGES, HANDOFFS, STEP_SECONDS, WORK_SECONDS, VISIBLE_SECONDS, PARTITIONS, SCAN_CONTACTS, RECOVERED_RECORDS,
    FOREIGN_RECORDS, UNSENT_RECORDS, TRUNCATED, LEDGER_BYTES, SOURCE_LAG, RULE_FAULTS,
    BACKGROUND_FAILURES, DAMAGED,
    INTERNAL_CLOSED,
)  # fmt: skip

def total(counter: Counter) -> float:
    """The sum of *counter* over its labels."""
    return sum(sample.value for one in counter.collect() for sample in one.samples if sample.name.endswith("_total"))


def buckets(histogram: Histogram) -> dict[str, float]:
    """Upper bound -> how many were observed up to it, of a histogram without labels."""
    return {sample.labels["le"]: sample.value for one in histogram.collect() for sample in one.samples if sample.name.endswith("_bucket")}


CONSOLE = CollectorRegistry()
"""What the console shows; a registry of its own, so that it does not show a worker's metrics as zeros."""

HTTP_REQUESTS = Counter(
    "waypost_http_requests_total",
    "Requests answered, by route, method and status.",
    ["route", "method", "status"],
    registry=CONSOLE,
)
HTTP_SECONDS = Histogram("waypost_http_seconds", "Time until a request was answered, in seconds, by route.", ["route"], registry=CONSOLE)
HTTP_CONNECTIONS = Gauge("waypost_http_connections", "Connections that are open.", registry=CONSOLE)
HTTP_CLOSED = Counter(
    "waypost_http_connections_closed_total",
    "Connections of the console that were closed early, by reason: headers, body or answer (the client took too long), connections or "
    "connections_per_address (it waited, and gave way to a new one), malformed (not HTTP/1.1), accept (none could be accepted).",
    ["reason"],
    registry=CONSOLE,
)
LIVE_STREAMS = Gauge("waypost_live_streams", "Listeners of live results.", registry=CONSOLE)
LAG = Gauge("waypost_lag_records", "Records of the input topics not yet in the numbers, when it was last asked for.", registry=CONSOLE)
PARTITIONS_CONFIGURED = Gauge(
    "waypost_partitions_configured", "Partitions of each contact-keyed topic: as many must be live.", registry=CONSOLE
)
RECALCULATIONS = Gauge("waypost_recalculations", "Recalculations that are known, by state.", ["state"], registry=CONSOLE)
RECALCULATION_PROGRESS = Gauge(
    "waypost_recalculation_progress",
    "How far the recalculation under way is, from 0 to 1; 1 when there is none, or it waits for a confirmation.",
    registry=CONSOLE,
)
RECALCULATIONS_UNCONFIRMED = Gauge(
    "waypost_recalculations_unconfirmed",
    "Recalculations whose results differ from the visible ones and wait for a confirmation.",
    registry=CONSOLE,
)
FACTS = Counter("waypost_http_facts_total", "Facts sent over HTTP, by kind and outcome: taken or refused.", ["kind", "outcome"], registry=CONSOLE)

AUDIT_LOST = Counter(
    "waypost_audit_lost_total", "Records that did not get onto the audit topic; each is an error in the console's log.", registry=CONSOLE
)

CONSOLE_CATALOGUE = (
    HTTP_REQUESTS, HTTP_SECONDS, HTTP_CONNECTIONS, HTTP_CLOSED, LIVE_STREAMS, LAG, PARTITIONS_CONFIGURED, RECALCULATIONS, RECALCULATION_PROGRESS,
    RECALCULATIONS_UNCONFIRMED, FACTS, AUDIT_LOST,
)  # fmt: skip
ProcessCollector(registry=CONSOLE)
"""Memory, processor time and the start of the process, as the workers' registry has them by default."""
