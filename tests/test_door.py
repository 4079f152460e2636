"""The door of a shared studio: what is answered without its cookie, what wrong passwords cost, and whom."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

import pytest

from studio.app.parts.door import A_MINUTE, FREE, LONGEST_FORM, LONGEST_PAUSE, Door, Lock

RIGHT = "a löng enough secret + more"
Answer = tuple[int, dict[str, str], str]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("studio.app.parts.door.time.monotonic", lambda: now[0])
    return now


async def inside(scope: Any, receive: Any, send: Any) -> None:
    """The app behind the door."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(door: Door, path: str = "/", method: str = "GET", body: bytes = b"", *, kind: str = "http",
        cookie: str = "", accept: str = "text/html", address: str = "10.0.0.1") -> Answer:  # fmt: skip
    """Status, headers and text; a refused websocket has status 0."""
    said: list[Any] = []
    path, _, query = path.partition("?")
    headers = [(b"accept", accept.encode())] + [(b"cookie", cookie.encode())] * bool(cookie)
    scope = {"type": kind, "path": path, "raw_path": path.encode(), "query_string": query.encode(), "method": method,
             "headers": headers, "client": (address, 5), "server": ("10.0.0.9", 8501)}  # fmt: skip

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        said.append(message)

    asyncio.run(door(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in said[0].get("headers", [])}
    return said[0].get("status", 0), found, said[-1].get("body", b"").decode()


def form(password: str) -> bytes:
    return urlencode({"password": password}).encode()


def test_nothing_is_answered_before_the_password() -> None:
    door = Door(inside, RIGHT)
    status, headers, page = ask(door, "/library?desk=abc")
    assert (status, "Come in" in page, "inside" in page) == (200, True, False)
    assert headers["cache-control"] == "no-store"
    for method, path in (("PUT", "/_stcore/upload_file/a/b"), ("GET", "/_stcore/metrics"), ("GET", "/media/a.png")):
        status, _, page = ask(door, path, method, accept="*/*")
        assert (status, "reload" in page, "inside" in page) == (401, True, False)
    assert ask(door, "/_stcore/stream", kind="websocket")[0] == 0
    assert ask(door, "/_stcore/health")[2] == "inside"


def test_the_password_gives_a_cookie_that_lets_in_and_goes_back_to_the_page() -> None:
    door = Door(inside, RIGHT)
    status, headers, _ = ask(door, "/library?desk=abc", "POST", form(RIGHT))
    assert (status, headers["location"]) == (303, "/library?desk=abc")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(headers["set-cookie"].split("; "))
    cookie = headers["set-cookie"].split(";")[0]
    for kind in ("http", "websocket"):
        assert ask(door, kind=kind, cookie=f"other=1; {cookie}")[2] == "inside"
    assert ask(door, "/_stcore/upload_file/a/b", "PUT", cookie=cookie)[2] == "inside"
    for wrong in (cookie[:-1], cookie.replace("8501", "8502"), cookie.split("=")[0] + "=", "=;;,[{"):
        assert "inside" not in ask(door, cookie=wrong)[2]
    assert "inside" not in ask(Door(inside, RIGHT), cookie=cookie)[2]  # a new server asks anew


def test_it_goes_back_to_nowhere_else() -> None:
    assert ask(Door(inside, RIGHT), "//elsewhere.org/", "POST", form(RIGHT))[1]["location"] == "/elsewhere.org/"


@pytest.mark.parametrize("body", [b"", b"password=", b"other=1", b"\xff\xfe=%ff", b"password=" + b"a" * LONGEST_FORM])
def test_what_is_no_password_opens_nothing(body: bytes) -> None:
    door = Door(inside, RIGHT)
    status, headers, page = ask(door, "/", "POST", body)
    assert (status, "That is not it." in page, "set-cookie" in headers) == (403, True, False)
    assert "set-cookie" not in ask(Door(inside, ""), "/", "POST", b"password=")[1]


def test_who_types_wrong_ones_waits_and_others_do_not(clock: list[float]) -> None:
    door = Door(inside, RIGHT)
    for _ in range(FREE + 1):
        status, _, page = ask(door, "/", "POST", form("wrong"))
    assert (status, "Try again in 2 s" in page) == (403, True)
    assert ask(door, "/", "POST", form(RIGHT))[0] == 429  # not looked at
    assert ask(door, "/", "POST", form(RIGHT), address="10.0.0.2")[0] == 303
    clock[0] += 2
    assert ask(door, "/", "POST", form(RIGHT))[0] == 303


def test_guessing_gets_slower_and_stays_slow(clock: list[float]) -> None:
    lock = Lock("right")
    for _ in range(1200):
        assert not lock.opens("wrong", "a")
        clock[0] += lock.pause("a")
    assert not lock.opens("wrong", "a")
    assert lock.pause("a") == LONGEST_PAUSE
    clock[0] += LONGEST_PAUSE
    assert lock.opens("right", "a")
    assert lock.pause("a") == 0


def test_many_addresses_together_are_slow_too(clock: list[float]) -> None:
    lock = Lock("right")
    tries = sum(lock.pause(str(number)) == 0 and not lock.opens("wrong", str(number)) for number in range(500))
    assert tries == A_MINUTE
    clock[0] += 61
    assert lock.opens("right", "me")


def test_addresses_are_forgotten(clock: list[float]) -> None:
    lock = Lock("right")
    for number in range(50):
        lock.opens("wrong", str(number))
        clock[0] += 3600 / 10
    assert len(lock._wrong) <= 11
