"""Texts whose tokens can be counted: each word is one."""


def word(token: int) -> str:
    """The text of a token."""
    return f"w{token}"
