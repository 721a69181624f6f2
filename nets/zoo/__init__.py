"""Networks that this project builds or knows, and weights for them."""
