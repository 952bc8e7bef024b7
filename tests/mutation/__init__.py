"""Planted bugs that would send or publish twice, or lose data silently; each is a patch that names the test for it."""
