"""Dumps of a server that never was, event by event, for tests of `accelgen trace`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.msgpack import Encoder

from accelgen.proto.dumps import events_of, head_of, write_dump
from accelgen.proto.epochs import epoch_of
from accelgen.proto.frame import Codec
from accelgen.proto.messages import Body
from accelgen.proto.recorder import FACT, RECV, SEND, Ring

BEGIN_S = 1000.0  # of the monotonic clock; moments are given in ms after it


class Process:
    """One process with its ring. `says` notes a message on both sides, as the two processes would."""

    def __init__(self, name: str, incarnation: int) -> None:
        self.name, self.incarnation = name, incarnation
        self.ring = Ring(1_000_000, 1 << 30)
        self.codec = Codec(incarnation)

    def fact(self, ms: float, name: str, **values: Any) -> None:
        self.ring.add((BEGIN_S + ms / 1e3, FACT, name.encode(), b"", Encoder().encode(values)))

    def says(self, ms: float, to: Process, body: Body, term: int = 1, hop_ms: float = 0.1) -> None:
        peer, moment_s = to.name.encode(), BEGIN_S + ms / 1e3
        header, encoded = self.codec.pack(peer, body, epoch_of(term))
        self.ring.add((moment_s, SEND, peer, header, encoded))
        mine = f"{self.name}:{self.incarnation}".encode()
        to.ring.add((moment_s + hop_ms / 1e3, RECV, mine, header, encoded))

    def dump(self, folder: Path) -> Path:
        """In the order of time, as a ring would have it."""
        ordered = Ring(1_000_000, 1 << 30)
        for event in sorted(self.ring.snapshot()[1], key=lambda event: event[0]):
            ordered.add(event)
        path = folder / f"{self.name}-{self.incarnation}.msgpack"
        write_dump(path, head_of(self.name, self.incarnation, ordered), events_of(ordered))
        return path
