"""Running means of samples and the rule that ends sampling, sums over batches and ranks."""
