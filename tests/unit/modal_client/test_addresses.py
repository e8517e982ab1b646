"""Addresses of folders on Volumes: what is written is read again, and nothing leads out of the Volume."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from claas_modal_client.addresses import AddressField, VolumeAddress, is_path

FIRST = string.ascii_letters + string.digits + "_"
DIGEST = "0123456789abcdef" * 4
SEGMENTS = st.builds(lambda first, rest: first + rest, st.sampled_from(FIRST), st.text(FIRST + ".-@+", max_size=20))
PATHS = st.lists(SEGMENTS, min_size=1, max_size=6).map("/".join)
VOLUMES = st.builds(lambda first, rest: first + rest, st.sampled_from(FIRST), st.text(FIRST + ".-", max_size=20))
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
ADDRESSES = st.builds(VolumeAddress, VOLUMES, PATHS, DIGESTS)


class Document(BaseModel):
    weights: AddressField


@given(address=ADDRESSES)
def test_an_address_is_read_as_it_was_written(address: VolumeAddress) -> None:
    assert VolumeAddress.parse(str(address)) == address


@given(address=ADDRESSES)
def test_an_address_is_a_text_in_a_document(address: VolumeAddress) -> None:
    text = Document(weights=address).model_dump_json()
    assert str(address) in text
    assert Document.model_validate_json(text).weights == address


@given(text=st.text(max_size=80) | st.text("abz/.#:\\%~- 0", max_size=80).map(lambda rest: f"modal://{rest}"))
def test_no_text_is_read_as_anything_but_itself(text: str) -> None:
    try:
        address = VolumeAddress.parse(text)
    except ValueError:
        return
    assert str(address) == text


@given(text=st.text("ab./\\\0\n~-#%:", max_size=30) | st.text(max_size=30))
def test_a_path_never_leads_out_of_its_root(text: str) -> None:
    if is_path(text):
        parts = text.split("/")
        assert all(part and not part.startswith((".", "-", "~")) for part in parts)
        assert text.isascii()
        assert text.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "modal://",
        f"modal://volume#{DIGEST}",
        f"modal://volume/#{DIGEST}",
        f"modal:///folder#{DIGEST}",
        f"modal://volume/../folder#{DIGEST}",
        f"modal://volume/a/../../b#{DIGEST}",
        f"modal://volume/a/..#{DIGEST}",
        f"modal://volume/a/./b#{DIGEST}",
        f"modal://volume//a#{DIGEST}",
        f"modal://volume/a/#{DIGEST}",
        f"modal://volume/.hidden#{DIGEST}",
        f"modal://volume/a\\b#{DIGEST}",
        f"modal://volume/a\n#{DIGEST}",
        f"modal://volume/a%2e%2e#{DIGEST}",
        f"modal://volume/ä#{DIGEST}",
        f"modal://../a#{DIGEST}",
        f"modal://.volume/a#{DIGEST}",
        f"modal://volume/{'a/' * 20}a#{DIGEST}",
        f"modal://volume/a#{DIGEST.upper()}",
        f"modal://volume/a#{DIGEST[1:]}",
        f"modal://volume/a#{DIGEST}\n",
        f"modal://volume/a#{DIGEST}#{DIGEST}",
        f"modal://volume/a?x#{DIGEST}",
        "modal://volume/a",
        f"tinker://volume/a#{DIGEST}",
        f"MODAL://volume/a#{DIGEST}",
        f" modal://volume/a#{DIGEST}",
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        VolumeAddress.parse(text)
    with pytest.raises(ValidationError):
        Document.model_validate({"weights": text})


def test_a_document_with_something_else_than_a_text_is_refused() -> None:
    with pytest.raises(ValidationError):
        Document.model_validate({"weights": {"volume": "v"}})
