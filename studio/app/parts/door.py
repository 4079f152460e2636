"""Who may come in when the studio is shared: one password, before Streamlit sees anything of who asks.

Without the door's cookie nothing is answered but the password's page: no connection, no upload, no file. Who knows the
password gets the cookie, a random token, and comes back with it until the server ends.

Try it: `STYLORA_PASSWORD='a long secret' stylora app --share`
"""

from __future__ import annotations

import hmac
import html
import json
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from studio.app.config import DARK, LIGHT

Scope = MutableMapping[str, Any]  # of ASGI, as all of these
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FREE = 3  # wrong ones of an address without a pause
LONGEST_PAUSE = 60.0  # seconds
FORGOTTEN = 3600.0  # seconds after which an address's wrong ones don't count
A_MINUTE = 60  # wrong ones of all addresses together
LONGEST_FORM = 4096  # bytes
AGAIN = "reload the page for the password"
HEALTH = "/_stcore/health"  # says "ok" to anyone
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Stylora</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>
 :root {%s} @media (prefers-color-scheme: dark) {:root {%s}}
 body {background: var(--ground); color: var(--text); font: 16px sans-serif; margin: 14vh auto; width: min(26rem, 88vw)}
 h1 {font-family: serif} label {display: block; margin-bottom: .4rem}
 input, button {box-sizing: border-box; width: 100%%; padding: .65rem; border-radius: 10px; font: inherit}
 input {background: var(--field); color: inherit; border: 1px solid var(--line)}
 button {background: var(--accent); color: #fff; border: 0; margin: .8rem 0; cursor: pointer}
</style><h1>Stylora</h1><form method="post"><label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button>Come in</button></form><p role="alert">%s</p></html>"""


class Lock:
    """Compares passwords. A wrong one makes its address wait, so that a right one from elsewhere is looked at."""

    def __init__(self, password: str) -> None:
        self._password = password.encode()
        self._wrong: dict[str, tuple[int, float]] = {}  # {address: (how many, when the last)}
        self._lately: deque[float] = deque(maxlen=A_MINUTE)  # when, of all addresses

    def pause(self, address: str) -> float:
        """Seconds until a try from there is looked at."""
        now = time.monotonic()
        count, last = self._wrong.get(address, (0, now))
        own = min(LONGEST_PAUSE, 2.0 ** min(count - FREE, 10)) if count > FREE else 0.0
        everyone = self._lately[0] + 60.0 if len(self._lately) == A_MINUTE else now
        return max(0.0, last + own - now, everyone - now)

    def opens(self, typed: str, address: str) -> bool:
        """Whether it is the password; False without a look during a pause."""
        if self.pause(address) or not self._password:
            return False
        if hmac.compare_digest(typed.encode(errors="replace"), self._password):
            self._wrong.pop(address, None)
            return True
        now = time.monotonic()
        self._wrong = {one: found for one, found in self._wrong.items() if now - found[1] < FORGOTTEN}
        self._wrong[address] = (self._wrong.get(address, (0, now))[0] + 1, now)
        self._lately.append(now)
        return False


class Door:
    """Stands before an ASGI app: lets those through who have its cookie, and asks the others for the password."""

    def __init__(self, app: App, password: str) -> None:
        self._app, self._lock = app, Lock(password)
        self._tokens: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] == HEALTH or self._admitted(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["method"] == "POST":
            await self._try(scope, receive, send)
        elif b"text/html" in _header(scope, b"accept"):
            await _show(send, 200)
        else:  # an open page after a restart, which shows such words
            await _answer(send, 401, b"application/json", json.dumps(AGAIN))

    def _admitted(self, scope: Scope) -> bool:
        try:
            kept = SimpleCookie(_header(scope, b"cookie").decode("latin-1")).get(_cookie(scope))
        except CookieError:
            return False
        return kept is not None and kept.value in self._tokens

    async def _try(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A form with a password: back to where it was asked for, with the cookie; or why not."""
        address = str((scope.get("client") or ("",))[0])
        if wait := self._lock.pause(address):
            await _show(send, 429, f"That came too soon. Try again in {wait:.0f} s.")
        elif self._lock.opens(await _password(receive), address):
            token = secrets.token_urlsafe(32)
            self._tokens.add(token)
            cookie = f"{_cookie(scope)}={token}; Path=/; Max-Age=2592000; HttpOnly; SameSite=Strict"
            query = b"?" * bool(scope["query_string"]) + scope["query_string"]
            where = b"/" + scope.get("raw_path", b"/").lstrip(b"/") + query
            headers = [(b"location", where), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 303, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        else:
            wait = self._lock.pause(address)
            await _show(send, 403, f"That is not it. Try again in {wait:.0f} s." if wait else "That is not it.")


def _cookie(scope: Scope) -> str:
    """Of this server alone: browsers give a cookie to all ports of a machine."""
    return f"stylora_door_{(scope.get('server') or ('', 0))[1]}"


def _header(scope: Scope, name: bytes) -> bytes:
    return b"; ".join(value for one, value in scope["headers"] if one == name)


async def _password(receive: Receive) -> str:
    """What the form holds; "" where it is too long to be one."""
    body, more = b"", True
    while more and len(body) <= LONGEST_FORM:
        part = await receive()
        body, more = body + part.get("body", b""), part.get("more_body", False)
    fields = parse_qs(body.decode("latin-1")) if len(body) <= LONGEST_FORM else {}
    return fields.get("password", [""])[0]


async def _show(send: Send, status: int, fault: str = "") -> None:
    await _answer(send, status, b"text/html", PAGE % (_colours(LIGHT), _colours(DARK), html.escape(fault)))


async def _answer(send: Send, status: int, kind: bytes, text: str) -> None:
    """All of it; the connection ends, since what was sent with the question may not have been read."""
    headers = [(b"content-type", kind + b"; charset=utf-8"), (b"cache-control", b"no-store"),
               (b"x-frame-options", b"DENY"), (b"connection", b"close")]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _colours(theme: dict[str, Any]) -> str:
    names = {"ground": "backgroundColor", "text": "textColor", "field": "secondaryBackgroundColor",
             "line": "borderColor", "accent": "primaryColor"}  # fmt: skip
    return "; ".join(f"--{name}: {theme[value]}" for name, value in names.items())
