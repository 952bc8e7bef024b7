"""Replaces HTTP/2, which nothing here uses: urllib3 imports it anyway, with packages' metadata (18 ms)."""
