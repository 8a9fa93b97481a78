"""Files in and out: images, videos, point clouds, scenes. No networks."""
