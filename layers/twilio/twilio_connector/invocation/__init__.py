"""Reads the event of any caller as a typed input, and returns the result in that caller's format."""
