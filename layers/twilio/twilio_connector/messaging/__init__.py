"""Sends a message once per idempotency key, and reports its outcome."""
