"""Tests in one process, with a fake network."""
