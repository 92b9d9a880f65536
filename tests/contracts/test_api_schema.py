"""The API against its own OpenAPI document: schemathesis makes requests, good, bad and in sequences, and compares every answer with the document."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import Waypost

pytestmark = pytest.mark.embedded

ROOT = Path(__file__).parents[2]
EXAMPLES = os.environ.get("WAYPOST_TEST_EXAMPLES", "20")


def test_schemathesis_finds_nothing(waypost: Waypost, tmp_path: Path) -> None:
    """All its checks. Left out is the stream of live results, which never ends; test_api.py reads it."""
    argv = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{waypost.url}/api/openapi.json",
        "--exclude-path-regex", "/live$", "--max-examples", EXAMPLES, "--no-color", "--generation-deterministic",
    ]  # fmt: skip
    environ = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.contracts.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout
