"""Posed photos to point clouds."""
