"""Kill processes, damage files and feed nonsense to fl: everything has to end with the bits of an undisturbed run."""
