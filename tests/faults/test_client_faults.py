"""The evidence for clients that misbehave."""

from __future__ import annotations

import socket

from accelgen.faults.client_faults import unread


def test_only_what_was_sent_to_a_client_waits_for_it() -> None:
    """Found by an hour of chaos: a control's clients had spoken to a server that does not listen, and the bytes of
    their own requests, which nobody had read, were taken for answers that they did not read."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        port = client.getsockname()[1]
        client.sendall(b"a request")
        assert server.recv(100, socket.MSG_PEEK) == b"a request"
        assert unread(port) == 0
        server.sendall(b"an answer")
        assert client.recv(100, socket.MSG_PEEK) == b"an answer"
        assert unread(port) == len(b"an answer")
        client.recv(100)
        assert unread(port) == 0
