"""Finds new and changed messages in Twilio's list, from where the last run stopped."""
