"""The one error: what it says, and that it says the same in another process."""

from __future__ import annotations

import copy
import pickle

import pytest

from backends.errors import BaseError
from lego import AdapterError


@pytest.mark.parametrize("kind", [AdapterError, BaseError])
def test_an_error_crosses_whole(kind: type[AdapterError]) -> None:
    error = kind("is damaged", "a file", "Download it again.")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind
        assert (other.what, other.where, other.fix) == ("is damaged", "a file", "Download it again.")
        assert str(other) == str(error) == "a file: is damaged. Download it again."
