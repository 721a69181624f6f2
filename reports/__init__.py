"""What is said of searches, fine-tunings and networks: text, figures, pictures."""
