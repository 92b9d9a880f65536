"""A child process that never outlives us, even when we are killed with SIGKILL; it must not know what the child does.

The child's shell leaves a watcher behind that waits on a pipe of ours. However we end, the kernel closes the pipe, and the watcher kills
the child. (PR_SET_PDEATHSIG would also fire when the *thread* that started the child ends, and exists on Linux only.)
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

# `exec` keeps the process id: the child is a direct child of ours. A line on the pipe means "ended in good order", end of file means
# "the parent is gone". The watcher closes its log so that nobody waits for an end of file there.
_SCRIPT = 'exec 3<&0; me=$$; ( exec >/dev/null 2>&1; read -r _ <&3 || kill -KILL "$me" ) & exec "$@" 3<&- </dev/null'


class GuardedProcess:
    """A started child; its output goes to the end of *log*. Not tied to the terminal: Ctrl-C reaches us only."""

    def __init__(self, argv: Sequence[str], *, log: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as out:
            self._log_start_bytes = out.tell()
            self._popen = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "sh", *argv], stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT,
                cwd=cwd, env=None if env is None else dict(env), start_new_session=True)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    def signal(self, number: int) -> None:
        """Sends a signal to the child, if it still runs."""
        if self.alive:
            os.kill(self.pid, number)

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Ends the child: politely, then by force. Safe to call again."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self._dismiss()

    def wait(self) -> int:
        """Waits until the child has ended by itself; its exit code."""
        code = self._popen.wait()
        self._dismiss()
        return code

    def kill(self) -> None:
        """Ends the child at once (SIGKILL) and waits for it."""
        self.signal(signal.SIGKILL)
        self._popen.wait()
        self._dismiss()

    def _dismiss(self) -> None:
        """Sends the watcher home."""
        pipe = self._popen.stdin
        if pipe is not None and not pipe.closed:
            try:
                pipe.write(b"\n")
                pipe.close()
            except BrokenPipeError:  # the watcher is gone already
                pass

    def tail(self, lines: int = 20) -> str:
        """The end of what this child wrote, for error messages."""
        written = self.log.read_bytes()[self._log_start_bytes:]
        return "\n".join(written.decode(errors="replace").splitlines()[-lines:])
