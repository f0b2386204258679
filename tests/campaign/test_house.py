"""What the campaign reads of a process."""

import os
import socket
import struct

from tests.campaign.house import _num_dead_sockets


def test_a_socket_whose_client_reset_it_is_dead_until_it_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        before = _num_dead_sockets(os.getpid())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # a reset
        assert _num_dead_sockets(os.getpid()) == before + 1
        server.close()
        assert _num_dead_sockets(os.getpid()) == before
