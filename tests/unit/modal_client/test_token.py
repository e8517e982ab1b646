"""The token: read from files or a Secret, and seen nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from claas_modal_client.connection import ModalToken
from claas_modal_client.errors import ModalFault, ModalServiceError


def test_a_token_is_read_from_a_folder_without_line_ends(tmp_path: Path) -> None:
    (tmp_path / "token-id").write_text("ak-1\n")
    (tmp_path / "token-secret").write_text(" as-2\n")
    token = ModalToken.read(tmp_path)
    assert (token.id, token.secret) == ("ak-1", "as-2")
    assert "as-2" not in repr(token)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"token-id": b"ak-1"},
        {"token-id": b"ak-1", "token-secret": b""},
        {"token-id": b"ak-1", "token-secret": b"as-quoted-2\nx: y"},
        {"token-id": b"ak-1", "token-secret": "as-quoted-ä".encode()},
        {"token-id": b"ak-1", "token-secret": b"as-quoted\0"},
    ],
)
def test_a_token_that_is_missing_or_no_header_is_refused_by_name(parts: dict[str, bytes]) -> None:
    with pytest.raises(ModalServiceError) as caught:
        ModalToken.parse(parts, "the Secret claas-modal")
    assert caught.value.kind is ModalFault.CREDENTIALS_REFUSED
    assert "the Secret claas-modal" in caught.value.message
    assert "quoted" not in caught.value.message


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModalServiceError, match=r"token-id can't be read \(FileNotFoundError\)"):
        ModalToken.read(tmp_path)
