# SPDX-License-Identifier: Apache-2.0
"""Symbols to bytes and back: asymmetric numeral systems (constriction) under tables of integer frequencies.

The coder is written in Rust: no input makes it read or write out of bounds. Symbols under one table are coded by one
call. A payload carries checks of the symbols themselves, and of the size and level that they are for, and must be used
up by them: so a payload that was not written for these tables and this image is noticed, whatever the checksum of the
file says.

Source: Duda et al., "The use of asymmetric numeral systems as an accurate replacement for Huffman coding", PCS 2015;
constriction: Bamler, "Understanding entropy coding with asymmetric numeral systems (ANS)", 2022.
"""

import copy
import zlib
from collections.abc import Sequence

import constriction
import numpy as np

from llicm.errors import BitstreamError

__all__ = ["SYMBOL_LIMIT", "Decoder", "Encoder", "Tables"]

SYMBOL_LIMIT = 1 << 20
_CHECK = 1 << 24  # 2 to the -24 of wrong payloads pass
_BITS = 23  # of the largest number behind an escape: 2 * SYMBOL_LIMIT + 1 and more

_uniform = constriction.stream.model.Uniform
_ANS = constriction.stream.stack.AnsCoder


class Tables:
    """Frequency tables, one for each context of a symbol.

    Args:
        frequencies: positive integers; the last one of a table is that of the escape symbol.
        first: for each table the symbol that its first entry stands for.
    """

    def __init__(self, frequencies: Sequence[np.ndarray], first: Sequence[int]):
        self.models = [
            constriction.stream.model.Categorical(np.asarray(f, dtype=np.float64), perfect=False) for f in frequencies
        ]
        self.first = np.array(first, np.int32)
        self.escape = np.array([len(f) - 1 for f in frequencies], np.int32)

    def __len__(self) -> int:
        return len(self.models)


class Encoder:
    """Collects what is to be coded, in the order in which it will be decoded.

    Args:
        frame: what the checks cover beside the symbols; a decoder must be given the same.
    """

    def __init__(self, frame: bytes):
        self._parts: list[tuple[np.ndarray, object]] = []
        self._sum = zlib.crc32(frame)

    def symbols(self, tables: Tables, indexes: np.ndarray, values: np.ndarray) -> None:
        """Add symbols.

        Args:
            indexes: (n,) integers, the table of each symbol. values: (n,) integers.

        Raises:
            ValueError: a value is beyond `SYMBOL_LIMIT`.
        """
        if len(values) and max(-int(values.min()), int(values.max())) > SYMBOL_LIMIT:
            raise ValueError(f"a symbol is beyond {SYMBOL_LIMIT}: the weights are damaged or not trained")
        values = values.astype(np.int32)
        self._sum = _checksum(values, self._sum)
        order, groups = _groups(indexes, len(tables))
        indexes = indexes[order]
        entry, escape = values[order] - tables.first[indexes], tables.escape[indexes]
        outside = (entry < 0) | (entry >= escape)
        beyond = entry[outside]
        entry[outside] = escape[outside]
        self._parts += [(entry[a:b], tables.models[index]) for index, a, b in groups]
        if len(beyond):
            high = beyond - escape[outside]
            self._numbers(np.where(high >= 0, 2 * high, -2 * beyond - 1))

    def check(self) -> None:
        """Add a checksum of the frame and the symbols so far."""
        self._parts.append((np.array([self._sum % _CHECK], np.int32), _uniform(_CHECK)))

    def _numbers(self, numbers: np.ndarray) -> None:
        """Non-negative integers: how many bits a number plus one has behind its first, then those bits."""
        numbers = numbers.astype(np.int64) + 1
        bits = np.frexp(numbers.astype(np.float64))[1] - 1
        self._parts.append((bits.astype(np.int32), _uniform(_BITS)))
        for count in np.unique(bits[bits > 0]):
            chosen = numbers[bits == count]
            self._parts.append(((chosen - (1 << count)).astype(np.int32), _uniform(1 << int(count))))

    def finish(self) -> bytes:
        """The payload."""
        coder = _ANS()
        for symbols, model in reversed(self._parts):
            coder.encode_reverse(symbols, model)
        # The highest word is never zero, but its highest bytes may be: they need not be kept.
        return coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class Decoder:
    """Takes from a payload what an `Encoder` has put there, in the same order.

    Raises:
        BitstreamError: the payload cannot have been written by an encoder.
    """

    def __init__(self, payload: bytes, frame: bytes):
        if payload.endswith(b"\0"):
            raise BitstreamError("damaged payload: no encoder writes a zero at its end")
        self._coder = _ANS(np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").astype(np.uint32))
        self._sum = zlib.crc32(frame)

    def copy(self) -> "Decoder":
        """One that goes on from here by itself."""
        other = copy.copy(self)
        other._coder = self._coder.clone()
        return other

    def symbols(self, tables: Tables, indexes: np.ndarray) -> np.ndarray:
        """Symbols (n,) int32 under the tables of these indexes (n,).

        Raises:
            BitstreamError: nonsense behind an escape.
        """
        order, groups = _groups(indexes, len(tables))
        indexes = indexes[order]
        found = [self._coder.decode(tables.models[index], b - a) for index, a, b in groups]
        entry, escape = np.concatenate([np.zeros(0, np.int32), *found]), tables.escape[indexes]
        outside = np.flatnonzero(entry == escape)
        if len(outside):
            number = self._numbers(len(outside))
            if number.max() > 2 * SYMBOL_LIMIT + 1:
                raise BitstreamError("damaged payload: it decodes to a symbol that no encoder writes")
            entry[outside] = np.where(number % 2 == 0, escape[outside] + number // 2, -(number + 1) // 2)
        values = np.empty(len(indexes), np.int32)
        values[order] = entry + tables.first[indexes]
        self._sum = _checksum(values, self._sum)
        return values

    def check(self) -> None:
        """Compare the checksum.

        Raises:
            BitstreamError: it is not that of the frame and the symbols so far.
        """
        if int(self._coder.decode(_uniform(_CHECK))) != self._sum % _CHECK:
            raise BitstreamError("damaged payload: it does not decode to what its encoder coded")

    def finish(self) -> None:
        """Raises BitstreamError if anything is left."""
        if not self._coder.is_empty():
            raise BitstreamError("damaged payload: it does not end where its image ends")

    def _numbers(self, count: int) -> np.ndarray:
        bits = self._coder.decode(_uniform(_BITS), count).astype(np.int64)
        numbers = np.int64(1) << bits
        for length in np.unique(bits[bits > 0]):
            chosen = bits == length
            numbers[chosen] += self._coder.decode(_uniform(1 << int(length)), int(chosen.sum()))
        return numbers - 1


def _checksum(values: np.ndarray, start: int) -> int:
    return zlib.crc32(values.astype("<i4").tobytes(), start)


def _groups(indexes: np.ndarray, count: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Positions ordered by index, and of each index that occurs, ascending, where its positions begin and end there."""
    ends = np.cumsum(np.bincount(indexes, minlength=count)).tolist()
    starts = [0, *ends[:-1]]
    return np.argsort(indexes, kind="stable"), [
        (i, a, b) for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if b > a
    ]
