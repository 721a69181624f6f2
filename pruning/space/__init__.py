"""What can go, and what it saves."""
