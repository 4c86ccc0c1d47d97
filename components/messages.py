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


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Let a handler, plain or generator, report bad input as a message on the page."""
    if inspect.isgeneratorfunction(handler):

        @wraps(handler)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _as_message():
                yield from handler(*args, **kwargs)

        return generator

    @wraps(handler)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with _as_message():
            return handler(*args, **kwargs)

    return plain
