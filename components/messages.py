"""The one place where errors become messages on the page."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import gradio as gr

from lego import AdapterError

EXPECTED = AdapterError
"""Errors that say what is wrong and what to do (a base's too). Anything else is a defect and is left to show itself."""


@contextmanager
def _as_message() -> Iterator[None]:
    try:
        yield
    except EXPECTED as error:
        raise gr.Error(str(error), title="This did not work", duration=12, print_exception=False) from error


def _check_session(names: list[str], values: tuple[Any, ...]) -> None:
    """A page that outlived a restart of the app has lost its session: say so instead of failing somewhere else."""
    if names[:1] == ["session"] and values[:1] == (None,):
        raise gr.Error(
            "This page has lost its session, perhaps the app was restarted. Reload it.", print_exception=False
        )


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Let a handler, plain or generator, report bad input as a message on the page."""
    names = list(inspect.signature(handler).parameters)
    if inspect.isgeneratorfunction(handler):

        @wraps(handler)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            _check_session(names, args)
            with _as_message():
                yield from handler(*args, **kwargs)

        return generator

    @wraps(handler)
    def plain(*args: Any, **kwargs: Any) -> Any:
        _check_session(names, args)
        with _as_message():
            return handler(*args, **kwargs)

    return plain
