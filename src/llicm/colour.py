# SPDX-License-Identifier: Apache-2.0
"""What a picture file says of its colours and its shape beside what Pillow passes on."""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Chromaticities = tuple[float, ...]  # x, y of red, green, blue, white
_D65 = (0.3127, 0.329)
_SRGB: Chromaticities = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, *_D65)
_ADOBE: Chromaticities = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, *_D65)
# Numbers of ITU-T H.273 (tables 2 and 3), as PNG's cICP and the nclx of AVIF and HEIC use them; 2 is "not specified".
_PRIMARIES: dict[int, Chromaticities] = {
    1: _SRGB,
    2: _SRGB,
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.31, 0.316),
    5: (0.64, 0.33, 0.29, 0.6, 0.15, 0.06, *_D65),
    6: (0.63, 0.34, 0.31, 0.595, 0.155, 0.07, *_D65),
    7: (0.63, 0.34, 0.31, 0.595, 0.155, 0.07, *_D65),
    9: (0.708, 0.292, 0.17, 0.797, 0.131, 0.046, *_D65),
    11: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.314, 0.351),
    12: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, *_D65),
    22: (0.63, 0.34, 0.295, 0.605, 0.155, 0.077, *_D65),
}
# Exponents; None is the curve of sRGB, which viewers use for television's (1, 6, 14, 15), too.
_TRANSFERS = {1: None, 2: None, 6: None, 13: None, 14: None, 15: None, 4: 2.2, 5: 2.8, 8: 1.0}
_REFUSED = {16: "PQ (high dynamic range)", 18: "HLG (high dynamic range)"}


@dataclass
class Facts:
    """Of a file: `data` for Pillow; an ICC `profile`, or `primaries` and `exponent` (None: sRGB's curve); for PNG the
    depth and the transparent colour.

    `named`: the file names its colours at all, be it as sRGB. `unended`: a JPEG got its end marker here.
    """

    data: bytes
    profile: bytes | None = None
    primaries: Chromaticities = _SRGB
    exponent: float | None = None
    named: bool = False
    depth: int = 8
    clear: tuple[int, ...] | None = None
    unended: bool = False

    def name(self, primaries: Chromaticities, exponent: float | None) -> None:
        self.primaries, self.exponent, self.named = primaries, exponent, True

    def cicp(self, primaries: int, transfer: int) -> None:
        """Colours by the numbers of H.273. Raises ValueError for those that cannot be converted."""
        if transfer not in _TRANSFERS or primaries not in _PRIMARIES:
            what = _REFUSED.get(transfer, f"transfer {transfer}, primaries {primaries} of H.273")
            raise ValueError(f"its colours are in {what}, which cannot be converted: save it as sRGB")
        self.name(_PRIMARIES[primaries], _TRANSFERS[transfer])

    def adobe(self) -> None:
        """Adobe RGB (1998)."""
        self.name(_ADOBE, 563 / 256)

    def icc(self, grey: bool) -> bytes | None:
        """The profile to convert from; None: the colours are sRGB's."""
        if self.profile:
            return self.profile
        same = max(abs(a - b) for a, b in zip(self.primaries, _SRGB, strict=True)) < 0.005
        return None if (grey or same) and self.exponent is None else matrix_profile(self.primaries, self.exponent, grey)


