"""The bytes that a compiled program sends between devices, from the collectives of its HLO."""

import math
import re

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = (.*?) ([\w\-]+)\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|branch_computations)=\{?%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\}|mesh\[(.*?)\] \{(.*?)\})")
# Bytes that one of g devices receives, for a result of one byte, in a ring.
RECEIVED = {
    "all-gather": lambda g: (g - 1) / g,
    "reduce-scatter": lambda g: g - 1,
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "collective-permute": lambda g: 1,
}


def collectives(text: str) -> dict[str, int] | None:
    """Bytes that a device receives by each kind of collective in one call.

    Args:
      text: of the compiled program.

    Returns:
      {kind: bytes}; None where a loop does not say how often it runs (TPUs).

    >>> collectives('''ENTRY %main (a: f32[2]) -> f32[8] {
    ...   ROOT %g = f32[8]{0} all-gather(%a), replica_groups=[1,4]<=[4], dimensions={0}
    ... }''')
    {'all-gather': 24}
    """
    entry, bodies = _computations(text)
    total: dict[str, int] = {}
    pending = [(entry, 1)]
    while pending:
        name, times = pending.pop()
        for line in bodies[name]:
            match = _OPERATION.match(line)
            if match is None:
                continue
            shape, operation = match.groups()
            kind = operation.removesuffix("-start")
            if kind in RECEIVED:
                size = _size(shape, kind if operation.endswith("-start") else "")
                received = round(RECEIVED[kind](_devices(line)) * size)
                total[kind] = total.get(kind, 0) + times * received
            inside = times
            if operation == "while":
                trips = _TRIPS.search(line)
                if trips is None:
                    return None
                inside = times * int(trips.group(1))
            if operation in ("while", "call", "conditional"):
                pending += [(body, inside) for body in _CALLED.findall(line) if body in bodies]
    return total


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """The entry's name, and the lines of every computation."""
    entry, name, bodies = "", "", {}
    for line in map(str.strip, text.splitlines()):
        header = _HEADER.match(line)
        if header and " = " not in line:
            name = header.group(2)
            bodies[name] = []
            entry = name if header.group(1) else entry
        elif name and line != "}":
            bodies[name].append(line)
    return entry, bodies


def _size(shape: str, started: str) -> int:
    """Bytes of a result; the start of most collectives also lists their operands, first."""
    sizes = [
        BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in _SHAPE.findall(shape)
    ]
    if started in ("all-gather", "reduce-scatter", "all-to-all"):
        sizes = sizes[len(sizes) // 2 :]
    if started == "collective-permute":
        sizes = sizes[1:2]
    return sum(sizes)


def _devices(line: str) -> int:
    match = _GROUPS.search(line)
    if match is None:
        return 1
    count, members, mesh, axes = match.groups()
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", axes))
    return int(count) if count else len(members.split(","))
