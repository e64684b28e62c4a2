"""Kernels: loops over flat arrays, compiled once per machine, with the same bits on every machine.

The compiler may not contract `a * b + c` nor reorder a sum (no fastmath), so a kernel computes what
its lines say in IEEE arithmetic. It runs without the GIL. Signatures are explicit: compiled code is
there after the import, from the disk cache on all starts but the first. (The cache knows a loop by
its own file: after a change in this one, or in an `inlined` loop of another, delete
`__pycache__/*.nbi`.)
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from numba import njit, types
from numba.core.typing.templates import Signature

P = ParamSpec("P")
R = TypeVar("R")


def view_of(value: types.Type, *, ndim: int = 1) -> types.Array:
    """Return the type of an array that is only read: also of bytes, at any alignment."""
    return types.Array(value, ndim, "C", readonly=True, aligned=False)


def buffer_of(value: types.Type, *, ndim: int = 1) -> types.Array:
    """Return the type of an array that is written to."""
    return types.Array(value, ndim, "C", aligned=False)


def kernel(*signatures: Signature) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return the decorator that compiles a loop for these signatures."""

    def compiled(loop: Callable[P, R]) -> Callable[P, R]:
        try:
            return _compiled(loop, signatures, cache=True)
        except Exception:  # noqa: BLE001 - no place for a cache, a full one, or a damaged one: any bytes
            return _compiled(loop, signatures, cache=False)  # an error of ours comes again here

    return compiled


def inlined(loop: Callable[P, R]) -> Callable[P, R]:
    """Return a loop that kernels call: it is compiled into each of them."""
    return njit(error_model="numpy")(loop)


def _compiled(
    loop: Callable[P, R], signatures: tuple[Signature, ...], *, cache: bool
) -> Callable[P, R]:
    # "numpy": a division is the IEEE one, without a branch that raises ZeroDivisionError.
    return njit(list(signatures), nogil=True, error_model="numpy", cache=cache)(loop)
