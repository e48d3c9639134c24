"""A unix socket in front of a daemon that can lose a reply: connections break where tests say."""
import pathlib
import select
import socket
import struct
import threading


class Proxy:
    """Passes frames on. lose_reply_of = N: the next request of frame type N reaches the daemon,
    its reply does not reach the client, and the connection breaks."""

    def __init__(self, folder, target):
        self.address = f"unix:{pathlib.Path(folder) / 'proxy.sock'}"
        self.target, self.lose_reply_of, self.lost = target[5:], None, 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address[5:])
        self._listener.listen()
        self._stop_out, self._stop_in = socket.socketpair()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._stop_in.close()
        self._listener.close()

    def _accept(self):
        while True:
            try:
                ready, _, _ = select.select([self._listener, self._stop_out], [], [])
                if self._stop_out in ready:
                    return
                client = self._listener.accept()[0]
            except (OSError, ValueError):
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.target)
        try:
            while True:
                ready, _, _ = select.select([client, server], [], [])
                for one, other in ((client, server), (server, client)):
                    if one not in ready:
                        continue
                    kind, frame = read_frame(one)
                    if one is server and kind == self.lose_reply_of:
                        self.lose_reply_of, self.lost = None, self.lost + 1
                        return
                    other.sendall(frame)
        except (OSError, EOFError):
            pass
        finally:
            client.close()
            server.close()


def read_frame(connection):
    """(type, bytes) of the next frame."""
    head = read_exactly(connection, 32)
    kind, flags = head[5], struct.unpack_from("<H", head, 6)[0]
    message_bytes, payload_bytes = struct.unpack_from("<I8xQ", head, 8)
    rest = message_bytes + payload_bytes + (8 if flags & 2 else 0)
    return kind, head + read_exactly(connection, rest)


def read_exactly(connection, count):
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data
