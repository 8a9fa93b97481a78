"""Pure tensor functions: projection, rigid motions, conventions. No files, no networks."""
