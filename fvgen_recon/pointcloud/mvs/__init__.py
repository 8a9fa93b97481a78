"""A compact multi-view stereo network behind the point-cloud protocol."""
