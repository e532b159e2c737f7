"""Ways to damage a file, or to make it hostile: pure functions of its bytes and a seeded random generator."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from random import Random

import h5py
import numpy as np

Mutator = Callable[[bytes, Random], bytes]

HUGE = (2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
OUTSIDE = ("../../evil", "/tmp/jacli-evil", "..\\evil", "a/../../../evil", "evil\0name", "./.././evil")


def cut(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content))]


def cut_the_head(content: bytes, random: Random) -> bytes:
    return content[random.randint(1, len(content)) :]


def flip_bits(content: bytes, random: Random) -> bytes:
    mutated = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        mutated[random.randrange(len(mutated))] ^= 1 << random.randrange(8)
    return bytes(mutated)


def flip_bits_of_the_head(content: bytes, random: Random) -> bytes:
    """Where headers and tables of contents are."""
    size = random.choice((64, 512, 4096))
    return flip_bits(content[:size], random) + content[size:]


def flip_bits_of_the_tail(content: bytes, random: Random) -> bytes:
    size = random.choice((22, 128, 1024))
    return content[:-size] + flip_bits(content[-size:], random)


def overwrite(content: bytes, random: Random) -> bytes:
    """A run of bytes becomes zeros, ones or noise."""
    length = random.choice((1, 2, 4, 8, 16, 256))
    run = random.choice((b"\0" * length, b"\xff" * length, random.randbytes(length)))
    at = random.randrange(len(content))
    return (content[:at] + run + content[at + length :])[: len(content)]


def insert(content: bytes, random: Random) -> bytes:
    at, noise = random.randrange(len(content)), random.randbytes(random.choice((1, 4, 64)))
    return content[:at] + noise + content[at:]


def leave_out(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content))
    return content[:at] + content[at + random.choice((1, 4, 64, 1024)) :]


def repeat(content: bytes, random: Random) -> bytes:
    """A piece appears twice."""
    start = random.randrange(len(content))
    piece = content[start : start + random.choice((8, 64, 1024))]
    at = random.randrange(len(content))
    return content[:at] + piece + content[at:]


def wrap(content: bytes, random: Random) -> bytes:
    """Foreign bytes before or behind."""
    noise = random.randbytes(random.choice((1, 22, 512)))
    return random.choice((noise + content, content + noise, content + content))


def inflate_a_length(content: bytes, random: Random) -> bytes:
    """Where a small whole number stands, little-endian, a huge one is put, or one that is a little off."""
    width, code = random.choice(((4, "<I"), (8, "<Q")))
    for _ in range(200):
        at = random.randrange(max(1, len(content) - width))
        (number,) = struct.unpack_from(code, content.ljust(width, b"\0"), at)
        if 0 < number <= len(content):
            bigger = random.choice((*HUGE, number + 1, number * 2, number * 1000, 0)) % 2 ** (8 * width)
            return content[:at] + struct.pack(code, bigger) + content[at + width :]
    return flip_bits(content, random)


ANY: dict[str, Mutator] = {
    function.__name__: function
    for function in (
        cut, cut_the_head, flip_bits, flip_bits_of_the_head, flip_bits_of_the_tail, overwrite, insert,
        leave_out, repeat, wrap, inflate_a_length,
    )
}  # fmt: skip
"""For a file of any format."""


def _members(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def _archive(members: list[tuple[str, bytes]], *, deflated: frozenset[int] = frozenset()) -> bytes:
    """An archive with true checksums, so that what is inside is looked at."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two members of one name
        for number, (name, member) in enumerate(members):
            kind = zipfile.ZIP_DEFLATED if number in deflated else zipfile.ZIP_STORED
            info = zipfile.ZipInfo("entry")
            info.filename = name
            archive.writestr(info, member, compress_type=kind)
    return buffer.getvalue()


def damage_a_member(content: bytes, random: Random) -> bytes:
    """One member is mutated and the archive written anew: its checksums hold."""
    members = _members(content)
    at = random.randrange(len(members))
    name, member = members[at]
    if member:
        members[at] = name, random.choice(list(ANY.values()))(member, random)
    return _archive(members)


def damage_a_pickle(content: bytes, random: Random) -> bytes:
    members = _members(content)
    pickles = [at for at, (name, _) in enumerate(members) if name.endswith(".pkl")]
    if not pickles:
        return damage_a_member(content, random)
    at = random.choice(pickles)
    name, member = members[at]
    members[at] = name, random.choice(list(PICKLE.values()))(member, random)
    return _archive(members)


