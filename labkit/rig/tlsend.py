"""The client's end of a link when that end speaks TLS: to the link it is a socket of plain bytes.

Records are taken apart and put together in memory (`ssl.MemoryBIO`), so that whatever has arrived is given on
at once and nothing waits inside of OpenSSL, where a selector cannot see it. It never blocks. A handshake that
fails concerns this one client: it is answered with TLS's alert, noted, and the end is closed.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections import deque
from typing import Any

__all__ = ["TlsEnd"]

CHUNK = 1 << 16


class TlsEnd:
    """TLS on a connection that a client has opened; has what labkit.rig.link asks of a socket.

    `refused` takes a word on each handshake or record that went wrong. Such an end says why in an alert, as
    far as TLS has one for it, takes nothing more, and is at its end when the client closes.
    """

    def __init__(self, raw: socket.socket, context: ssl.SSLContext, refused: deque[str]) -> None:
        self._raw, self._refused, self.family = raw, refused, raw.family
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._early: list[bytes] = []  # what the server said before the handshake was over,
        self._bye: int | None = None  # and that it was gone by then
        self._unsent = b""  # records that the operating system has not taken yet
        self._taken = 0  # bytes of the sender's that are in these
        self._dead = False

    def fileno(self) -> int:
        return self._raw.fileno()

    def setblocking(self, flag: bool) -> None:
        self._raw.setblocking(flag)

    def setsockopt(self, *option: Any) -> None:
        self._raw.setsockopt(*option)

    def close(self) -> None:
        self._raw.close()

    def recv(self, size: int) -> bytes:
        """Everything that so many bytes of TLS contain, b"" at the end; BlockingIOError if nothing yet."""
        data = self._raw.recv(size)
        if self._dead and data:
            raise BlockingIOError
        if not data:
            return b""
        self._in.write(data)
        plain, ended = self._decrypted()
        self._flush()
        if not plain and not ended:
            raise BlockingIOError
        if plain and ended:
            self._raw.shutdown(socket.SHUT_RD)  # so that the end is seen after what came before it
        return plain

    def _decrypted(self) -> tuple[bytes, bool]:
        """What is to be had, and whether the client has said that it sends no more."""
        parts = []
        try:
            while part := self._tls.read(CHUNK):
                parts.append(part)
            return b"".join(parts), True
        except ssl.SSLWantReadError:
            self._say_early()
        except ssl.SSLZeroReturnError:  # both have said goodbye
            return b"".join(parts), True
        except ssl.SSLError as error:
            self._refuse(error)
        return b"".join(parts), False

    def _say_early(self) -> None:
        if self._shaken:
            while self._early:
                self._tls.write(self._early.pop(0))
            if self._bye is not None:
                self.shutdown(self._bye)
                self._bye = None

    @property
    def _shaken(self) -> bool:
        """Is the handshake over?"""
        return self._tls.version() is not None

    def _refuse(self, error: ssl.SSLError) -> None:
        """The alert is in `_out`; close only after the client has, or it would be lost on the way."""
        self._dead = True
        self._refused.append(_reason(error))
        self._flush()
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_WR)

    def send(self, data: bytes | memoryview) -> int:
        """Take all of `data`; BlockingIOError: come again with the same once the socket can be written to."""
        size = len(data)
        if self._dead:
            return size
        if not self._shaken:
            self._early.append(bytes(data))
            return size
        if not self._taken:
            self._taken = self._tls.write(data)
        self._flush()
        if self._unsent:
            raise BlockingIOError
        size, self._taken = self._taken, 0
        return size

    def _flush(self) -> None:
        self._unsent += self._out.read()
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self._raw.send(self._unsent) :]

    def shutdown(self, how: int) -> None:
        """Say goodbye in TLS (close_notify) and in TCP; if need be, after the handshake."""
        if self._dead:
            return
        if not self._shaken:
            self._bye = how
        else:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()
            self._raw.shutdown(how)


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's words for it, without their number and place in the source."""
    said = re.sub(r"^\[[^\]]*\] ", "", str(error.args[-1]))
    return re.sub(r" \(_ssl\.c:\d+\)$", "", said)
