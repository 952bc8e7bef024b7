"""Twilio client, connections, webhook signatures and the entry point of the connector's functions."""

import gc

__version__ = "0.1.0"

# What a function imports is never garbage: Python looks for some so often that this takes a tenth of a cold start.
gc.set_threshold(50_000)
