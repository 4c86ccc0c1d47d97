"""The error of the parts that load base models."""

from __future__ import annotations

from lego.errors import AdapterError


class BaseError(AdapterError):
    """A base model that cannot be fetched, loaded or run: what is wrong, where, and what to do."""
