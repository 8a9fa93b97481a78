"""A small network that puts a splat's render and a generator's frame of one pose together."""
