# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llicm.codec.entropy import SYMBOL_LIMIT, Decoder, Encoder, Tables
from llicm.errors import BitstreamError

# The last entry of each is the escape; the first symbols are -1, -2 and 0.
TABLES = Tables([np.array([10, 80, 10, 1]), np.array([1, 5, 20, 5, 1, 1]), np.array([1000, 1])], [-1, -2, 0])


FRAME = b"size and level"


def coded(indexes, values) -> bytes:
    encoder = Encoder(FRAME)
    encoder.symbols(TABLES, np.array(indexes, int), np.array(values, int))
    encoder.check()
    return encoder.finish()


def decoded(payload: bytes, indexes) -> list[int]:
    decoder = Decoder(payload, FRAME)
    values = decoder.symbols(TABLES, np.array(indexes, int))
    decoder.check()
    decoder.finish()
    return values.tolist()


SYMBOLS = st.lists(
    st.tuples(st.integers(0, 2), st.one_of(st.integers(-3, 3), st.integers(-SYMBOL_LIMIT, SYMBOL_LIMIT))), max_size=60
)


@given(SYMBOLS)
def test_every_symbol_comes_back(pairs):
    indexes, values = [k for k, _ in pairs], [v for _, v in pairs]
    assert decoded(coded(indexes, values), indexes) == values


@given(SYMBOLS.filter(len), st.data())
@settings(max_examples=300)
def test_any_change_of_the_payload_is_noticed(pairs, data):
    """Without the file's checksum: an attacker would correct that."""
    indexes, values = [k for k, _ in pairs], [v for _, v in pairs]
    payload = bytearray(coded(indexes, values))
    level = data.draw(st.integers(0, len(payload) - 1))
    payload[level] ^= data.draw(st.integers(1, 255))
    try:
        decoded(bytes(payload), indexes)
    except BitstreamError:
        return
    pytest.fail("an altered payload was decoded without complaint")


@given(st.binary(max_size=400), st.lists(st.integers(0, 2), max_size=2000))
def test_foreign_payloads_end_in_one_exception(payload, indexes):
    with pytest.raises(BitstreamError):
        decoded(payload, indexes)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_count_is_noticed(change):
    indexes = [0, 1, 1, 2, 0, 1] * 20
    payload = coded(indexes, [0, 1, -2, 0, 1, 0] * 20)
    with pytest.raises(BitstreamError):
        decoded(payload, indexes[:change] if change < 0 else [*indexes, 1])


def test_rate_is_that_of_the_tables():
    """1,000 symbols of probability 80/101 and 101/10 each in turn, and 3 bytes for the check."""
    indexes, values = [0] * 4000, [0, 0, 0, 1] * 1000
    bits = 3000 * np.log2(101 / 80) + 1000 * np.log2(101 / 10)
    assert bits / 8 < len(coded(indexes, values)) < bits / 8 + 9


def test_likely_symbols_cost_next_to_nothing():
    assert len(coded([2] * 500, [0] * 500)) <= 4


def test_bytes_are_those_of_the_first_version():
    """Files outlive library versions: a payload written once is decoded for ever."""
    indexes = [0, 1, 2, 0, 1, 2, 0, 1]
    values = [0, -2, 0, 1, 5, -70000, 300, 2]
    payload = bytes.fromhex("e5cd6c74d248fec71481db2406")
    assert coded(indexes, values) == payload
    assert decoded(payload, indexes) == values


def test_symbols_beyond_the_limit_are_not_coded():
    with pytest.raises(ValueError, match=str(SYMBOL_LIMIT)):
        coded([0], [SYMBOL_LIMIT + 1])
