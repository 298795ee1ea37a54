"""A guarded server bound to an address, with a token where the network can reach it, and the link that leads there."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping

from tflite_export.errors import ExportError
from tflite_export.web.server import LARGEST_REQUEST, LOOPBACK, GuardedServer, Handler, Resource

__all__ = ["EVERYWHERE", "address_of_this_machine", "bind", "link"]

EVERYWHERE = ("0.0.0.0", "::")


def bind(
    resources: Mapping[str, Resource],
    handlers: Mapping[str, Handler] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    largest_request: int = LARGEST_REQUEST,
) -> GuardedServer:
    """Return a server, bound and not yet started; one that the network can reach has a random token.

    Args:
        resources: see `GuardedServer`, as for the others.
        handlers: by path.
        host: the address to bind to.
        port: 0 takes a free one.
        largest_request: bytes.

    Raises:
        ExportError: the address cannot be bound.
    """
    token = "" if host in LOOPBACK else secrets.token_urlsafe(16)
    try:
        return GuardedServer(resources, handlers, host=host, port=port, token=token, largest_request=largest_request)
    except OSError as error:
        raise ExportError(
            f"address {host}:{port}",
            "must be free and this machine's",
            error.strerror,
            "Choose another host or port.",
        ) from error


def link(server: GuardedServer) -> str:
    """Return the address of the page, by a name of this machine that the network knows."""
    return server.url(address_of_this_machine() if server.host in EVERYWHERE else None)


def address_of_this_machine() -> str:
    """Return the address by which the network reaches this machine, as far as it knows.

    A datagram socket that is connected, and over which nothing is sent, has the address of the route taken.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # set aside for documentation: RFC 5737
            return str(probe.getsockname()[0])
        except OSError:  # no route: the name may still be known
            return socket.gethostname()
