"""Functions that return a complete configuration."""
