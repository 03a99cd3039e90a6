"""Messages without what people have written: token ids become as many zeros, salts become empty.

Which fields that are, their types say (`accelgen.proto.messages.PRIVATE`). Bodies are not decoded for it: for every
message with such fields there is a shadow type, in which whatever does not lead to one of them stays raw msgpack.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

from msgspec import NODEFAULT, Meta, Raw, Struct, defstruct, field
from msgspec.msgpack import Decoder, Encoder
from msgspec.structs import FieldInfo, fields

from accelgen.proto.messages import MESSAGES, PRIVATE

_encode = Encoder().encode
_EMPTY_BYTES = Raw(_encode(b""))

Wipe = Callable[[Any], Any]


def scrubbed(tag: int, body: bytes) -> bytes:
    """The body of a message of MESSAGES[tag] without its private parts. Raises msgspec.MsgspecError if it is none."""
    known = _SHADOWS[tag]
    if known is None:
        return body
    decoder, wipe = known
    return _encode(wipe(decoder.decode(body)))


def _blank_tokens(raw: Raw) -> Raw:
    """As many zeros: zero is one byte, and the head of the array stays as it is."""
    view = memoryview(raw)
    first = view[0]
    size = 1 if first & 0xF0 == 0x90 else 3 if first == 0xDC else 5
    count = first & 0x0F if size == 1 else int.from_bytes(view[1:size], "big")
    return Raw(bytes(view[:size]) + bytes(count))


def _blank_salt(_: Raw) -> Raw:
    return _EMPTY_BYTES


def _shadow(kind: Any) -> tuple[Any, Wipe] | None:
    """The type to decode a field of `kind` as, and how to wipe it; None if nothing in it is private."""
    if get_origin(kind) is Annotated and any(
        isinstance(meta, Meta) and meta.extra == PRIVATE for meta in get_args(kind)[1:]
    ):
        return Raw, _blank_salt if get_args(kind)[0] is bytes else _blank_tokens
    if get_origin(kind) is list:
        inner = _shadow(get_args(kind)[0])
        if inner is None:
            return None
        part, wipe = inner
        return list[part], lambda values: [wipe(value) for value in values]  # type: ignore[valid-type]
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _shadow_struct(kind)
    assert not any(_shadow(part) for part in get_args(kind)), f"private, and not known how: {kind}"
    return None


def _shadow_struct(kind: type[Struct]) -> tuple[Any, Wipe] | None:
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {one.name: _shadow(hints[one.name]) for one in fields(kind)}
    wipes = [(name, shadow[1]) for name, shadow in found.items() if shadow is not None]
    if not wipes:
        return None
    members: list[Any] = []
    for one in fields(kind):
        shadow = found[one.name]
        part = Raw if shadow is None else shadow[0]
        members.append((one.name, part, *_default(one, part)))
    made = defstruct(f"{kind.__name__}Shadow", members, array_like=True, gc=False)

    def wipe(value: Any) -> Any:
        for name, part in wipes:
            setattr(value, name, part(getattr(value, name)))
        return value

    return made, wipe


def _default(original: FieldInfo, part: Any) -> tuple[Any, ...]:
    """What a field that was left out on the wire stands for, as a `part`."""
    if original.required:
        return ()
    value = original.default
    if value is NODEFAULT:
        assert original.default_factory is not NODEFAULT
        value = original.default_factory()
    wire = _encode(value)
    return (field(default_factory=lambda: Decoder(part).decode(wire)),)


def _decoder_and_wipe(kind: Any) -> tuple[Decoder[Any], Wipe] | None:
    shadow = _shadow(kind)
    return None if shadow is None else (Decoder(shadow[0]), shadow[1])


_SHADOWS = [_decoder_and_wipe(kind) for kind in MESSAGES]
