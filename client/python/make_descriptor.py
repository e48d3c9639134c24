"""Writes src/kvarn/_descriptor.py from proto/kvarnd.proto; needs protoc.

usage: python3 client/python/make_descriptor.py

Run it after a change of kvarnd.proto: a test fails where the two differ.
"""
import base64
import pathlib
import subprocess
import tempfile
import textwrap

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto" / "kvarnd.proto"
TARGET = HERE / "src" / "kvarn" / "_descriptor.py"

HEAD = '''"""kvarnd.proto as protoc compiled it: a FileDescriptorProto. Made by make_descriptor.py.

The serialized form rather than protoc's kvarnd_pb2.py, which runs only with a protobuf package
about as old as the protoc that wrote it; this form is read alike by all of them.
"""
import base64

SERIALIZED = base64.b64decode("""
'''


def compile_proto() -> bytes:
    """The serialized FileDescriptorSet of kvarnd.proto."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "set"
        subprocess.run(["protoc", f"--proto_path={PROTO.parent}", f"--descriptor_set_out={out}",
                        PROTO.name], check=True)
        return out.read_bytes()


def file_of_set(descriptor_set: bytes) -> bytes:
    """The one FileDescriptorProto of a set: field 1, so a tag, a length and the bytes."""
    assert descriptor_set[0] == 0x0A, descriptor_set[:1]
    length, shift, at = 0, 0, 1
    while True:
        length |= (descriptor_set[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if descriptor_set[at - 1] < 0x80:
            break
    assert at + length == len(descriptor_set), "kvarnd.proto imports another file"
    return descriptor_set[at:]


def main() -> None:
    encoded = base64.b64encode(file_of_set(compile_proto())).decode()
    TARGET.write_text(HEAD + "\n".join(textwrap.wrap(encoded, 99)) + '\n""")\n')


if __name__ == "__main__":
    main()
