"""Send one SMS through the official SDK, behind an HTTP API."""

import os
from functools import cache
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response, content_types
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities import parameters
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import BaseModel, Field
from twilio.base.exceptions import TwilioRestException
from twilio.rest import Client
from twilio.rest.api.v2010.account.message import MessageInstance

logger = Logger()
metrics = Metrics(namespace="Messages")
app = APIGatewayHttpResolver(enable_validation=True)
secrets = parameters.SecretsProvider()  # a client of boto3, created while Lambda gives whole processors


class SendSms(BaseModel):
    """A message."""

    to: str = Field(pattern=r"^\+[1-9][0-9]{1,14}$")
    from_: str | None = Field(default=None, alias="from")
    message: str = Field(min_length=1, max_length=1600)


@app.post("/messages")
def send(sms: SendSms) -> Response[dict[str, Any]]:
    """Send a message, and return Twilio's message. The resolver answers 422 if the input is invalid."""
    try:
        message = create(sms)
    except TwilioRestException as error:
        logger.exception("Twilio refused the message", twilio_code=error.code)
        return Response(error.status, content_types.APPLICATION_JSON, {"code": error.code})
    logger.info("Message sent", message_sid=message.sid)
    metrics.add_metric(name="MessagesSent", unit=MetricUnit.Count, value=1)
    return Response(HTTPStatus.CREATED, content_types.APPLICATION_JSON, as_json(message))


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Call the function of the route."""
    return app.resolve(event, context)


def create(sms: SendSms) -> MessageInstance:
    """Send a message through Twilio."""
    secret = connection()
    return client().messages.create(to=sms.to, from_=sms.from_ or secret["default_from"], body=sms.message)


def connection() -> dict[str, Any]:
    """Return the account's credentials, which Powertools caches for five minutes."""
    return secrets.get(os.environ["TWILIO_SECRET"], transform="json", max_age=300)


@cache
def client() -> Client:
    """Return the SDK's client; only the benchmarks set a host that is not Twilio's."""
    secret = connection()
    twilio = Client(secret["api_key_sid"], secret["api_key_secret"], secret["account_sid"])
    twilio.api.base_url = os.environ["TWILIO_API_URL"]
    return twilio


def as_json(message: MessageInstance) -> dict[str, Any]:
    """Return a message in Twilio's format, since the SDK does not keep the original."""
    return {
        "account_sid": message.account_sid,
        "api_version": message.api_version,
        "body": message.body,
        "date_created": date(message.date_created),
        "date_sent": date(message.date_sent),
        "date_updated": date(message.date_updated),
        "direction": message.direction,
        "error_code": message.error_code,
        "error_message": message.error_message,
        "from": message.from_,
        "messaging_service_sid": message.messaging_service_sid,
        "num_media": message.num_media,
        "num_segments": message.num_segments,
        "price": message.price,
        "price_unit": message.price_unit,
        "sid": message.sid,
        "status": message.status,
        "subresource_uris": message.subresource_uris,
        "to": message.to,
        "uri": message.uri,
    }


def date(moment: Any) -> str | None:
    """Return a time in Twilio's format."""
    return moment and moment.strftime("%a, %d %b %Y %H:%M:%S %z")
