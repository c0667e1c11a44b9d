"""Bytes as W&B's files have them: protobuf messages, in the log format of LevelDB.

Written by hand, because W&B's own classes cost 45 us a row and half a second to import; the tests read every record
back with those classes. Messages: protobuf.dev/programming-guides/encoding. Log: doc/log_format.md of
github.com/google/leveldb, with zlib's CRC-32 (not masked, not Castagnoli's) and seven bytes before the first block.
"""

import zlib
from collections.abc import Iterable
from functools import lru_cache
from struct import pack

FILE_HEADER = pack("<4sHB", b":W&B", 0xBEE1, 0)
BLOCK = 32768
CHUNK_HEADER = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
_CRC_OF_KIND = [zlib.crc32(bytes([kind])) for kind in range(5)]


@lru_cache(maxsize=1 << 14)
def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """A message of (field number, value): a number or truth value, a text, or a message already encoded."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            out += length_prefix(number, len(content)) + content
    return out


def length_prefix(number: int, length: int) -> bytes:
    """What stands before a text or a message of `length` bytes in field `number`."""
    return varint(number << 3 | 2) + varint(length)


def framed(records: Iterable[bytes], at: int) -> bytes:
    """The records as chunks of a file that is `at` bytes long. No chunk crosses the end of a block."""
    out = bytearray()
    for record in records:
        first = True
        while first or record:
            room = BLOCK - (at + len(out)) % BLOCK - CHUNK_HEADER
            if room < 0:
                out += bytes(room + CHUNK_HEADER)
                continue
            part, record = record[:room], record[room:]
            kind = (FIRST if record else FULL) if first else (MIDDLE if record else LAST)
            out += pack("<IHB", zlib.crc32(part, _CRC_OF_KIND[kind]), len(part), kind) + part
            first = False
    return bytes(out)
