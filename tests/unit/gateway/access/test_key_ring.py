"""API keys from Secrets: how they are found, rotated, and what holds while the API server is away."""

from __future__ import annotations

import asyncio
import base64
import logging

import pytest

from claas_gateway.access.guard import key_places
from claas_gateway.access.keys.ring import FRESH_SECONDS, KNOWN_SECONDS, SEARCH_SECONDS, KeyRing
from claas_gateway.access.keys.secret_keys import KeyPlace, digest_of, keys_of
from claas_gateway.errors import NotNow, Unauthenticated
from claas_kube.errors import Forbidden, Unavailable
from claas_kube.objects.meta import Manifest
from claas_kube.resources import Resource
from tests.builders.gateway import FixedDirectory, gateway_adapter, gateway_settings

TEAM = KeyPlace("team", "claas-gateway-keys", None)
TONE = KeyPlace("team", "tone-claas-gateway-keys", "tone")
OTHER = KeyPlace("other", "claas-gateway-keys", None)
KEY, SECOND, THIRD = "a-key-of-the-team-0001", "a-key-of-the-team-0002", "a-key-of-others-000003"


class Secrets:
    """Secrets of a cluster whose API server can be away."""

    def __init__(self) -> None:
        self.data: dict[tuple[str, str], dict[str, str]] = {}
        self.reads = 0
        self.error: Exception | None = None

    def put(self, place: KeyPlace, **keys: str) -> None:
        self.data[place.namespace, place.secret] = {name: encoded(key) for name, key in keys.items()}

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        self.reads += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        found = self.data.get((namespace, name))
        return None if found is None else {"data": dict(found)}