def damage_the_code(content: bytes, random: Random) -> bytes:
    """Of a TorchScript archive, or the JSON of an exported program."""
    members = _members(content)
    texts = [at for at, (name, _) in enumerate(members) if name.endswith((".py", ".json"))]
    if not texts:
        return damage_a_member(content, random)
    at = random.choice(texts)
    name, member = members[at]
    tokens = re.findall(rb"\w+|\W", member)
    for _ in range(random.choice((1, 2, 5))):
        where = random.randrange(len(tokens))
        tokens[where] = random.choice(
            (b"", b"0", b"-1", b"9" * 30, b"(" * 5000, b"None", b"torch", random.choice(tokens), b"forward")
        )
    members[at] = name, b"".join(tokens)
    return _archive(members)


def deflate_members(content: bytes, random: Random) -> bytes:
    members = _members(content)
    return _archive(members, deflated=frozenset(n for n in range(len(members)) if random.random() < 0.5))


def lose_a_member(content: bytes, random: Random) -> bytes:
    members = _members(content)
    del members[random.randrange(len(members))]
    return _archive(members)


def rename_a_member(content: bytes, random: Random) -> bytes:
    """Out of the archive's folder, or to the name of another."""
    members = _members(content)
    at = random.randrange(len(members))
    name = random.choice((*OUTSIDE, random.choice(members)[0], members[at][0].upper()))
    members[at] = name, members[at][1]
    return _archive(members)


def nest(content: bytes, random: Random) -> bytes:
    """The archive becomes a member of itself, some times over."""
    for _ in range(random.choice((1, 1, 3))):
        members = _members(content)
        at = random.randrange(len(members))
        members[at] = members[at][0], content
        content = _archive(members, deflated=frozenset((at,)))
    return content


def lie_about_sizes(content: bytes, random: Random) -> bytes:
    """In the table of contents: the sizes, or the place, of a member."""
    entries = [found.start() for found in re.finditer(b"PK\x01\x02", content)]
    if not entries:
        return flip_bits(content, random)
    field = random.choice((20, 24, 42))  # packed size, unpacked size, place of the local header
    at = random.choice(entries) + field
    number = random.choice((0, 1, 2**20, 2**30, 2**31 - 1, 2**32 - 2, 2**32 - 1))
    other = content[random.choice(entries) + field :][:4]
    return content[:at] + random.choice((struct.pack("<I", number), other)) + content[at + 4 :]


def plant_a_bomb(content: bytes, random: Random) -> bytes:
    """A member that unpacks to gigabytes of zeros, under its true size or a small one."""
    members = _members(content)
    at = random.randrange(len(members))
    name = members[at][0]
    size = random.choice((64 * 2**20, 2**30, 3 * 2**30))
    true_size = random.random() < 0.7
    packed = zeros_deflated(size)
    members[at] = name, b"?" * len(packed)
    mutated = bytearray(_archive(members))
    start = mutated.index(b"?" * len(packed))
    mutated[start : start + len(packed)] = packed
    local = start - len(name.encode()) - 30
    *_, central = [
        found.start() for found in re.finditer(b"PK\x01\x02", mutated)
        if struct.unpack_from("<I", mutated, found.start() + 42) == (local,)
    ]  # fmt: skip
    for header, method, crc, unpacked in ((local, 8, 14, 22), (central, 10, 16, 24)):
        struct.pack_into("<H", mutated, header + method, 8)
        struct.pack_into("<I", mutated, header + crc, _crc_of_zeros(size) if size <= 64 * 2**20 else 0)
        struct.pack_into("<I", mutated, header + unpacked, size if true_size else 1000)
    return bytes(mutated)


ZIP: dict[str, Mutator] = {
    function.__name__: function
    for function in (
        damage_a_member, damage_a_pickle, damage_the_code, deflate_members, lose_a_member, rename_a_member,
        nest, lie_about_sizes, plant_a_bomb,
    )
}  # fmt: skip


