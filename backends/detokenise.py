"""Text from tokens as they come, without broken characters."""

from __future__ import annotations

from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"


class Detokeniser:
    """Grows a text token by token.

    A character of several bytes may be spread over several tokens: it appears when it is whole. Tokenisers write a token
    differently at the start of a text, so the new piece is the difference of two decodings that begin at the same earlier token.

    Attributes:
        ids: the tokens so far.
        text: what they say so far, whole characters only.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Start with nothing."""
        self._tokenizer = tokenizer
        self.ids: list[int] = []
        self.text = ""
        self._start = self._shown = 0

    def add(self, token: int) -> None:
        """One more token."""
        self.ids.append(token)
        known = self._decode(self.ids[self._start : self._shown])
        now = self._decode(self.ids[self._start :])
        if not now.endswith(BROKEN):
            self.text += now[len(known) :]
            self._start, self._shown = self._shown, len(self.ids)

    def finish(self) -> None:
        """No more tokens: the text becomes exactly what decoding all of them at once gives."""
        self.text = self._decode(self.ids)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
