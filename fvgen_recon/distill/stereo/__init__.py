"""Training of the stereo network: true depth from many views, samples, losses, the loop."""
