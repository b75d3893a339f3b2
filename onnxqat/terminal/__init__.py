"""Output for people: plain text on streams that may be closed, and the progress of long work."""
