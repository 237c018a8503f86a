"""Training: one loop for every recipe. It sees batches and ``nn.Module``s and knows nothing of media or vocabulary."""
