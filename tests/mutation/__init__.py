"""Bugs that would send or publish twice, or lose something without a word: each a patch, and the test that sees it."""
