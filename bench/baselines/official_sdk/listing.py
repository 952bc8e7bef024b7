"""List messages through the official SDK, page by page."""

from itertools import islice
from typing import Any

from app import as_json, client, logger, metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import BaseModel, Field

PAGE_SIZE = 1000


class ListSms(BaseModel):
    """The input: the least number of messages, and the URL of a page as `page_token`."""

    limit: int = Field(default=1000, ge=1, le=5000)
    page_token: str | None = None


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Return whole pages with at least `limit` messages, and the URL of the next page."""
    wanted = ListSms.model_validate(event)
    resource = client().messages
    page = resource.get_page(wanted.page_token) if wanted.page_token else resource.page(page_size=PAGE_SIZE)
    messages = [as_json(message) for message in islice(page, PAGE_SIZE)]
    while page.next_page_url and len(messages) < wanted.limit:
        page = page.next_page()
        messages += [as_json(message) for message in islice(page, PAGE_SIZE)]
    metrics.add_metric(name="MessagesListed", unit=MetricUnit.Count, value=len(messages))
    return {"messages": messages, "next_page_token": page.next_page_url}
