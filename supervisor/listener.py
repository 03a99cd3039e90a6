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
    except socket.gaierror as error:
        raise StartError(
            f"--host {host} is not an address of this machine: {error.strerror}"
        ) from error
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {_cause(error, port)}") from error


def url_of(listener: socket.socket) -> str:
    """Where clients reach the server, without a path. A wildcard address is shown as the loopback one."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Only this machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _cause(error: OSError, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use; choose another with --port (0: any free one)"
        case errno.EADDRNOTAVAIL:
            return "--host is not an address of this machine"
        case errno.EACCES:
            return f"port {port} needs privileges; choose one above 1023 with --port"
        case _:
            return str(error.strerror)
