"""Typed inputs and phone numbers."""
