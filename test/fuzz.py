"""Seeded damage for fuzz tests; MMFUSE_FUZZ=1000000 sets how many inputs each of them makes."""

from __future__ import annotations

import copy
import json
import os

BUDGET = int(os.environ.get("MMFUSE_FUZZ", "0"))

EDGES = [0, 1, 2, 3, 4, 5, 7, 8, 63, 64, 255, 256, 8191, 8192, 8193, 65535, 2**31 - 1, 2**32 - 1]
VALUES = [None, True, "", "x", [], {}, -1, 0, 1, 2.5, 1e308, 2**31, 2**63, 10**30, float("nan")]


def pick(rng, options):
    return options[int(rng.integers(len(options)))]


def mutate(rng, data):
    """Flip, overwrite, cut, repeat and insert a few times."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(len(data) + 1))
        size = int(rng.integers(1, 32))
        kind = int(rng.integers(6))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + size] = rng.bytes(size)
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[at : at + size] * int(rng.integers(1, 20))
        elif kind == 4:
            data[at : at + 4] = int(pick(rng, EDGES)).to_bytes(4, pick(rng, ["big", "little"]))
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)


def mutate_tree(rng, tree):
    """Return a copy of a JSON value of which a few parts are replaced, removed or repeated."""
    root = [copy.deepcopy(tree)]
    for _ in range(int(rng.integers(1, 4))):
        holder, key = pick(rng, list(_places(root)))
        kind = int(rng.integers(4))
        if kind == 0 and holder is not root:
            del holder[key]
        elif kind == 1 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * pick(rng, [-1, 0, 2, 1000, 2**33]) + pick(rng, [-1, 0, 1])
        elif kind == 2 and isinstance(holder[key], list):
            holder[key] = holder[key] * pick(rng, [0, 2, 50])
        else:
            holder[key] = copy.deepcopy(pick(rng, VALUES))
    return root[0]


def mutate_json(rng, data):
    """Damage a JSON text: its bytes, or what it says."""
    if rng.random() < 0.3:
        return mutate(rng, data)
    return json.dumps(mutate_tree(rng, json.loads(data))).encode()


def mutate_safetensors(rng, data):
    """Damage a file of eight bytes of length, a JSON header and arrays."""
    if rng.random() < 0.3:
        return mutate(rng, data)
    end = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:end])
    inner = entries.get("__metadata__", {})
    if inner and rng.random() < 0.6:
        key = pick(rng, list(inner))
        damage = mutate_json if inner[key].startswith("{") else mutate
        inner[key] = damage(rng, inner[key].encode()).decode(errors="replace")
    else:
        entries = mutate_tree(rng, entries)
    text = json.dumps(entries).encode()
    body = mutate(rng, data[end:]) if rng.random() < 0.2 else data[end:]
    return len(text).to_bytes(8, "little") + text + body


def _places(node):
    """Yield every container and key below a node."""
    keys = range(len(node)) if isinstance(node, list) else list(node)
    for key in keys:
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])
