"""An account's credentials (API keys, primary and secondary auth token) and Twilio's answers to requests about them.

The operations are those of Twilio's OpenAPI documents (https://github.com/twilio/twilio-oai, spec/json). These do not
document errors; the statuses and codes here are those that https://github.com/dixahq/twilio-client expects.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from .wire import Reply, Request

_ACCOUNT = re.compile(r"/2010-04-01/Accounts/(AC[0-9a-f]{32})(?:/(\w+)(?:/(\w+))?)?\.json")


@dataclass(frozen=True, slots=True)
class Key:
    """An API key. Only a main key may read and change keys and the account; the API cannot create main keys."""

    secret: str
    friendly_name: str = ""
    is_main: bool = False


class Credentials:
    """The credentials of one account: requests must have them, and requests can change them."""

    def __init__(
        self, account_sid: str, auth_token: str, keys: Mapping[str, Key], *, max_page_size: int = 1000
    ) -> None:
        self.account_sid = account_sid
        self.primary = auth_token
        self.secondary: str | None = None
        self.keys = dict(keys)
        self._max_page_size = max_page_size
        self._made = 0

    def accepts(self, user: str, password: str) -> bool:
        """Return whether Twilio accepts these credentials now."""
        if user == self.account_sid:
            return password in {self.primary, self.secondary}
        return user in self.keys and password == self.keys[user].secret

    def knows(self, request: Request) -> bool:
        """Return whether a request's user belongs to this account; the password does not matter."""
        user, _ = request.credentials or ("", "")
        return user == self.account_sid or user in self.keys

    def reply(self, request: Request) -> Reply | None:
        """Return the answer to a request about credentials or with wrong ones; None: the account answers it."""
        user, password = request.credentials or ("", "")
        if not self.accepts(user, password):
            return _error(401, 20003, "Authenticate")
        asked = request.method, request.path
        if answer := self._about_tokens().get(asked):
            # These operations have only the security scheme accountSid_authToken.
            return answer() if user == self.account_sid else _error(401, 20003, "Authenticate")
        match = _ACCOUNT.fullmatch(request.path)
        if match is None or match[2] not in {None, "Keys"}:
            return None
        if user != self.account_sid and not self.keys[user].is_main:
            return _error(401, 20003, "Authenticate")
        if match[2] is None:
            # FetchAccount, 200: auth_token is the primary one.
            return Reply.json(200, {"sid": self.account_sid, "auth_token": self.primary, "status": "active"})
        return self._about_keys(request, match[3])

    def _about_keys(self, request: Request, sid: str | None) -> Reply:
        if sid is None:
            return self._create(request) if request.method == "POST" else self._page(request)
        if sid not in self.keys:
            return _error(404, 20404, "The requested resource was not found")
        if request.method == "DELETE":
            # DeleteKey, 204.
            del self.keys[sid]
            return Reply(204)
        return Reply.json(200, self._shown(sid))

    def _create(self, request: Request) -> Reply:
        # CreateNewKey, 201: it creates a standard key; only this answer has the secret.
        sid, secret = f"SK{self._number():032x}", self._new("key-secret")
        self.keys[sid] = Key(secret, request.form["FriendlyName"][0])
        return Reply.json(201, self._shown(sid) | {"secret": secret})

    def _page(self, request: Request) -> Reply:
        # ListKey, 200: without secrets; the default PageSize is 50, the maximum 1000.
        wanted = {name: values[0] for name, values in request.parameters.items()}
        size = min(int(wanted.get("PageSize", 50)), self._max_page_size)
        number = int(wanted.get("Page", 0))
        rows = [self._shown(sid) for sid in self.keys][number * size :]
        following = urlencode({"PageSize": size, "Page": number + 1, "PageToken": f"PA{number}"})
        return Reply.json(200, {
            "keys": rows[:size],
            "page": number,
            "page_size": size,
            "next_page_uri": f"{request.path}?{following}" if len(rows) > size else None,
        })  # fmt: skip

    def _shown(self, sid: str) -> dict[str, Any]:
        date = "Fri, 23 Jan 2026 12:00:00 +0000"
        return {
            "sid": sid,
            "friendly_name": self.keys[sid].friendly_name,
            "date_created": date,
            "date_updated": date,
        }

    def _about_tokens(self) -> dict[tuple[str, str], Callable[[], Reply]]:
        secondary = "/v1/AuthTokens/Secondary"
        return {
            ("POST", secondary): self._create_secondary,
            ("DELETE", secondary): self._delete_secondary,
            ("POST", "/v1/AuthTokens/Promote"): self._promote,
        }

    def _create_secondary(self) -> Reply:
        # CreateSecondaryAuthToken, 201; 400 with 70002 if there is one already.
        if self.secondary:
            return _error(400, 70002, "A secondary auth token exists")
        self.secondary = self._new("token")
        return Reply.json(201, {"account_sid": self.account_sid, "secondary_auth_token": self.secondary})

    def _delete_secondary(self) -> Reply:
        # DeleteSecondaryAuthToken, 204; 404 with 20404 if there is none.
        if self.secondary is None:
            return _error(404, 20404, "The requested resource was not found")
        self.secondary = None
        return Reply(204)

    def _promote(self) -> Reply:
        # UpdateAuthTokenPromotion, 200, "all requests to Twilio using your old primary Auth Token will result in an
        # error"; 404 with 20404 if there is no secondary token.
        if self.secondary is None:
            return _error(404, 20404, "The requested resource was not found")
        self.primary, self.secondary = self.secondary, None
        return Reply.json(200, {"account_sid": self.account_sid, "auth_token": self.primary})

    def _new(self, kind: str) -> str:
        return f"not-a-{kind}-{self._number()}"

    def _number(self) -> int:
        self._made += 1
        return self._made


def _error(status: int, code: int, message: str) -> Reply:
    return Reply.json(status, {"code": code, "message": message, "status": status})
