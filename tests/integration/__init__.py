"""Tests on the stack on this machine."""
