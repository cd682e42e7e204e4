"""What stages report beside their scores: measurements, candidates, and how results are shortened."""
