"""The user's side of a measurement: model and loss, batches, parameters, state to be kept, and the result that goes back."""
