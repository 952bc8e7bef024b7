"""Calls to AWS services."""
