"""The message classes of kvarnd.proto, the same for every version of protobuf from 3.20 on."""
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from kvarn._descriptor import SERIALIZED

__all__ = ["CALLS", "ENUMS", "TYPES", "message", "reply_class"]

# In the order of their frame type, from 1 (PROTOCOL.md section 6).
CALLS = ("Hello", "Ping", "RegisterShape", "OpenSession", "Append", "AppendTiles", "ReadBlocks",
         "Attend", "AppendAttend", "Truncate", "CloseSession", "DropSession", "ListSessions",
         "InspectSession", "Stats", "Cancel")
TYPES = {name: number for number, name in enumerate(CALLS, 1)}


def _load() -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    # A pool of our own: a kvarnd_pb2 that the program has besides does not get in the way.
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto.FromString(SERIALIZED)
    pool.Add(file)
    found = pool.FindFileByName(file.name)
    if hasattr(message_factory, "GetMessageClass"):
        make: Any = message_factory.GetMessageClass
    else:
        make = getattr(message_factory.MessageFactory(pool), "GetPrototype")
    classes = {name: make(d) for name, d in found.message_types_by_name.items()}
    enums = {name: {v.name: v.number for v in e.values}
             for name, e in found.enum_types_by_name.items()}
    return classes, enums


message, ENUMS = _load()


def reply_class(kind: int) -> Any:
    """The class of a reply to a request of this type; 0 is ErrorReply."""
    if kind == 0:
        return message["ErrorReply"]
    name = CALLS[kind - 1]
    return message["AttendReply" if name == "AppendAttend" else name + "Reply"]
