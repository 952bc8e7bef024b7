"""New credentials for a connection."""
