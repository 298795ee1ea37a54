"""A container as bytes: a header, then one record after the other, each with its checksums.

Nothing is read before its length is known to be in the file, and nothing is unpacked before its size was checked.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import IO

from keras_prune.container.errors import Fault, located
from keras_prune.container.tensors import Tensor, parse_header
from keras_prune.files.archives import CONTAINER_MAGIC, LARGEST_MODEL

__all__ = [
    "Member",
    "Record",
    "pack_member",
    "read_records",
    "unpack_member",
    "write_records",
]

VERSION = 1
FILE = struct.Struct("<8sHHIQQI")
"""Magic, version, 0, number of records, bytes of the file, bytes of all content unpacked, CRC-32 of what is before."""
RECORD = struct.Struct("<4sIQII")
"""Kind, bytes of the header and of the payload, CRC-32 of the payload, CRC-32 of what is before and of the header."""
MEMBER = struct.Struct("<BQ")
"""How it is packed (0 as it is, 1 as zlib), and bytes unpacked; the name follows."""
TENSOR_KIND, MEMBER_KIND = b"TNSR", b"FILE"
HEADER = 1 << 16
"""Bytes of a record's header."""
SMALL, RATIO = 64 * 2**20, 1000
"""What unpacks to more bytes than the first may do so to at most so many times the file's."""
SMALL_MEMBER, MEMBER_RATIO = 2**20, 100


@dataclasses.dataclass(frozen=True)
class Member:
    """What the header of a record says that is no tensor but a file: the architecture, a vocabulary.

    Attributes:
        name: as in a `.keras` archive.
        zipped: whether the payload is a zlib stream.
        nbytes: bytes of the file, unpacked.
    """

    name: str
    zipped: bool
    nbytes: int

    def header(self) -> bytes:
        """Return the header in bytes."""
        return MEMBER.pack(self.zipped, self.nbytes) + self.name.encode()


@dataclasses.dataclass(frozen=True)
class Record:
    """One part of a container.

    Attributes:
        what: what its header says.
        payload: its content, packed.
        place: where it is, for messages.
    """

    what: Tensor | Member
    payload: bytes
    place: str = ""

    def __len__(self) -> int:
        """Bytes that it takes in a file."""
        return RECORD.size + len(self.what.header()) + len(self.payload)


def pack_member(name: str, content: bytes) -> Record:
    """Return the record of a file, deflated if that is smaller."""
    zipped = zlib.compress(content, 9)
    smaller = len(zipped) < len(content)
    return Record(Member(name, smaller, len(content)), zipped if smaller else content)


def unpack_member(member: Member, payload: bytes) -> bytes:
    """Return a file's content.

    Raises:
        Fault: it is damaged, or has another size than was declared.
    """
    if not member.zipped:
        return payload
    unzip = zlib.decompressobj()
    try:
        content = unzip.decompress(payload, member.nbytes + 1)
    except zlib.error as error:
        raise Fault(f"its zlib stream is damaged ({error})") from error
    if len(content) != member.nbytes or not unzip.eof or unzip.unused_data:
        raise Fault(f"its zlib stream does not unpack to the {member.nbytes} bytes that it declares")
    return content


# -- writing ----------------------------------------------------------------------------------------------------------


def write_records(stream: IO[bytes], records: Iterable[Record]) -> int:
    """Write a container, record by record, and return its bytes.

    Args:
        stream: a new file, open for writing; the header is written last.
        records: the members, then the tensors.
    """
    stream.write(bytes(FILE.size))
    number, size, unpacked = 0, FILE.size, 0
    for record in records:
        header = record.what.header()
        kind = TENSOR_KIND if isinstance(record.what, Tensor) else MEMBER_KIND
        start = RECORD.pack(kind, len(header), len(record.payload), zlib.crc32(record.payload), 0)[:-4]
        stream.write(start + struct.pack("<I", zlib.crc32(header, zlib.crc32(start))) + header)
        stream.write(record.payload)
        number, size, unpacked = number + 1, size + len(record), unpacked + record.what.nbytes
    start = FILE.pack(CONTAINER_MAGIC, VERSION, 0, number, size, unpacked, 0)[:-4]
    stream.seek(0)
    stream.write(start + struct.pack("<I", zlib.crc32(start)))
    return size


# -- reading ----------------------------------------------------------------------------------------------------------


