"""The visitor's account on the hub: signed in where the app is a Space with sign-in; elsewhere there is none."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import gradio as gr
from gradio.utils import get_space

from components.events import PRIVATE


def available() -> bool:
    """Whether visitors can sign in: on a Space whose front matter asks for it, with what gradio needs for it installed."""
    asked = all(os.environ.get(name) for name in ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET"))
    return bool(get_space()) and asked and all(find_spec(name) for name in ("authlib", "itsdangerous"))


def create() -> gr.State:
    """The button to sign in, where that is possible; gives what holds the signed-in account's token, in memory only."""
    if available():
        with gr.Row(elem_classes="by-actions"):
            gr.LoginButton("Sign in with Hugging Face", size="sm", scale=0, min_width=240)
    return gr.State(None)


def wire(opened: Any, token: gr.State) -> None:
    """Read the token once the page is ``opened``."""
    if available():
        opened.then(read, None, [token], **PRIVATE)


def read(account: gr.OAuthToken | None) -> str | None:
    """The token of who is signed in."""
    return account.token if account else None
