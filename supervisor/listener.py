"""The one listening socket of the HTTP side: bound before anything slow, handed to every frontend."""

from __future__ import annotations

import errno
import ipaddress
import socket

from accelgen.supervisor.errors import StartError

BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket on `host`:`port` (0: any free port). Raises StartError naming host and port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        line, status = _cause(error, host, port)
        raise StartError(f"cannot listen on {host}:{port}: {line}", status) from error


def url_of(listener: socket.socket) -> str:
    """Where clients reach the server, without a path. A wildcard address is shown as the loopback one."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Only this machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _cause(error: OSError, host: str, port: int) -> tuple[str, int]:
    """What is wrong, and the exit status."""
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use; choose another with --port (0: any free one)", 1
        case errno.EADDRNOTAVAIL | socket.EAI_NONAME | socket.EAI_NODATA | socket.EAI_AGAIN:
            return f"--host {host} is not an address of this machine", 2
        case errno.EACCES:
            return f"port {port} needs privileges; choose one above 1023 with --port", 2
        case _:
            return str(error.strerror), 1
