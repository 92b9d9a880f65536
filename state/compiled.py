"""Compiled: how loops over bytes become machine code. Without a compiler on the machine: numba brings its own, and keeps what it made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(loop: F) -> F:
    """*loop*, compiled when it is first called, without the interpreter's lock while it runs. It must check its own bounds.

    What was compiled is kept beside the module, in the user's cache or in `NUMBA_CACHE_DIR`; where nothing can be written, each process
    compiles it again.
    """
    try:
        return cast(F, numba.njit(cache=True, nogil=True)(loop))
    except RuntimeError:  # no place to keep it
        return cast(F, numba.njit(nogil=True)(loop))
