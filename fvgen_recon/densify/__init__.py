"""Scene to generated training views: estimate, plan, render, generate, score, bank."""
