"""One running app for all endpoint tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gradio_client import Client

from tests.serving import fresh_home, served


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the running app."""
    folder = tmp_path_factory.mktemp("app")
    with served(fresh_home(folder / "home"), folder / "log") as address:
        yield address


@pytest.fixture(scope="session")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A client of the named endpoints."""
    return Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
