"""The EKG paper's claims, each measured with enough seeds to say yes or no (docs/claims.md)."""
