"""Tests in one process, with the wire faked."""
