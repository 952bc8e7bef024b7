"""Twilio's lists, page by page (https://www.twilio.com/docs/usage/twilios-response#pagination)."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from twilio_connector.api.client import API_PATH, Message, Twilio
from twilio_connector.errors import TwilioUnavailableError

_MAX_PAGE_BYTES = 32 * 1024 * 1024  # 1,000 messages, each with a text of 1,600 characters written as escapes


class PageLink(NamedTuple):
    """The query parameters of a page in Twilio's list. The first page has none."""

    page: str = ""
    token: str = ""


class MessagePage(msgspec.Struct):
    """The fields by which an answer is known as a page of messages."""

    messages: list[Message]
    next_page_uri: str | None = None


class TwilioList(NamedTuple):
    """A list of one account. `path` is as the client takes it; each page must match `response_model`."""

    twilio: Twilio
    path: str
    response_model: type[msgspec.Struct]
    filters: Mapping[str, str]
    page_size: str

    def fetch(self, link: PageLink) -> dict[str, Any]:
        """Return a page as Twilio's JSON; raises ConnectorError as the client does."""
        query = {**self.filters, "PageSize": self.page_size}
        query |= {name: value for name, value in (("Page", link.page), ("PageToken", link.token)) if value}
        page: dict[str, Any] = self.twilio.request(
            "GET", self.path, query=query, response_model=self.response_model, max_bytes=_MAX_PAGE_BYTES
        ).data
        return page

    def link_after(self, page: Mapping[str, Any]) -> PageLink | None:
        """Return the link to the next page, or None after the last one.

        Raises TwilioUnavailableError if the link leads to another account. Links may form a circle, so callers must
        stop at a link that they followed before.
        """
        uri = page.get("next_page_uri")
        if not uri:
            return None
        path, _, query = uri.removeprefix(self.twilio.api_url).partition("?")
        own = self.path if self.path.startswith("/") else f"/Accounts/{self.twilio.connection.account_sid}/{self.path}"
        if path != f"{API_PATH}{own}":
            raise TwilioUnavailableError("Twilio's next page is outside the connection's account")
        names = dict(parse_qsl(query))
        return PageLink(names.get("Page", ""), names.get("PageToken", ""))

    def pages(self) -> Iterator[dict[str, Any]]:
        """Yield all pages, each once."""
        link: PageLink | None = PageLink()
        followed: set[PageLink] = set()
        while link is not None and link not in followed:
            followed.add(link)
            page = self.fetch(link)
            yield page
            link = self.link_after(page)
