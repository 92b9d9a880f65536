"""The API against its own OpenAPI document: schemathesis makes requests, good, bad and in sequences, and compares every answer with the document."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import Waypost

pytestmark = pytest.mark.embedded

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLES = os.environ.get("WAYPOST_TEST_EXAMPLES", "20")


def test_schemathesis_finds_nothing(waypost: Waypost, tmp_path: Path) -> None:
    """All its checks, in all its phases."""
    argv = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(HERE / "schemathesis.toml"),
        "run", f"{waypost.url}/api/openapi.json", "--max-examples", EXAMPLES, "--no-color", "--generation-deterministic",
    ]  # fmt: skip
    environ = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.contracts.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=600, check=False)
    finally:
        for one in waypost.http.get("/api/recalculations", params={"limit": 1000}).json()["recalculations"]:
            # at an activity a second it would take hours, and others wait; those of edits are left: their journeys would stay without numbers
            if one["cause"] == "request" and one["state"] in ("planned", "filling", "switching"):
                waypost.http.post(f"/api/recalculations/{one['id']}/cancel")
    assert done.returncode == 0, "\n".join(line[:500] for line in done.stdout.splitlines())
    assert re.search(r"(\d{3,}) generated, \1 passed", done.stdout), done.stdout[-2000:]  # that it found none of the journeys it named is a warning
