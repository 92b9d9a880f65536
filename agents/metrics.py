"""Metrics: the one catalogue; no other module names a metric. Its table becomes the reference in the docs."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

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
PARTITIONS = Gauge("waypost_partitions", "Partitions of this worker, by state: recovering, live.", ["state"])
SCAN_CONTACTS = Counter("waypost_scan_contacts_total", "Contacts taken into views by scans.")
RECOVERED_RECORDS = Counter("waypost_recovered_records_total", "Changelog records joined during recovery.")
FOREIGN_RECORDS = Counter(
    "waypost_foreign_changelog_records_total", "Changelog records of another writer found and answered."
)
LEDGER_BYTES = Gauge("waypost_ledger_bytes", "Bytes on disk of the RocksDB of a partition.", ["partition"])

CATALOGUE = (
    ACTIVITIES, RECORDS, REJECTED, STAGE_CHANGES, HANDOFFS, STEP_SECONDS, PARTITIONS, SCAN_CONTACTS, RECOVERED_RECORDS,
    FOREIGN_RECORDS, LEDGER_BYTES,
)  # fmt: skip
