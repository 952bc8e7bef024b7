"""One Twilio account over HTTP."""
