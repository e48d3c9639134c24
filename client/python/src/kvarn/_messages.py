"""The message classes of kvarnd.proto, the same for every version of protobuf from 3.20 on."""
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from kvarn._descriptor import SERIALIZED

__all__ = ["CALLS", "ENUMS", "TYPES", "message", "reply_class"]

# By frame type (PROTOCOL.md section 6); numbers between that no call has are left out.
CALLS = {1: "Hello", 2: "Ping", 3: "RegisterShape", 4: "OpenSession", 5: "Append",
         6: "AppendTiles", 7: "ReadBlocks", 8: "Attend", 9: "AppendAttend", 10: "Truncate",
         11: "CloseSession", 12: "DropSession", 13: "ListSessions", 14: "InspectSession",
         15: "Stats", 16: "Cancel", 17: "Fork", 18: "Reorder", 19: "MatchPrefix",
         20: "Touch", 21: "Pin", 22: "Evict", 23: "Prefetch", 24: "ListJobs",
         25: "Verify", 26: "ReadMetric"}
TYPES = {name: number for number, name in CALLS.items()}


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
    name = CALLS[kind]
    return message["AttendReply" if name == "AppendAttend" else name + "Reply"]
