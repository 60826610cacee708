"""Re-runs of the published experiments beside the printed numbers."""
