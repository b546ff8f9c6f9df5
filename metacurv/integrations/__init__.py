"""Callbacks for frameworks that own the training loop; each module needs its framework, and is imported only by name."""
