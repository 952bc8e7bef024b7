"""Tests on a local stack."""
