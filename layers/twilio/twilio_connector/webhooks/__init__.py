"""What Twilio posts: its signature, its text, its events."""
