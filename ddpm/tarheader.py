"""Headers of tar members: 512 bytes each (POSIX ustar, GNU sizes), and the records of pax."""

from typing import NamedTuple

BLOCK = 512


class Broken(Exception):
    """Reading cannot go on behind this place of the archive."""


class Member(NamedTuple):
    """What a header announces; kind is tar's type flag."""

    name: str
    size: int
    kind: bytes


def parse(block: bytes) -> Member:
    """The member that a header block announces. Raises Broken when it is damaged."""
    stored = _octal(block[148:156])
    if stored != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise Broken("is damaged: a member's header does not match its checksum")
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    size_field = block[124:136]
    is_binary = size_field[0] & 0x80
    size = int.from_bytes(size_field[1:], "big") if is_binary else _octal(size_field)
    return Member(name, size, block[156:157])


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0") or b"0"
    # int() alone would take signs, underscores and prefixes.
    if digits.strip(b"01234567"):
        raise Broken(f"is damaged: a member's header has the number {field!r}")
    return int(digits, 8)


def _text(text: bytes) -> str:
    return text.partition(b"\0")[0].decode("ascii", "replace")


def pax_records(data: bytes) -> dict[str, str]:
    """The records of a pax header, `LENGTH KEY=VALUE\\n` each."""
    records, rest = {}, data
    while rest:
        length, _, _ = rest.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(rest):
            raise Broken("is damaged: a member's extended header cannot be read")
        key, _, value = rest[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("ascii", "replace")] = value.decode("ascii", "replace")
        rest = rest[int(length) :]
    return records
