"""Bugs that would send twice, or lose a message without a word: each a patch, and the test that must see it."""