def read_records(path: str | os.PathLike[str], largest: int = LARGEST_MODEL) -> Iterator[Record]:
    """Yield the records of a container, one at a time in memory, each with its checksums held.

    Args:
        path: of the file.
        largest: bytes that all content may take, unpacked.

    Raises:
        ContainerError: it is damaged, no container, of a later version, or unpacks to too much.
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        with located(path, "byte 0, the file's header"):
            number, unpacked = _read_file_header(stream, size, largest)
        for index in range(number):
            start = stream.tell()
            with located(path, f"byte {start}, record {index + 1} of {number}"):
                what, length, checksum = _read_record_header(stream, size - start)
                if what.nbytes > unpacked:
                    raise Fault(f"{what.nbytes} bytes unpacked, where the file's header leaves {unpacked}")
                unpacked -= what.nbytes
            place = f"byte {start}, {'tensor' if isinstance(what, Tensor) else 'file'} {what.name!r}"
            with located(path, place):
                payload = _exactly(stream, length)
                if zlib.crc32(payload) != checksum:
                    raise Fault("the checksum of its content does not match")
            yield Record(what, payload, place)
            del payload
        with located(path, f"byte {stream.tell()}, the end"):
            if stream.tell() != size or unpacked:
                raise Fault(
                    f"{size - stream.tell()} bytes follow, and {unpacked} bytes of unpacked content are missing"
                )


def _read_file_header(stream: IO[bytes], size: int, largest: int) -> tuple[int, int]:
    """Return how many records there are, and to how many bytes they unpack."""
    content = stream.read(FILE.size)
    start = content[: len(CONTAINER_MAGIC)]
    if start != CONTAINER_MAGIC:
        other = ", as a .keras file does, which keras_prune.load_model reads" if start.startswith(b"PK") else ""
        raise Fault(f"a container begins with {CONTAINER_MAGIC!r}, and this file with {start!r}{other}")
    if len(content) < FILE.size:
        raise Fault("the header is cut off")
    _, version, flags, number, declared, unpacked, checksum = FILE.unpack(content)
    if zlib.crc32(content[:-4]) != checksum:
        raise Fault("the checksum of the header does not match")
    if version != VERSION or flags:
        raise Fault(
            f"version {version}.{flags} of the format, where {VERSION}.0 is known: a later keras-prune wrote it"
        )
    if declared != size:
        raise Fault(f"{size} bytes, where the header says {declared}")
    if unpacked > largest or unpacked > max(SMALL, RATIO * size):
        raise Fault(
            f"{unpacked} bytes unpacked, where {largest} are allowed, and {RATIO} times the file's {size} if they are "
            f"more than {SMALL}"
        )
    if number > size // RECORD.size:
        raise Fault(f"{number} records in {size} bytes")
    return number, unpacked


def _read_record_header(stream: IO[bytes], left: int) -> tuple[Tensor | Member, int, int]:
    """Return what the header says, the length of the payload and its checksum."""
    start = _exactly(stream, RECORD.size)
    kind, length, payload, checksum, own = RECORD.unpack(start)
    if length > HEADER or RECORD.size + length + payload > left:
        raise Fault(f"a record of {length} + {payload} bytes, where {left - RECORD.size} are left in the file")
    header = _exactly(stream, length)
    if zlib.crc32(header, zlib.crc32(start[:-4])) != own:
        raise Fault("the checksum of its header does not match")
    if kind == TENSOR_KIND:
        return parse_header(header), payload, checksum
    if kind != MEMBER_KIND:
        raise Fault(f"a record of kind {kind!r}, which is not known")
    return _parse_member(header, payload), payload, checksum


def _parse_member(header: bytes, payload: int) -> Member:
    if len(header) <= MEMBER.size:
        raise Fault("the header of a file is cut off")
    zipped, size = MEMBER.unpack_from(header)
    try:
        name = header[MEMBER.size :].decode()
    except UnicodeDecodeError as error:
        raise Fault("the file's name is no UTF-8") from error
    if zipped > 1 or (not zipped and size != payload):
        raise Fault(f"a file of {size} bytes, packed as {zipped} in {payload}")
    if size > max(SMALL_MEMBER, MEMBER_RATIO * payload):
        raise Fault(f"a file of {size} bytes in {payload} packed ones, more than {MEMBER_RATIO} times as many")
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise Fault(f"a file named {name!r}, which would lie outside of its folder")
    return Member(name, bool(zipped), size)


def _exactly(stream: IO[bytes], number: int) -> bytes:
    content = stream.read(number)
    if len(content) != number:
        raise Fault(f"the file ends after {len(content)} of {number} bytes")
    return content
