"""Update transforms for privacy and robustness."""
