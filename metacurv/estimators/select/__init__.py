"""Which method is right for a batch, which is the cheapest, and measuring with it."""
