"""What replicas and clients say to each other has a name, which the handshake compares."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec

from ondisk import diskkv
from ondisk.net import client_messages
from ondisk.net.channel import _MAGIC
from ondisk.raft import messages

KNOWN = "b497d801"


def _bare(schema: Any) -> Any:
    """Without what is said to people."""
    if isinstance(schema, dict):
        return {key: _bare(value) for key, value in schema.items() if key not in ("description", "title")}
    return [_bare(each) for each in schema] if isinstance(schema, list) else schema


def test_who_changes_a_message_or_adds_a_command_gives_the_protocol_another_name() -> None:
    """A replica that does not know a command would go on with another state than the others."""
    said = (messages.Message, client_messages.Request, client_messages.Response, diskkv.Command)
    schemas, parts = msgspec.json.schema_components(said)
    text = json.dumps(_bare([list(schemas), parts]), sort_keys=True)
    found = hashlib.sha256(text.encode() + _MAGIC).hexdigest()[:8]
    assert found == KNOWN, "other messages or commands: count the magic in net/channel.py up, then note this"
