"""The compact video model: small enough to ship, fast enough for a laptop."""
