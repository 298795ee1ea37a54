"""A reader of containers that was written from docs/design/container.md alone: slow, and without any of our code."""

import math
import struct
import zlib

TYPES = ["?", "b", "B", "h", "H", "i", "I", "q", "Q", "e", "bf", "f", "d", "F", "D"]


def read(content):
    """Returns the files by name, and by path the type, shape and values of the tensors; values as tuples of bits."""
    magic, version, zero, number, size, unpacked, checksum = struct.unpack_from("<8sHHIQQI", content)
    assert (magic, version, zero, size) == (b"\x89KPZ\r\n\x1a\n", 1, 0, len(content))
    assert checksum == zlib.crc32(content[:32])
    at, files, tensors, total = 36, {}, {}, 0
    for _ in range(number):
        kind, head, body, checksum, own = struct.unpack_from("<4sIQII", content, at)
        header, payload = content[at + 24 : at + 24 + head], content[at + 24 + head : at + 24 + head + body]
        assert checksum == zlib.crc32(payload)
        assert own == zlib.crc32(content[at : at + 20] + header)
        at += 24 + head + body
        if kind == b"FILE":
            zipped, length = struct.unpack_from("<BQ", header)
            files[header[9:].decode()] = zlib.decompress(payload) if zipped else payload
            assert len(files[header[9:].decode()]) == length
            total += length
        else:
            assert kind == b"TNSR"
            name, kind, shape, words, width = tensor(header, payload)
            tensors[name] = (kind, shape, words)
            total += len(words) * width
    assert (at, total) == (len(content), unpacked)
    return files, tensors


def tensor(header, payload):
    kind, rank, sparse, coded, _, stored, gaps, gap_bytes = struct.unpack_from("<BBBBIQQQ", header)
    shape = struct.unpack_from(f"<{rank}I", header, 32)
    letter = TYPES[kind - 1]
    parts = 2 if letter in "FD" else 1
    width = {"bf": 2, "F": 4, "D": 8}.get(letter) or struct.calcsize(letter)
    size = math.prod(shape) * parts
    values = payload[gap_bytes:]
    if coded:
        (count,) = struct.unpack_from("<I", values)
        book = [values[4 + i * width : 4 + (i + 1) * width] for i in range(count)]
        lengths, used = table(values[4 + count * width :])
        assert len(lengths) == count
        found = codes(values[4 + count * width + used :], lengths, book, stored)
    else:
        found = [values[i * width : (i + 1) * width] for i in range(stored)]
    if sparse:
        words, place = [bytes(width)] * size, 0
        if gaps:
            lengths, used = table(payload)
            symbols = list(payload[used : used + len(lengths)])
            found = iter(found)
            for gap in codes(payload[used + len(symbols) : gap_bytes], lengths, symbols, gaps):
                place += gap
                if gap != 255:
                    words[place] = next(found)
                    place += 1
    else:
        words = found
    return header[32 + 4 * rank :].decode(), letter, shape, words, width


def table(content):
    """The length of each code, in their order, and the bytes of the table."""
    counts = struct.unpack_from(f"<{content[0]}H", content, 1)
    return [bits for bits, count in enumerate(counts, 1) for _ in range(count)] or [0], 1 + 2 * content[0]


def codes(content, lengths, symbols, number):
    if lengths == [0]:
        assert not content
        return symbols * number
    known, code, last = {}, 0, 0
    for symbol, length in zip(symbols, lengths, strict=True):
        code <<= length - last
        known[length, code] = symbol
        code, last = code + 1, length
    found, code, length = [], 0, 0
    for bit in (byte >> (7 - i) & 1 for byte in content for i in range(8)):
        code, length = code * 2 + bit, length + 1
        if (length, code) in known and len(found) < number:
            found.append(known[length, code])
            code, length = 0, 0
    assert len(found) == number
    assert length < 8
    assert not code
    return found
