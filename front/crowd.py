"""The open connections of a server: none more than it can hold, and which one closes when one more comes.

One address may have three quarters of them. When all are open, a new one replaces one that waits for its client: the
oldest of the address that has most. So a client with many addresses keeps nobody out.
"""

from __future__ import annotations

from typing import ClassVar, Protocol
from weakref import WeakKeyDictionary

_SHARE_OF_OTHERS = 4  # of the connections, one address leaves a quarter to others


class Connection(Protocol):
    """One of them."""

    @property
    def address(self) -> str:
        """Whom it comes from."""
        ...

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for its client: for a request, or the rest of one."""
        ...


class Crowd:
    """The connections by address, each in the order in which they came."""

    _all: ClassVar[WeakKeyDictionary[object, Crowd]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._by_address: dict[str, dict[Connection, None]] = {}
        self._num = 0

    @classmethod
    def of(cls, server: object) -> Crowd:
        """Return the connections of a server."""
        if server not in cls._all:
            cls._all[server] = cls()
        return cls._all[server]

    def enter(self, connection: Connection, most: int) -> Connection | None:
        """Take in a connection. Return the one to close, if there are more than `most`: it may be the same."""
        own = self._by_address.setdefault(connection.address, {})
        own[connection] = None
        self._num += 1
        most_own = most - most // _SHARE_OF_OTHERS
        if self._num > most_own and len(own) > most_own:
            return connection
        return self._one_to_close(connection) if self._num > most else None

    def leave(self, connection: Connection) -> None:
        """Forget a connection, if it is there."""
        own = self._by_address.get(connection.address, {})
        if connection in own:
            del own[connection]
            self._num -= 1
            if not own:
                del self._by_address[connection.address]

    def _one_to_close(self, newcomer: Connection) -> Connection:
        largest = max(self._by_address.values(), key=len)
        waiting = (other for other in largest if other.is_waiting and other is not newcomer)
        return next(waiting, newcomer)
