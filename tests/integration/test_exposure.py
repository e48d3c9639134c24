"""Who can reach the unix socket: its mode, and that users let in need nothing else changed."""
import os

import pytest

from support.wire import Closed, Conn, pb

NOBODY = 65534


def hello_as(uid, address):
    """What another user's Hello is answered: "OK", an error, "closed", or why it cannot connect."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "failed"
        try:
            os.setgid(uid)
            os.setuid(uid)
            with Conn(address, hello=False) as conn:
                answer = conn.ask(pb.Hello()).code
        except Closed:
            answer = "closed"
        except OSError as error:
            answer = type(error).__name__
        finally:
            os.write(write_end, answer.encode())
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


def mode_of(daemon):
    return (daemon.folder / "kvarnd.sock").stat().st_mode & 0o7777


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_s25_socket_is_for_its_owner_unless_uids_are_allowed(start, umask):
    assert mode_of(start(umask=umask)) == 0o600
    assert mode_of(start("--allow-uids", "4711", umask=umask)) == 0o666


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_s25_allowed_users_need_only_to_pass_the_folder(start):
    daemon = start("--allow-uids", NOBODY)
    assert hello_as(NOBODY, daemon.address) == "PermissionError"
    os.chmod(daemon.folder, 0o711)
    assert hello_as(NOBODY, daemon.address) == "OK"
    assert hello_as(NOBODY - 1, daemon.address) in ("FORBIDDEN", "closed")
    daemon = start()
    os.chmod(daemon.folder, 0o711)
    assert hello_as(NOBODY, daemon.address) == "PermissionError"
