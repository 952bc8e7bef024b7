"""Twilio's events to the bus, each once."""
