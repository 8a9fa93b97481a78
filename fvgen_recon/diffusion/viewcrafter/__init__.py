"""ViewCrafter's architecture: the 50-step teacher and the few-step student of the same shape."""
