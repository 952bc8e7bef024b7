"""No switch to HTTP/2, which is not used: urllib3 imports it all the same, and it the packages' metadata (18 ms)."""
