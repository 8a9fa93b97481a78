"""Posed photos to camera paths between them."""
