"""Twilio client, connections, webhook signatures and the entry point of the connector's functions."""

import gc

__version__ = "0.1.0"

# Imported modules are never garbage. With Python's default threshold, collections take a tenth of a cold start.
gc.set_threshold(50_000)
