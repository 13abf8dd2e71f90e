"""The laws that every part keeps, and `fl check`, which tests them for registered parts and for the user's own."""
