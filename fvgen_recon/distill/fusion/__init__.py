"""Training of the fusion network: samples held in memory and the loop."""
