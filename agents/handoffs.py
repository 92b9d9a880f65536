"""Handoffs: the wire form of messages between partitions. msgpack of `[format version, kind, message]`; never interprets a message."""

from __future__ import annotations

import msgspec

from schemas.errors import Refused
from state.messages import Join, Message, Unite

VERSION = 1
_KINDS: dict[str, type[Join] | type[Unite]] = {"join": Join, "unite": Unite}
_encode = msgspec.msgpack.Encoder().encode
_decode_envelope = msgspec.msgpack.Decoder(tuple[int, str, msgspec.Raw]).decode
_decode_message = {kind: msgspec.msgpack.Decoder(type_).decode for kind, type_ in _KINDS.items()}


def encode(message: Message) -> bytes:
    """The bytes of *message*."""
    return _encode((VERSION, "join" if isinstance(message, Join) else "unite", message))


def decode(raw: bytes) -> Message:
    """The message of *raw*. Raises Refused when it is none of this format."""
    try:
        version, kind, rest = _decode_envelope(raw)
        if version != VERSION or kind not in _decode_message:
            raise Refused(
                "unknown_handoff", f"handoff of format {version}, kind {kind!r}; this worker reads format {VERSION}"
            )
        message: Message = _decode_message[kind](rest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("bad_handoff", f"not a handoff: {error}") from error
    return message
