"""Everything that denoises; knows nothing of 3D beyond guidance."""
