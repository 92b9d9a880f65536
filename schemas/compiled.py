"""Compiled: how loops over bytes become machine code. Without a compiler on the machine: numba brings its own, and keeps what it made."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np

Array = np.ndarray[Any, Any]
F = TypeVar("F", bound=Callable[..., object])
_loops: list[Any] = []


def compiled(loop: F) -> F:
    """*loop*, compiled when it is first called, without the interpreter's lock while it runs. It must check its own bounds.

    What was compiled is kept beside the module, in the user's cache or in `NUMBA_CACHE_DIR`; where nothing can be written, each process
    compiles it again.
    """
    try:
        made = numba.njit(cache=True, nogil=True)(loop)
    except RuntimeError:  # no place to keep it
        made = numba.njit(nogil=True)(loop)
    _loops.append(made)
    return cast(F, made)


class Loops:
    """The compiled loops of a module. *use* calls each of them as the module does; `ready`: using them costs no compilation."""

    def __init__(self, use: Callable[[], None]) -> None:
        self._use = use
        self.ready = False

    def warm(self) -> None:
        """Compiles them, which takes seconds where nobody has before, and makes them `ready`."""
        self._use()
        self.ready = True


def check_inside(data: bytes, starts: Any, sizes: Any) -> None:
    """Raises IndexError unless all values lie inside of *data*. *starts*, *sizes*: int64 of one length; a size of -1 is no value."""
    if len(starts) and (int(starts.min()) < 0 or int((starts + np.maximum(sizes, 0)).max()) > len(data)):
        raise IndexError("a value lies outside of its data")


def worth_preparing() -> bool:
    """Whether something was never compiled on this machine and could be kept: then it is better done in another process, which takes the memory that
    compiling takes along when it ends (70 MiB), and the interpreter's lock as well."""
    for loop in _loops:
        place = getattr(loop._cache, "cache_path", None)
        if place is not None and not any(Path(place).glob(f"*.{loop.py_func.__name__}-{loop.py_func.__code__.co_firstlineno}.*.nbi")):
            return True
    return False


def let_go() -> None:
    """Gives the memory of the compiler's code back, 70 MiB, where the system can: everything is compiled, and what is needed again is read again."""
    libc = ctypes.CDLL(None)
    with contextlib.suppress(OSError, AttributeError), open("/proc/self/maps") as maps:  # of Linux
        for line in maps:
            span, rights, *_, name = line.split()
            if rights == "r-xp" and "libllvmlite" in name:  # code: nobody has written there
                begin, end = (int(address, 16) for address in span.split("-"))
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
