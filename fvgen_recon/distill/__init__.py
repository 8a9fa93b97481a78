"""Teacher to few-step student: losses, stages, data, trainer."""
