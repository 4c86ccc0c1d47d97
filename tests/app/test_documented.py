"""The page of endpoints says what the running app does, and its examples run."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path

import pytest
from gradio_client import Client

from components import page, start
from components.endpoints import documented


@pytest.fixture(scope="module")
def endpoints() -> dict[str, object]:
    return dict(documented.public(page.build()))


def test_the_page_is_up_to_date() -> None:
    assert documented.FILE.read_text(encoding="utf-8") == documented.text(page.build()), (
        "write it again: python -m components.endpoints.documented"
    )


def test_every_parameter_and_endpoint_is_explained(endpoints: dict[str, object]) -> None:
    assert set(endpoints) == set(documented.EXAMPLES)
    for name, function in endpoints.items():
        about, meanings = documented.read(inspect.getdoc(function) or "")
        assert about, name
        assert set(meanings) == set(inspect.signature(function).parameters), name


def test_names_and_defaults_are_those_of_the_running_app(client: Client, endpoints: dict[str, object]) -> None:
    api = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(api) == {f"/{name}" for name in endpoints}
    for name, function in endpoints.items():
        told = [(each["parameter_name"], each["parameter_has_default"]) for each in api[f"/{name}"]["parameters"]]
        known = inspect.signature(function).parameters.values()
        assert told == [(each.name, each.default is not inspect.Parameter.empty) for each in known]


@pytest.mark.parametrize("name", sorted(documented.EXAMPLES))
def test_the_examples_run(client: Client, name: str) -> None:
    found = eval(documented.EXAMPLES[name], {"client": client})
    assert found
    assert f'api_name="/{name}"' in documented.EXAMPLES[name]


def test_agents_get_tools_where_the_package_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path))
    assert start.options()["mcp_server"] is (find_spec("mcp") is not None)
    for there in (object(), None):
        monkeypatch.setattr(start, "find_spec", lambda name, there=there: there if name == "mcp" else pytest.fail(name))
        assert start.options()["mcp_server"] is (there is not None)


def test_the_tools_are_the_endpoints(url: str, endpoints: dict[str, object]) -> None:
    import json
    import urllib.request

    with urllib.request.urlopen(f"{url}gradio_api/mcp/schema", timeout=30) as answer:
        tools = {tool["name"] for tool in json.load(answer)}
    assert tools == {function.__name__ for function in endpoints.values()}  # type: ignore[attr-defined]
