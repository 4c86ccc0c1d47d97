"""The points of a sweep as tasks of Ray, on this machine or a cluster. Ray is imported when it is asked for."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from lego.errors import AdapterError
from lego.points import Row, Settings, make_point
from lego.sweep import Point

RETRIES = 3  # of a point whose worker died
OBJECT_STORE = 100 * 2**20  # nothing but recipes and lines of the table goes through it
LOCAL = "local"
HOST_PORT = re.compile(r"(ray://)?(?P<host>[^/:]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")


def make_points(points: Sequence[Point], settings: Settings, address: str = LOCAL) -> Iterator[tuple[Point, Row]]:
    """Make points as tasks of Ray, and give them as they are done.

    A point whose worker dies is made again elsewhere; one that is there already is only read. The folder, the sources and this package
    must be there under the same paths on every machine of a cluster.

    Args:
        points: of the sweep, their sources with hashes.
        settings: what they have in common.
        address: of a cluster, or ``local``; a Ray that this process is connected to already is used instead.

    Raises:
        AdapterError: when Ray is not installed or cannot be reached, a point cannot be made, or its workers keep dying.
    """
    ray = import_ray()
    connected = ray.is_initialized()
    if not connected:
        connect(ray, address)
    try:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(make_point)
        pending = {
            task.options(name=f"{settings.out.name}/{point.name}").remote(point, settings): point for point in points
        }
        while pending:
            for done in ray.wait(list(pending), num_returns=1)[0]:
                point = pending.pop(done)
                yield point, result(ray, done, point)
    finally:
        if not connected:
            ray.shutdown()


def import_ray() -> Any:
    """The package.

    Raises:
        AdapterError: when it is not installed, with how to install it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns about a change to come
    try:
        import ray
    except ModuleNotFoundError as error:
        raise AdapterError("--ray needs Ray, which is not installed", None, "pip install 'brickyard[ray]'") from error
    return ray


def connect(ray: Any, address: str) -> None:
    """Start a local Ray, or connect to a cluster.

    Raises:
        AdapterError: when there is none at the address.
    """
    if found := HOST_PORT.fullmatch(address):  # Ray itself would go on asking for minutes
        try:
            socket.create_connection((found["host"], int(found["port"])), timeout=10).close()
        except OSError as error:
            raise AdapterError(
                f"no Ray answers there ({error.strerror or error})", address, "Is it running?"
            ) from error
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE} if address == LOCAL else {}
    try:
        ray.init(address=address, **quiet, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = str(error).splitlines()[0]
        raise AdapterError(f"Ray cannot be reached ({told})", address, "Is the address host:port?") from error


def result(ray: Any, done: Any, point: Point) -> Row:
    """A task's line of the table, or the error that ended it."""
    try:
        row: Row = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        what = f"its worker died {RETRIES + 1} times ({type(error).__name__})"
        raise AdapterError(what, point.name, "Is there enough memory for this many workers?") from error
    return row
