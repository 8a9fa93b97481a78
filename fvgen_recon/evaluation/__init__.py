"""Metrics, protocols with frozen splits, reports."""
