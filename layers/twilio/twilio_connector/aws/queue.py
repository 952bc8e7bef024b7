"""Messages to SQS queues."""

from typing import Any

from twilio_connector.aws.client import call


def send_message(queue_url: str, json_text: str, **parameters: Any) -> str | None:
    """Put a JSON text in a queue, and return SQS's id of the message; raises AwsError."""
    # JSON allows these two characters, and SQS refuses them
    # (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html).
    body = json_text.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
    answer = call("sqs", "SendMessage", QueueUrl=queue_url, MessageBody=body, **parameters)
    return answer.get("MessageId")
