"""Hostile values, and damage to values and bytes that were good. Everything is drawn from one `random.Random`."""

import copy
import json
import random
from typing import Any

TEXTS = (
    '', ' ', '0', '1', '-1', '3.5', 'nan', 'inf', '-inf', '1e400', '1e-400', 'true', 'null', '[]', '{}', '"', "'",
    '%s', '{0}',
    'a\x1b[31mb', '\x1b]0;title\x07', '\x9b31m', 'a\nb', 'a\r\nTraceback (most recent call last):', '\x00', '\x7f',
    '\u202e', '\u2028',
    '\ud800', '\ufeff', 'é', '漢字', '🙂', '٣', '../secret', '/etc/passwd', '..', '.', '~', 'C:\\a', '\\\\host\\a',
    'a/b', 'a' * 300,
    '9' * 400, '9' * 5000, '$(touch MARKER)', '`touch MARKER`', ';touch MARKER',
    '__import__("os").system("touch MARKER")',
    'float32', 'bfloat16', 'float8_e4m3fn', 'float128', 'object', 'O', '|V8', '>f4', 'int4', 'F32', 'complex64', 'str',
    'flax', 'timm', 'tresnet_jax', 'tresnet_m', 'test_resnet', 'test_tresnet.fashion_mnist', 'resnet50d', 'hf-hub:a/b',
    'local-dir:.', 'avg', 'catavgmax', 'ml_decoder', 'multilabel', 'classification', 'bicubic', 'center',
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 8, 10, 16, 32, 255, 256, 1000, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63,
    2**64,
    -(2**31), -(2**63), -(2**64), 10**30, 10**400, 0.5, -0.0, 1e-300, 1e300, float('inf'), float('-inf'), float('nan'),
)  # fmt: skip
BYTES = (0, 1, 0x1B, 0x28, 0x2E, 0x5B, 0x7B, 0x7F, 0x80, 0xFE, 0xFF)


def text(rng: random.Random) -> str:
    """Return a text: one of those that break things, or characters at random."""
    if rng.random() < 0.8:
        return rng.choice(TEXTS)
    return ''.join(
        chr(rng.choice((rng.randrange(32), rng.randrange(32, 127), rng.randrange(0x3000)))) for _ in range(8)
    )


def number(rng: random.Random) -> int | float:
    """Return a number at an edge, or one of a few digits."""
    return rng.choice(NUMBERS) if rng.random() < 0.8 else rng.randrange(-100, 10_000)


def value(rng: random.Random, depth: int = 3) -> Any:
    """Return a JSON value of any kind."""
    kind = rng.randrange(10 if depth else 7)
    if kind < 3:
        return number(rng)
    if kind < 6:
        return text(rng)
    if kind == 6:
        return rng.choice((None, True, False))
    items = [value(rng, depth - 1) for _ in range(rng.randrange(5))]
    return items if kind < 9 else {text(rng): item for item in items}


def nested(rng: random.Random) -> str:
    """Return JSON text of deep nesting, closed or not."""
    depth = rng.choice((50, 130, 500, 900, 1100, 5000, 100_000))
    opening, closing = rng.choice((('[', ']'), ('{"a":', '}')))
    return opening * depth + '1' + (closing * depth if rng.random() < 0.8 else '')


def changed(rng: random.Random, document: Any) -> Any:
    """Return a JSON value with one of its parts removed, repeated, renamed, or replaced with any value."""
    document = copy.deepcopy(document)
    places = list(_places(document))
    if not places:
        return value(rng)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        holder, key = rng.choice(places)
        if isinstance(holder, list):
            if key >= len(holder):
                continue
            match rng.randrange(4):
                case 0:
                    del holder[key]
                case 1:
                    holder.insert(key, copy.deepcopy(holder[key]))
                case _:
                    holder[key] = value(rng)
        elif key in holder:
            match rng.randrange(6):
                case 0:
                    del holder[key]
                case 1:
                    holder[text(rng)] = holder.pop(key)
                case 2:
                    holder[text(rng)] = value(rng)
                case _:
                    holder[key] = value(rng)
    return document


def _places(document: Any) -> list[tuple[Any, Any]]:
    places: list[tuple[Any, Any]] = []
    if isinstance(document, dict | list):
        for key, item in document.items() if isinstance(document, dict) else enumerate(document):
            places += [(document, key), *_places(item)]
    return places


def as_json(rng: random.Random, document: Any) -> bytes:
    """Return a document as the bytes of a JSON file, now and then with an error that only the bytes can have."""
    written = json.dumps(document, ensure_ascii=rng.random() < 0.7)
    match rng.randrange(20):
        case 0:
            written = written.replace(':', f':{nested(rng)},"b":', 1)
        case 1:
            written = nested(rng)
        case 2:  # keys that are there twice
            written = written.replace('{', '{' + written[1:-1] + ',', 1) if written.startswith('{') else written * 2
        case 3:
            written = ' ' * rng.randrange(5000) + written + rng.choice(('}', '\0', ',', '\n\n', 'x'))
    if rng.random() < 0.004:  # as much as a file may have, and more
        part = rng.choice(('[],', '{},', '"ab",', '1e9,', '[[[[1]]]],'))
        written = f'{written[:-1]},"flood":[{part * rng.choice((10**6, 3 * 10**6, 10**7))}1]' + written[-1:]
    data = written.encode('utf-8', 'surrogatepass')
    match rng.randrange(12):
        case 0:
            return damaged(rng, data)
        case 1:
            return rng.choice((b'\xef\xbb\xbf' + data, written.encode('utf-16', 'surrogatepass'), b'', b'\xff' + data))
    return data


def damaged(rng: random.Random, data: bytes, first: int | None = None) -> bytes:
    """Return bytes that were cut, changed, repeated, moved, removed or padded.

    Args:
        rng: draws the damage.
        data: the bytes.
        first: most of the damage is among so many first bytes, where a file has its headers. None: anywhere.
    """
    changed = bytearray(data)
    if not changed:
        return bytes(changed)
    end = min(first or len(changed), len(changed)) if rng.random() < 0.8 else len(changed)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not changed:
            break
        at = rng.randrange(min(end, len(changed)))
        match rng.randrange(8):
            case 0:
                del changed[rng.randrange(len(changed)) :]
            case 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2 | 3:
                for _ in range(rng.choice((1, 2, 8))):
                    changed[rng.randrange(min(end, len(changed)))] = rng.choice(BYTES + (rng.randrange(256),))
            case 4:
                changed[at:at] = changed[at : at + rng.randrange(1, 40)]
            case 5:
                del changed[at : at + rng.randrange(1, 40)]
            case 6:
                start = rng.randrange(len(changed))
                changed[at:at] = changed[start : start + rng.randrange(1, 40)]
            case 7:  # a number of 16, 32 or 64 bits
                size = rng.choice((2, 4, 8))
                edge = rng.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1))
                changed[at : at + size] = edge.to_bytes(size, rng.choice(('little', 'big')))
    return bytes(changed) + rng.choice((b'', b'', b'', b'', b'\0' * 100, b'a'))
