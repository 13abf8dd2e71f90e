"""Processes that compute client work: Ray actors, their shared memory and their queue of tasks."""
