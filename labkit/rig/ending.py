"""Ends what this process has started, wherever it is kept: what `labkit.reset()` does beside removing keys.

It looks for the objects themselves, among all that Python has; no list of them is kept that one could be
missing from. What nobody refers to any more has ended with that, but for servers: of those, labkit.rig.server
keeps each as long as its process may be there.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from redis.cluster import RedisCluster

from labkit import LabkitError

KINDS = (
    ("labkit.show.panel", "Shown", "end"),
    ("labkit.rig.probes", "Probes", "stop"),
    ("labkit.pubsub", "Subscription", "close"),
    ("labkit.rig.processes", "Worker", "__exit__"),
    ("labkit.rig.web", "Site", "stop"),
    ("labkit.rig.database", "Database", "close"),
    ("labkit.rig.proxy", "Proxy", "close"),
    ("labkit.rig.server", "Cluster", "stop"),
    ("labkit.rig.server", "Server", "stop"),
)
"""Module, class and the method that ends it, which has no effect on what has ended; users before the used.

By their names, since a module that was never imported has started nothing, and need not be imported for this.
"""

AT_ONCE = 8
"""So many of one kind are ended side by side: to end one is mostly to wait for it."""

_Found = dict[str, list[Any]]


def end_all(r: Any, embedded: Any = None) -> None:
    """End everything of KINDS in this process, but for `embedded` (a Server, or None) and what `r` uses.

    That is the server or cluster that `r` is a client of, and a link to it. All else is ended, also when
    something cannot be: its error is raised in the end. Some 50 ms where nothing is there.
    """
    found = _find()
    kept = {id(embedded), *map(id, _used_by(r, found))}
    errors: list[Exception] = []
    for module, name, method in KINDS:
        ends = [_ending(one, method, errors) for one in found[name] if id(one) not in kept]
        if len(ends) < 2 or module == "labkit.show.panel":  # widgets talk to the page: from this thread
            for end in ends:
                end()
        else:
            with ThreadPoolExecutor(min(AT_ONCE, len(ends))) as pool:
                list(pool.map(lambda end: end(), ends))
    if errors:
        raise errors[0]


def _find() -> _Found:
    """The objects, by names of classes. By type: `isinstance` would wake the proxies of other libraries."""
    found: _Found = {name: [] for _, name, _ in KINDS}
    made = {name: getattr(sys.modules.get(module), name, None) for module, name, _ in KINDS}
    classes = [(name, one) for name, one in made.items() if one is not None]
    known: dict[type, list[Any] | None] = {}
    for one in gc.get_objects() if classes else ():
        its = type(one)
        if its not in known:
            known[its] = next((found[name] for name, wanted in classes if issubclass(its, wanted)), None)
        if (place := known[its]) is not None:
            place.append(one)
    return found


def _ending(one: Any, method: str, errors: list[Exception]) -> Callable[[], None]:
    def end() -> None:
        try:
            if getattr(one, method)() is False:  # so a Subscription, whose thread is still in a callback
                errors.append(LabkitError(f"{one!r} has not ended. Remedy: let its callback return."))
        except Exception as error:
            half_made = isinstance(error, AttributeError) and error.obj is one  # its constructor has failed
            if not half_made:
                errors.append(error)

    return end


def _used_by(r: Any, found: _Found) -> list[Any]:
    """What this process has started of that which `r` is a client of: links, servers, clusters, nodes."""
    places = _places(r)
    links = [link for link in found["Proxy"] if _port(link) in places]
    places |= {link._address[1] if isinstance(link._address, tuple) else link._address for link in links}
    servers = [server for server in found["Server"] if _doors(server) & places]
    clusters = [one for one in found["Cluster"] if {*servers} & {*getattr(one, "nodes", ())}]
    return [*links, *servers, *clusters, *(node for one in clusters for node in one.nodes)]


def _places(r: Any) -> set[Any]:
    """The port or the socket's path that `r` connects to; of a cluster, the port of every node it knows."""
    if isinstance(r, RedisCluster):
        return {node.port for node in r.get_nodes()}
    known = r.connection_pool.connection_kwargs
    return {str(known["path"])} if "path" in known else {int(known.get("port", 6379))}


def _port(one: Any) -> Any:
    """None for what has none, since it never started, or since its constructor has failed."""
    return (vars(one).get("port") or getattr(vars(one).get("_link"), "port", None)) or None


def _doors(server: Any) -> set[Any]:
    """Where it is reached: its port, that for TLS, and its socket's path, as far as it has them."""
    settings, folder = vars(server).get("_settings", {}), vars(server).get("_folder") or ""
    ports = {int(port) for port in (_port(server), settings.get("tls-port")) if port}
    return ports | {str(Path(folder, path)) for path in (settings.get("unixsocket"),) if path}
