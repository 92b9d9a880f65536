"""What tests of several rooms need."""

PATIENCE_SECONDS = 180.0
"""How long a test waits for what must come. No machine is that slow: how fast something is, the bench says, and no test fails for it."""
