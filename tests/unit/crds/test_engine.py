"""`spec.engine`: a union with one member set, or a name, as release 0.1.0 had it."""

from __future__ import annotations

import pytest
from pydantic import JsonValue, ValidationError

from claas_crds.v1alpha1.engine import EngineName, EngineSpec


def test_every_engine_is_a_member_of_the_union_and_read_by_its_name_as_well() -> None:
    assert set(EngineSpec.model_fields) == set(EngineName)
    for name in EngineName:
        assert (
            EngineSpec.model_validate(name.value)
            == EngineSpec.model_validate({name.value: {}})
            == EngineSpec.of(name)
        )
        assert EngineSpec.of(name).name is name


def test_it_is_written_as_a_union_whichever_way_it_was_read() -> None:
    forms: list[JsonValue] = ["local", {"local": {}}]
    for given in forms:
        assert EngineSpec.model_validate(given).model_dump(mode="json", exclude_none=True) == {"local": {}}


@pytest.mark.parametrize("given", [{}, {"later": {}}, "later", {"local": None}])
def test_none_or_one_that_this_release_lacks_is_refused_with_those_there_are(given: JsonValue) -> None:
    with pytest.raises(ValidationError, match="exactly one engine must be set; this release has: local"):
        EngineSpec.model_validate(given)
