"""The choice of the method that is right for a batch and the cheapest, and measuring with it."""
