"""What the user gave: model and loss, batches, parameters, state to be kept, and the result that goes back."""
