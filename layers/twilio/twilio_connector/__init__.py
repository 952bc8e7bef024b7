"""Twilio client, connections, webhook signatures and the entry point of the connector's functions."""

__version__ = "0.1.0"