def facts_of(data: bytes) -> Facts:
    """Look into a picture file of any format.

    Raises:
        ValueError: its colours are told, but cannot be converted, or it is a truncated JPEG.
    """
    facts = Facts(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _png(facts)
    elif data.startswith(b"\xff\xd8"):
        _jpeg(facts)
    elif data[4:8] in (b"ftyp", b"jP  "):
        _boxes(facts)
    elif data.startswith(b"BM"):
        _bmp(facts)
    return facts


def _png(facts: Facts) -> None:
    """Texts are dropped, which Pillow bounds, and so are other unneeded chunks with a wrong checksum."""
    data, kept, at = facts.data, [facts.data[:8]], 8
    found: dict[bytes, bytes] = {}
    while at + 12 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        chunk = data[at : at + 12 + length]
        if len(chunk) < 12 + length:
            break
        at, body = at + 12 + length, chunk[8:-4]
        sound = zlib.crc32(chunk[4:-4]) == struct.unpack(">I", chunk[-4:])[0]
        if not sound and kind in (b"tRNS", b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"):
            raise ValueError(f"its chunk {kind.decode()}, which tells its colours, is damaged")
        found.setdefault(kind, body)
        plain = found.get(b"IHDR", b"").ljust(10, b"\0")[9] in (0, 2)
        text = kind in (b"tEXt", b"zTXt", b"iTXt")
        if not text and (sound or not kind[0] & 32) and not (kind == b"tRNS" and plain):
            kept.append(chunk)
    facts.data = b"".join(kept) + data[at:]
    head = found.get(b"IHDR", b"")
    facts.depth = head[8] if len(head) == 13 else 8
    if (key := found.get(b"tRNS")) and len(head) == 13 and head[9] in (0, 2):
        if len(key) != (2 if head[9] == 0 else 6):
            raise ValueError("its transparent colour is damaged")
        facts.clear = tuple(value & (1 << facts.depth) - 1 for value in struct.unpack(f">{len(key) // 2}H", key))
    if len(code := found.get(b"cICP", b"")) == 4:
        if code[2] or not code[3]:
            raise ValueError("its colours are coded as video (cICP), which cannot be converted: save it as sRGB")
        facts.cicp(code[0], code[1])
    elif b"iCCP" in found:
        pass  # Pillow's
    elif b"sRGB" in found:
        facts.named = True
    elif b"gAMA" in found or b"cHRM" in found:
        white = struct.unpack(">8I", found[b"cHRM"]) if len(found.get(b"cHRM", b"")) == 32 else None
        places = tuple(v / 1e5 for v in (*white[2:], *white[:2])) if white else _SRGB
        value = struct.unpack(">I", found[b"gAMA"])[0] if len(found.get(b"gAMA", b"")) == 4 else 0
        # Within 5% it is sRGB's, which the standard writes as 45455.
        facts.name(places, 1e5 / value if value and not 0.95 < value / 45455 < 1.05 else None)


_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def _jpeg(facts: Facts) -> None:
    """Add the end marker that is missing; what is cut elsewhere is refused later, or here."""
    data, at = facts.data, 2
    left: dict[int, set[int]] = {}
    while found := _MARKER.search(data, at):
        kind, at = data[found.start() + 1], found.end()
        if kind == 0xD9:
            return
        if at + 2 > len(data):
            return
        size = struct.unpack_from(">H", data, at)[0]
        body, at = data[at + 2 : at + size], at + size
        if at > len(data):
            return
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC) and len(body) > 5:
            left = {number: set(range(64)) for number in body[6::3]}
        elif kind == 0xDA and len(body) > 3 and not body[-1] & 15:  # the last bits of these coefficients
            for number in body[1 : 1 + 2 * body[0] : 2]:
                left.get(number, set()).difference_update(range(body[-3], body[-2] + 1))
    if left and not any(left.values()):
        facts.data = data + b"\xff\xd9"
        facts.unended = True  # `images` proves that nothing else is missing


def _walk(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of ISO files: kind, start and end of the content."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            size, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        stop = end if size == 0 else start + size
        if stop < start + head or stop > end:
            return
        yield kind, start + head, stop
        start = stop


def _boxes(facts: Facts) -> None:
    data = facts.data
    for kind, start, end in _walk(data):
        if kind == b"jp2h":
            for inner, a, b in _walk(data, start, end):
                if inner == b"colr":
                    _colr_jp2(facts, data[a:b])
                    break
        elif kind == b"meta":
            inside = {name: (a, b) for name, a, b in _walk(data, start + 4, end)}
            parts = list(_walk(data, *inside.get(b"iprp", (0, 0))))
            ipco = next((list(_walk(data, a, b)) for name, a, b in parts if name == b"ipco"), [])
            ipma = next((data[a:b] for name, a, b in parts if name == b"ipma"), b"")
            mine = _properties(ipma, data[slice(*inside.get(b"pitm", (0, 0)))])
            told = [(i, data[a:b]) for i, (name, a, b) in enumerate(ipco, 1) if name == b"colr"]
            told = [entry for entry in told if entry[0] in mine] or told
            contents = [content for _, content in told]
            if any(content[:4] in (b"prof", b"rICC") for content in contents):
                facts.profile = next(c[4:] for c in contents if c[:4] in (b"prof", b"rICC"))
            for content in contents:
                if content[:4] == b"nclx" and len(content) >= 10:
                    primaries, transfer = struct.unpack_from(">HH", content, 4)
                    if not facts.profile or transfer in _REFUSED:
                        facts.cicp(primaries, transfer)


def _properties(ipma: bytes, pitm: bytes) -> set[int]:
    """Which properties the primary picture has (ISO/IEC 23008-12, 9.3)."""
    if len(ipma) < 8 or len(pitm) < 6:
        return set()
    primary = int.from_bytes(pitm[4 : 8 if pitm[0] else 6], "big")
    wide, long, at = 2 if ipma[3] & 1 else 1, 4 if ipma[0] else 2, 8
    for _ in range(struct.unpack_from(">I", ipma, 4)[0]):
        item, count = (
            int.from_bytes(ipma[at : at + long], "big"),
            int.from_bytes(ipma[at + long : at + long + 1], "big"),
        )
        at += long + 1
        ids = {int.from_bytes(ipma[at + k * wide : at + (k + 1) * wide], "big") for k in range(count)}
        at += count * wide
        if item == primary:
            return {number & (1 << 8 * wide - 1) - 1 for number in ids}
        if at >= len(ipma):
            break
    return set()


def _colr_jp2(facts: Facts, box: bytes) -> None:
    """ISO/IEC 15444-1, I.5.3.3."""
    if box[:1] in (b"\2", b"\3"):
        facts.profile = box[3:]
    elif box[:1] == b"\1" and (number := int.from_bytes(box[3:7], "big")) not in (16, 17, 18):
        raise ValueError(f"its colour space, number {number} of JPEG 2000, cannot be converted: save it as sRGB")


def _bmp(facts: Facts) -> None:
    """The colour space of header versions 4 and 5."""
    data = facts.data
    if len(data) < 122 or (size := struct.unpack_from("<I", data, 14)[0]) < 108:
        return
    kind = data[70:74]
    if kind == b"KNIL":
        raise ValueError("its colour profile is in another file: save it as sRGB")
    if kind == b"DEBM" and size >= 124:
        place, length = struct.unpack_from("<II", data, 126)
        facts.profile = data[14 + place : 14 + place + length] or b"missing"
    elif kind == bytes(4):
        ends, gammas = struct.unpack_from("<9I", data, 74), struct.unpack_from("<3I", data, 110)
        xyz = np.array(ends, float).reshape(3, 3) / 2**30
        if xyz.sum(1).all() and xyz.sum(0).all() and all(gammas):
            white = xyz.sum(0)
            places = [v / p.sum() for p in (*xyz, white) for v in p[:2]]
            exponent = sum(gammas) / 3 / 65536
            facts.name(tuple(places), None if abs(exponent / 2.2 - 1) < 0.05 else exponent)


def matrix_profile(primaries: Chromaticities, exponent: float | None, grey: bool = False) -> bytes:
    """An ICC profile (version 2.4) of these primaries and one curve, sRGB's or a power; `grey`: of the curve alone.

    Raises:
        ValueError: the primaries span no colours.
    """
    number = lambda values: struct.pack(f">{len(values)}i", *(round(float(v) * 65536) for v in values))  # noqa: E731
    kind, values = (3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)) if exponent is None else (0, (exponent,))
    d50 = np.array([0.9642, 1.0, 0.8249])
    try:
        curve = b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + number(values)
        tags = {b"wtpt": b"XYZ \0\0\0\0" + number(d50)}
        if grey:
            tags[b"kTRC"] = curve
        else:
            x, y = np.array(primaries).reshape(4, 2).T
            points = np.stack([x / y, np.ones(4), (1 - x - y) / y])
            matrix = points[:, :3] * np.linalg.solve(points[:, :3], points[:, 3])
            cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
            adapt = np.linalg.inv(cone) @ np.diag(cone @ d50 / (cone @ points[:, 3])) @ cone  # Bradford
            for name, column in zip(b"rgb", (adapt @ matrix).T, strict=True):
                tags[bytes([name]) + b"XYZ"] = b"XYZ \0\0\0\0" + number(column)
                tags[bytes([name]) + b"TRC"] = curve
    except (ArithmeticError, np.linalg.LinAlgError, struct.error, ValueError):
        raise ValueError("its primaries or its gamma make no sense: save it as sRGB") from None
    body, table, place = b"", struct.pack(">I", len(tags)), 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, place + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    space = b"GRAY" if grey else b"RGB "
    head = struct.pack(">I4sI4s4s4s12x4s", place + len(body), b"", 0x02400000, b"mntr", space, b"XYZ ", b"acsp")
    return (head + bytes(28) + number(d50)).ljust(128, b"\0") + table + body
