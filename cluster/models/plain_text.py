"""Keeps what sellers and shoppers write from becoming control tokens of a model, such as <|im_end|>, </s> or [SEP]."""

from __future__ import annotations

import re

# The beginning of whatever is spelt like a control token, whichever model it belongs to.
CONTROL = re.compile(r"<(?=[^\s<>]{1,80}>)|\[(?=/?\w{1,40}\])")


def without_control_tokens(text: str) -> str:
    """Return the text with a space inside everything that is spelt like a control token: "< |im_end|>", "[ SEP]"."""
    return CONTROL.sub(r"\g<0> ", text)
