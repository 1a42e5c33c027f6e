"""Array types and the checks on arrays that several modules share."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lada_secure.errors import ParameterError

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_Scalar = TypeVar("_Scalar", bound=np.generic)


def frozen(array: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
    """A copy that refuses writes, for arrays inside frozen dataclasses."""
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def float_vector(
    name: str,
    values: npt.ArrayLike,
    *,
    length: int | None = None,
    low: float = -np.inf,
    high: float = np.inf,
) -> FloatArray:
    """Check one vector of finite numbers in [low, high] and return it as float64.

    Raises: ParameterError: not one-dimensional, wrong length, NaN or infinite, out of range.
    """
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or (length is not None and len(vector) != length):
        wanted = "one dimension" if length is None else f"({length},)"
        raise ParameterError(f"{name}: expected shape {wanted}, got {vector.shape}")
    _check_entries(name, vector, low, high)
    return vector


def float_matrix(
    name: str,
    values: npt.ArrayLike,
    *,
    rows: int | None = None,
    columns: int | None = None,
    low: float = -np.inf,
    high: float = np.inf,
) -> FloatArray:
    """Check one matrix of finite numbers in [low, high] and return it as float64.

    Raises: ParameterError: not two-dimensional, wrong size, NaN or infinite, out of range.
    """
    matrix = np.asarray(values, dtype=np.float64)
    found = matrix.shape
    if len(found) != 2 or rows not in (None, found[0]) or columns not in (None, found[1]):
        wanted = f"({'n' if rows is None else rows}, {'m' if columns is None else columns})"
        raise ParameterError(f"{name}: expected shape {wanted}, got {found}")
    _check_entries(name, matrix, low, high)
    return matrix


def _check_entries(name: str, array: FloatArray, low: float, high: float) -> None:
    if not np.isfinite(array).all():
        wrong = int((~np.isfinite(array)).sum())
        raise ParameterError(f"{name}: {wrong} of {array.size} entries are NaN or infinite")
    if (array < low).any() or (array > high).any():
        raise ParameterError(f"{name}: expected entries in [{low:g}, {high:g}]")


def whole_vector(
    name: str, values: npt.ArrayLike, *, low: int, high: int, length: int | None = None
) -> IntArray:
    """Check one vector of whole numbers in [low, high] and return it as int64.

    Raises: ParameterError: not whole numbers (NaN and infinity are none), not one-dimensional,
        wrong length, out of range. The message holds no entry: it may be meant to stay hidden.
    """
    array = np.asarray(values)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ParameterError(
            f"{name}: expected whole numbers in one dimension, got {array.dtype} of shape "
            f"{array.shape}"
        )
    if length is not None and len(array) != length:
        raise ParameterError(f"{name}: expected {length} entries, got {len(array)}")
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        raise ParameterError(f"{name}: expected entries in [{low}, {high}]")
    return array.astype(np.int64)


def index_vector(
    name: str, values: npt.ArrayLike, *, below: int, length: int | None = None
) -> IntArray:
    """Check one vector of indices in [0, below): `whole_vector`."""
    return whole_vector(name, values, low=0, high=below - 1, length=length)
