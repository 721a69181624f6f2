"""What filters and networks are worth: scores and rewards."""
