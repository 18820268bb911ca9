"""Compiled programs, read: which collectives they have, and in which loops."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

# What devices can say to each other. An asynchronous one begins with `-start`.
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "collective-permute",
    "reduce-scatter",
)
_HEADER = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>\S+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?\S+ = (?P<type>\(.*?\)|\S+) (?P<opcode>[a-z][a-z\d-]*)\("
)
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:to_apply|calls|body|condition|\w+_computations?)=(\{[^}]*\}|%?[^\s,]+)"
)


class Instruction(NamedTuple):
    """One instruction of a program.

    Attributes:
      opcode: what it does, of an asynchronous one without `-start`.
      bytes: the size of its result, all arrays of a tuple together.
      called: the computations that it calls: of a loop, the body and the condition.
    """

    opcode: str
    bytes: int
    called: tuple[str, ...]


class Program(NamedTuple):
    """A compiled program: its computations by name, and the one that it begins with."""

    computations: dict[str, list[Instruction]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> Program:
        """Reads the text of an HLO module."""
        computations: dict[str, list[Instruction]] = {}
        entry = ""
        current: list[Instruction] = []
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if header := _HEADER.match(line):
                current = computations.setdefault(header["name"], [])
                entry = header["name"] if header["entry"] else entry
            elif match := _INSTRUCTION.match(line):
                called = " ".join(_CALLED.findall(line))
                current.append(
                    Instruction(
                        match["opcode"].removesuffix("-start"),
                        _size_in_bytes(match["type"]),
                        tuple(re.findall(r"[^\s,{}%]+", called)),
                    )
                )
        return cls(computations, entry)

    def within(self, names: Iterable[str]) -> list[Instruction]:
        """The instructions of computations, and of all that these call."""
        found: dict[str, list[Instruction]] = {}
        pending = list(names)
        while pending:
            name = pending.pop()
            if name not in found:
                found[name] = self.computations[name]
                pending += [call for each in found[name] for call in each.called]
        return list(itertools.chain.from_iterable(found.values()))

    def communication(self) -> dict[str, Any]:
        """The collectives, in number and bytes: all of them, and those of each loop."""
        everything = self.within([self.entry])
        number = Counter(each.opcode for each in everything)
        size: Counter[str] = Counter()
        for each in everything:
            size[each.opcode] += each.bytes
        reductions = [each.bytes for each in everything if each.opcode == "all-reduce"]
        return {
            "collectives": {
                kind: {"number": number[kind], "bytes": size[kind]}
                for kind in COLLECTIVES
            },
            "sorts": number["sort"],
            "largest_all_reduce_bytes": max(reductions, default=0),
            "loops": [
                self._one_pass(each) for each in everything if each.opcode == "while"
            ],
        }

    def _one_pass(self, loop: Instruction) -> dict[str, int]:
        """What is added up over devices in one pass of a loop, at most."""
        reductions = [size for name in loop.called for size in self._reductions(name)]
        return {"all_reduces": len(reductions), "bytes": sum(reductions)}

    def _reductions(self, name: str) -> list[int]:
        """The bytes of each all-reduce of a computation, in one branch of many."""
        found: list[int] = []
        for each in self.computations[name]:
            if each.opcode == "all-reduce":
                found.append(each.bytes)
                continue
            called = [self._reductions(other) for other in each.called]
            found += (
                max(called, key=sum, default=[])
                if each.opcode == "conditional"
                else itertools.chain.from_iterable(called)
            )
        return found


def _size_in_bytes(type_: str) -> int:
    """The bytes of an array's type, or of all arrays in the type of a tuple."""
    total = 0
    for kind, bits, shape in _ARRAY.findall(type_):
        width = 1 if kind == "pred" else math.ceil(int(bits or 0) / 8)
        total += width * math.prod(int(size) for size in shape.split(",") if size)
    return total
