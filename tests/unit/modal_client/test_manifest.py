"""`manifest.json`: the same files make the same bytes, and a foreign one can't name a file elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from claas_modal_client.manifest import Manifest

DIGEST = hashlib.sha256(b"x").hexdigest()
NAMES = st.text("abc_0", min_size=1, max_size=8)
FILES = st.dictionaries(NAMES, st.binary(max_size=8).map(lambda data: hashlib.sha256(data).hexdigest()), max_size=6)


@given(files=FILES, seed=st.randoms())
def test_the_bytes_depend_on_the_files_and_not_on_their_order(files: dict[str, str], seed: object) -> None:
    items = list(files.items())
    seed.shuffle(items)  # type: ignore[attr-defined]
    one, other = Manifest(files=files), Manifest(files=dict(items))
    assert one.to_bytes() == other.to_bytes()
    assert one.digest == hashlib.sha256(other.to_bytes()).hexdigest()
    assert Manifest.model_validate_json(one.to_bytes()) == one


def test_it_holds_the_digests_of_local_files(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    assert Manifest.of({"weights/a.bin": tmp_path / "a.bin"}).files == {"weights/a.bin": DIGEST}


@pytest.mark.parametrize(
    "files",
    [
        {"../a": DIGEST},
        {"/etc/passwd": DIGEST},
        {"a/../../b": DIGEST},
        {".hidden": DIGEST},
        {"": DIGEST},
        {"a\0b": DIGEST},
        {"manifest.json": DIGEST},
        {"a": DIGEST[1:]},
        {"a": "../b"},
    ],
)
def test_files_elsewhere_and_digests_that_are_none_are_refused(files: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Manifest(files=files)


def test_a_newer_release_may_say_more() -> None:
    assert Manifest.model_validate({"files": {"a": DIGEST}, "sizes": {"a": 1}}) == Manifest(files={"a": DIGEST})
