"""Points and Gaussians to images."""