def zeros_deflated(size: int) -> bytes:
    """A raw deflate stream of ``size`` zeros, a multiple of 16 MiB, made of one piece repeated."""
    piece = 16 * 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    flushed = packer.compress(b"\0" * piece) + packer.flush(zlib.Z_FULL_FLUSH)
    return flushed * (size // piece) + packer.flush(zlib.Z_FINISH)


def _crc_of_zeros(size: int) -> int:
    crc, piece = 0, b"\0" * 2**20
    for _ in range(size // len(piece)):
        crc = zlib.crc32(piece, crc)
    return crc


def inflate_a_number(content: bytes, random: Random) -> bytes:
    """The argument of one of a pickle's whole numbers, such as a size or a shape."""
    numbers = [found.start() for found in re.finditer(rb"[KMJ]", content)]
    at = random.choice(numbers or [0])
    width = {b"K": 1, b"M": 2, b"J": 4}.get(content[at : at + 1], 1)
    huge = random.choice(HUGE)
    longer = b"\x8a" + bytes([9]) + huge.to_bytes(9, "little")  # LONG1
    return content[:at] + longer + content[at + 1 + width :]


def inflate_a_string(content: bytes, random: Random) -> bytes:
    strings = [found.start() for found in re.finditer(b"X..\0\0", content, re.DOTALL)]
    at = random.choice(strings or [0])
    return content[: at + 1] + struct.pack("<I", random.choice(HUGE) % 2**32) + content[at + 5 :]


def name_another_function(content: bytes, random: Random) -> bytes:
    """A class that the pickle names becomes one that does harm when called."""
    names = list(re.finditer(rb"c[\w.]+\n[\w.]+\n", content))
    evil = random.choice(
        (b"os\nsystem\n", b"posix\nsystem\n", b"builtins\nexec\n", b"builtins\neval\n", b"torch\nload\n",
         b"builtins\ngetattr\n", b"torch.hub\nload\n", b"shutil\nrmtree\n", b"nobody\nknows\n")
    )  # fmt: skip
    if not names:
        return b"\x80\x02c" + evil + b"X\x04\x00\x00\x00true\x85R."
    found = random.choice(names)
    return content[: found.start()] + b"c" + evil + content[found.end() :]


def nest_deeply(content: bytes, random: Random) -> bytes:
    """Tuples in tuples: by their number, or doubled at each level."""
    levels = random.choice((50, 2000, 100_000))
    if random.random() < 0.5:
        return b"\x80\x02)" + b"\x85" * levels + b"." + content
    return b"\x80\x02)" + b"2\x86" * min(levels, 2000) + b"." + content


def name_by_a_tuple(content: bytes, random: Random) -> bytes:
    """A class whose name is a tuple of 2 ** 60 parts, for readers that print it."""
    return b"\x80\x04)" + b"2\x86" * random.choice((30, 60)) + b"2\x93." + content


def other_opcode(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content))
    opcode = random.choice(
        b"(.0123FIJKLMNPQRSTUVXabcdeghijlopqrstu}]\x80\x81\x82\x85\x8a\x8b\x8c\x8d\x93\x94"
    )
    return content[:at] + bytes([opcode]) + content[at + 1 :]


PICKLE: dict[str, Mutator] = {
    function.__name__: function
    for function in (
        inflate_a_number, inflate_a_string, name_another_function, nest_deeply, name_by_a_tuple, other_opcode,
    )
}  # fmt: skip
"""For a pickle, and the pickles in archives."""


def damage_the_json(content: bytes, random: Random) -> bytes:
    """The header of a safetensors file: sizes, offsets, types, names."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    entry = header[random.choice([name for name in header if name != "__metadata__"])]
    kind = random.randrange(7)
    if kind == 0:
        entry["shape"] = [random.choice((*HUGE, 0, -1)) for _ in range(random.randrange(5))]
    elif kind == 1:
        entry["data_offsets"][random.randrange(2)] = random.choice((*HUGE, 0, -1))
    elif kind == 2:
        entry["dtype"] = random.choice(("F64", "U8", "BOOL", "F8_E4M3", "F4", "evil", ""))
    elif kind == 3:
        header["../../evil"] = dict(entry)
    elif kind == 4:
        entry["shape"] = "many"
    elif kind == 5:
        header["__metadata__"] = {"x": "y" * 10_000_000}
    text = json.dumps(header).encode()
    if kind == 6:
        text = b'{"a":' * random.choice((100, 200_000)) + text
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def damage_the_npy_header(content: bytes, random: Random) -> bytes:
    size = int.from_bytes(content[8:10], "little")
    header = content[10 : 10 + size].decode("latin-1")
    huge = random.choice((*HUGE, -1, 0))
    kind = random.randrange(6)
    if kind == 0:
        header = re.sub(r"\((\d+)", f"({huge}", header)
    elif kind == 1:
        header = re.sub(r"\(.*\)", f"({huge}, {huge})", header)
    elif kind == 2:
        descr = random.choice(("|O", "<f8", "|S1000000000", "|V99999", "<U4", "<c16", "evil", "<m8[s]"))
        header = re.sub(r"'[<|>][^']*'", f"'{descr}'", header, count=1)
    elif kind == 3:
        header = "(" * random.choice((50, 5000)) + header
    elif kind == 4:
        header = "-" * 5000 + "1"
    else:
        header = header.replace("False", random.choice(("True", "None", "__import__('os')")))
    text = header.encode("latin-1") + b"\n"
    return content[:8] + (len(text) % 2**16).to_bytes(2, "little") + text + content[10 + size :]


def damage_hdf5_metadata(content: bytes, random: Random) -> bytes:
    """Near the signatures of B-trees, heaps and object headers."""
    places = [
        found.start() for found in re.finditer(rb"TREE|SNOD|HEAP|GCOL|OHDR|FRHP|BTHD|FAHD|\x89HDF", content)
    ]
    at = random.choice(places or [0])
    size = random.choice((32, 128, 512))
    around = content[at : at + size]
    mutator = random.choice((flip_bits, overwrite, inflate_a_length))
    return content[:at] + mutator(around, random) + content[at + size :]


def damage_packed_numbers(content: bytes, random: Random) -> bytes:
    """In what gzip packed, or anywhere in the half where the numbers mostly are."""
    packed = [found.start() for found in re.finditer(rb"x[\x01\x5e\x9c\xda]", content)]
    at = random.choice(packed) if packed else random.randrange(len(content) // 2, len(content))
    return content[:at] + overwrite(content[at : at + 64], random) + content[at + 64 :]


def edit_a_dataset(content: bytes, random: Random) -> bytes:
    """A dataset goes, or becomes one of another kind or shape: the file is sound, what it says is not."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
        name = random.choice(sorted(names))
        old = file[name]
        shape, values = old.shape, None if old.is_virtual else old[...]
        change = random.choice(sorted(EDITS))
        del file[name]
        if change == "a group":
            file.create_group(name)
        elif change != "nothing":
            file[name] = EDITS[change](np.zeros(shape) if values is None else values)
    return buffer.getvalue()


EDITS: dict[str, Callable[[np.ndarray], object]] = {
    "nothing": lambda old: None,
    "a group": lambda old: None,
    "one number": lambda old: 3.0,
    "no value": lambda old: h5py.Empty("f4"),
    "text": lambda old: np.full(old.shape, b"x"),
    "text of any length": lambda old: np.full(old.shape, "x", h5py.string_dtype()),
    "records": lambda old: np.zeros(old.shape, [("a", "f4"), ("b", "i4")]),
    "too few": lambda old: old[:1],
    "none": lambda old: old[:0],
    "too many": lambda old: np.concatenate([old, old]),
    "one axis": lambda old: old.reshape(-1),
    "another axis": lambda old: old[..., None],
    "NaN": lambda old: np.full(old.shape, np.nan),
    "huge": lambda old: np.full(old.shape, 10**15),
    "negative": lambda old: np.full(old.shape, -(10**9)),
}
"""What a dataset of an HDF5 file may become."""


HDF5: dict[str, Mutator] = {
    **{f"damage_hdf5_metadata_{n}": damage_hdf5_metadata for n in range(6)},
    **{f"edit_a_dataset_{n}": edit_a_dataset for n in range(4)},
    "damage_packed_numbers": damage_packed_numbers,
}
"""Some under several names, to be drawn more often."""


def mutators_of(content: bytes) -> dict[str, Mutator]:
    """Those that make sense for what the bytes are."""
    if content.startswith(b"PK"):
        return ANY | ZIP
    if content.startswith(b"\x80\x02"):
        return ANY | PICKLE
    if content.startswith(b"\x93NUMPY"):
        return ANY | {"damage_the_npy_header": damage_the_npy_header}
    if content.startswith(b"\x89HDF"):
        return ANY | HDF5
    if content[8:9] == b"{":
        return ANY | {f"damage_the_json_{n}": damage_the_json for n in range(6)}
    return ANY


def running(code: str) -> bytes:
    """A pickle that runs ``code`` when it is loaded by anyone who believes it."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (code,)

    return pickle.dumps(Evil(), protocol=2)
