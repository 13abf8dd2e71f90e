"""What runs came to: tables and plots from their directories."""
