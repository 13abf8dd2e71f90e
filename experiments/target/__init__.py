"""TARGET: class-continual learning with images that the server makes."""