class Clock:
    """A clock that moves when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def encoded(key: str) -> str:
    return base64.b64encode(key.encode()).decode()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def secrets() -> Secrets:
    return Secrets()


@pytest.fixture
def ring(secrets: Secrets, clock: Clock) -> KeyRing:
    return KeyRing(secrets, lambda: [TEAM, TONE, OTHER], clock)


async def known(ring: KeyRing, key: str) -> str:
    """What the ring says of a key, in a word."""
    try:
        caller = (await ring.find(digest_of(key))).caller
    except (Unauthenticated, NotNow) as error:
        return type(error).__name__
    return f"{caller.namespace}/{caller.adapter}/{caller.key_name}"


async def test_a_key_allows_what_its_secret_stands_for(ring: KeyRing, secrets: Secrets) -> None:
    secrets.put(TEAM, first=KEY, second=SECOND)
    secrets.put(TONE, app=THIRD)
    assert [await known(ring, key) for key in (KEY, SECOND, THIRD, "a-key-that-nobody-has")] == [
        "team/None/first",
        "team/None/second",
        "team/tone/app",
        "Unauthenticated",
    ]


async def test_a_key_is_rotated_without_a_restart(ring: KeyRing, secrets: Secrets, clock: Clock) -> None:
    secrets.put(TEAM, old=KEY)
    assert await known(ring, KEY) == "team/None/old"
    secrets.put(TEAM, new=SECOND)
    clock.now += FRESH_SECONDS + 1
    assert await known(ring, SECOND) == "team/None/new"
    assert await known(ring, KEY) == "Unauthenticated"


async def test_a_deleted_secret_ends_its_keys(ring: KeyRing, secrets: Secrets, clock: Clock) -> None:
    secrets.put(TEAM, old=KEY)
    await known(ring, KEY)
    secrets.data.clear()
    clock.now += FRESH_SECONDS + 1
    assert await known(ring, KEY) == "Unauthenticated"


async def test_a_key_that_moves_to_another_secret_allows_what_that_one_does(
    ring: KeyRing, secrets: Secrets, clock: Clock
) -> None:
    secrets.put(TEAM, app=KEY)
    await known(ring, KEY)
    secrets.put(TEAM, app=SECOND)
    secrets.put(TONE, app=KEY)
    clock.now += FRESH_SECONDS + 1
    assert await known(ring, KEY) == "team/tone/app"


async def test_known_keys_cost_no_reads_and_unknown_ones_few(ring: KeyRing, secrets: Secrets, clock: Clock) -> None:
    secrets.put(TEAM, app=KEY)
    await known(ring, KEY)
    assert secrets.reads == 3
    for _ in range(50):
        await known(ring, KEY)
        await known(ring, "a-key-that-nobody-has")
    assert secrets.reads == 3
    clock.now += SEARCH_SECONDS + 1
    await asyncio.gather(*(known(ring, f"a-key-that-nobody-has-{n}") for n in range(50)))
    assert secrets.reads == 6


async def test_while_the_api_server_is_away_known_keys_go_on_for_a_time_and_no_key_is_called_unknown(
    ring: KeyRing, secrets: Secrets, clock: Clock
) -> None:
    secrets.put(TEAM, app=KEY)
    await known(ring, KEY)
    secrets.error = Unavailable(0, "GET", "no connection")
    clock.now += FRESH_SECONDS + 1
    assert await known(ring, KEY) == "team/None/app"
    assert await known(ring, SECOND) == "NotNow"
    clock.now += KNOWN_SECONDS
    assert await known(ring, KEY) == "NotNow"
    secrets.error = None
    clock.now += 6
    assert await known(ring, KEY) == "team/None/app"
    assert await known(ring, SECOND) == "Unauthenticated"


async def test_before_the_adapters_are_listed_no_key_is_called_unknown(secrets: Secrets, clock: Clock) -> None:
    ring = KeyRing(secrets, lambda: None, clock)
    assert await known(ring, KEY) == "NotNow"


async def test_a_secret_that_may_not_be_read_has_no_keys_and_is_named(
    ring: KeyRing, secrets: Secrets, caplog: pytest.LogCaptureFixture
) -> None:
    secrets.error = Forbidden(403, "GET", "no right")
    assert await known(ring, KEY) == "Unauthenticated"
    assert "Secret team/claas-gateway-keys can't be read" in caplog.text


async def test_a_key_in_two_secrets_is_accepted_for_neither_and_both_are_named(
    ring: KeyRing, secrets: Secrets, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    secrets.put(TEAM, one=KEY)
    secrets.put(OTHER, two=KEY)
    assert await known(ring, KEY) == "Unauthenticated"
    lines = [line for line in caplog.messages if "several Secrets" in line]
    assert lines == [
        "the same API key is in several Secrets and is accepted for none: entry two of other/claas-gateway-keys,"
        " entry one of team/claas-gateway-keys"
    ]
    secrets.put(OTHER, two=SECOND)
    clock.now += SEARCH_SECONDS + 1
    assert await known(ring, KEY) == "team/None/one"


async def test_an_adapter_that_is_gone_takes_its_keys_along(secrets: Secrets, clock: Clock) -> None:
    places: list[KeyPlace] = [TEAM, TONE]
    ring = KeyRing(secrets, lambda: places, clock)
    secrets.put(TONE, app=KEY)
    assert await known(ring, KEY) == "team/tone/app"
    places.remove(TONE)
    clock.now += SEARCH_SECONDS + 1
    await known(ring, "a-key-that-nobody-has")
    assert await known(ring, KEY) == "Unauthenticated"


@pytest.mark.parametrize(
    ("watched", "places"),
    [
        ((), {"a": ["keys", "tone-keys"], "b": ["calm-keys", "keys"]}),
        (("a", "c"), {"a": ["keys", "tone-keys"], "b": ["calm-keys"], "c": ["keys"]}),
    ],
)
def test_keys_lie_in_the_watched_namespaces_or_where_adapters_are(
    watched: tuple[str, ...], places: dict[str, list[str]]
) -> None:
    directory = FixedDirectory([gateway_adapter("tone", "a"), gateway_adapter("calm", "b")])
    settings = gateway_settings(watch_namespaces=watched, keys_secret="keys")
    found: dict[str, list[str]] = {}
    for place in key_places(settings, directory) or ():
        found[place.namespace] = sorted([*found.get(place.namespace, []), place.secret])
        assert place.adapter == (place.secret.removesuffix("-keys") if place.secret != "keys" else None)
    assert found == places
    directory.complete = False
    assert key_places(settings, directory) is None


def test_keys_lie_where_clients_make_adapters_too_before_there_is_one() -> None:
    made = [place.namespace for place in key_places(gateway_settings(), FixedDirectory([]), "made-here") or ()]
    assert made == ["made-here"]


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", "entry app is empty"),
        (b" \n", "entry app is empty"),
        (b"first-key-of-many\nsecond-key-of-many", "entry app has a line break inside"),
        ("schlüssel-mit-umlaut".encode(), "bytes that are not ASCII"),
        (b"planted words", "has a space"),
        (b"\x00" * 20, "a control character"),
        (b"tooshort", "shorter than 16 characters"),
    ],
)
def test_an_unusable_entry_is_named_with_its_secret_but_never_quoted(raw: bytes, fault: str) -> None:
    keys, faults = keys_of(TEAM, {"app": base64.b64encode(raw).decode(), "good": encoded(KEY)})
    assert [key.caller.key_name for key in keys] == ["good"]
    assert len(faults) == 1
    assert faults[0].startswith("Secret team/claas-gateway-keys: entry app")
    assert fault in faults[0]
    for word in raw.decode("latin-1").split():
        assert word not in faults[0]


def test_an_entry_that_is_not_base64_is_named() -> None:
    assert keys_of(TEAM, {"app": "%%%"})[1] == ("Secret team/claas-gateway-keys: entry app is not base64",)


def test_white_space_around_a_key_is_no_part_of_it() -> None:
    keys, _ = keys_of(TEAM, {"app": encoded(f"  {KEY}\n")})
    assert keys[0].digest == digest_of(KEY)


async def test_a_fault_is_logged_once_and_without_the_key(
    ring: KeyRing, secrets: Secrets, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets.put(TEAM, bad="short-planted", good=KEY)
    for _ in range(3):
        await known(ring, "an-unknown-planted-key")
        await known(ring, KEY)
        clock.now += FRESH_SECONDS + 1
    assert caplog.text.count("entry bad is shorter") == 1
    assert "planted" not in caplog.text
    assert KEY not in caplog.text
