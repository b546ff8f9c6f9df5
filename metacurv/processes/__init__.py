"""The processes that train or measure together, and what each of them holds."""
